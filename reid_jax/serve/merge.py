"""Several galleries of one model as one."""

import contextlib
import json
import os

import numpy as np

from reid_jax.errors import DataError
from reid_jax.serve import database

_COPIED = ("id", *database.COLUMNS, "vector", "checksum")
_CHUNK = 1024


def merge(paths, output, actor="merge"):
    """Writes the entries of some galleries to a new one; returns what was added to the ids of each.

    Their audits are kept as chains of their own. `output` appears whole or not at all. DataError: other
    models, damaged, `output` exists.
    """
    if os.path.exists(output):
        raise DataError(f"{output} exists; choose another name")
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(contextlib.closing(database.Database(p, "r"))) for p in paths]
        meta = _common(parts)
        part = f"{output}.part"
        database.drop(part)
        stack.callback(database.drop, part)
        database.create(part, **meta)
        with contextlib.closing(database.Database(part)) as out:
            shifts = _copy(parts, out, actor)
        try:
            os.link(part, output)
        except OSError as error:
            raise DataError(f"{output} cannot be written: {error}") from error
    return shifts


def _common(parts):
    """Arguments of database.create for what all can be put into."""
    first = parts[0].meta
    for other in parts[1:]:
        if (other.meta["model"], other.dim) != (first["model"], parts[0].dim):
            raise DataError(
                f"{parts[0].path} holds features of model {first['model'][:12]}, {other.path} of "
                f"{other.meta['model'][:12]}: they cannot be compared"
            )
    precision = "float16" if all(p.type == "float16" for p in parts) else "float32"
    source = first.get("source", "")
    return {"dim": parts[0].dim, "model": first["model"], "precision": precision, "source": source}


def _copy(parts, out, actor):
    """Copies entries and audits in one transaction; returns the shifts of the ids."""
    shifts, chain = [], 0
    with out.writing() as target:
        for part in parts:
            with part.reading() as source:
                shifts.append(out.next_id(target) - 1)
                _copy_entries(part, source, out, target, shifts[-1])
                chain = _copy_audit(part, source, target, chain)
        _set_heads(out, target)
        out.changed(target, rewritten=True)
        detail = {"galleries": len(parts), "shifts": shifts}
        out.write_audit(target, actor, "merge", detail)
    return shifts


def _copy_entries(part, source, out, target, shift):
    last = part.next_id(source) - 1  # ids of deleted entries stay free too
    cursor = source.execute(f"SELECT {', '.join(_COPIED)} FROM entry ORDER BY id")
    marks = ",".join("?" * len(_COPIED))
    while rows := cursor.fetchmany(_CHUNK):
        target.executemany(
            f"INSERT INTO entry VALUES({marks})", [_shifted(r, shift, part, out) for r in rows]
        )
    _set_last(target, shift + last)


def _set_last(target, last):
    """The last id that was given."""
    target.execute("DELETE FROM sqlite_sequence WHERE name = 'entry'")
    target.execute("INSERT INTO sqlite_sequence VALUES('entry', ?)", (last,))


def _shifted(row, shift, part, out):
    """A row under its new id, with its vector in the new file's type."""
    key, person, camera, time, tracklet, *others, vector, mark = row
    if database.checksum(key, person, camera, time, tracklet, vector) != mark:
        raise DataError(f"{part.path} is damaged: entry {key} does not fit its checksum; remove it first")
    if part.type != out.type:
        vector = np.frombuffer(vector, part.type).astype(out.type).tobytes()
    mark = database.checksum(key + shift, person, camera, time, tracklet, vector)
    return (key + shift, person, camera, time, tracklet, *others, vector, mark)


def _copy_audit(part, source, target, chain):
    """Copies audit rows under chains of their own; returns the last chain's number."""
    numbers = {}
    for old, *row in source.execute("SELECT chain, time, actor, action, detail, hash FROM audit ORDER BY id"):
        number = numbers.setdefault(old, chain + 1 + len(numbers))
        target.execute(
            "INSERT INTO audit(chain, time, actor, action, detail, hash) VALUES(?,?,?,?,?,?)", (number, *row)
        )
    return chain + len(numbers)


def _set_heads(out, target):
    """The count and last hash of each chain."""
    heads = {}
    for chain, mark in target.execute("SELECT chain, hash FROM audit ORDER BY id"):
        heads[str(chain)] = [heads.get(str(chain), [0])[0] + 1, mark]
    out.set_meta(target, "audit", json.dumps(heads))
