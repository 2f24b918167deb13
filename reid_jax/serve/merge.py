"""Several galleries of one model as one."""

import contextlib
import json

import numpy as np

from reid_jax.errors import DataError
from reid_jax.serve import database, file, gallery


def merge(paths, output, actor="merge"):
    """Writes the entries of some galleries, files or addresses of servers, to a new one, either too; returns
    what was added to the ids of each.

    Their audits are kept as chains of their own. `output` appears whole or not at all. DataError: other
    models, damaged, `output` exists.
    """
    if gallery.exists(output):
        raise DataError(f"{gallery.shown(output)} exists; choose another name")
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(contextlib.closing(_opened(p))) for p in paths]
        meta = _common(parts)
        if gallery.is_address(output):
            return _to_server(parts, output, meta, actor)
        part = f"{output}.part"
        file.drop(part)
        stack.callback(file.drop, part)
        file.create(part, **meta)
        with contextlib.closing(database.Database(part)) as out:
            shifts = _copy(parts, out, actor)
        try:
            file.name_it(part, output)
        except OSError as error:
            raise DataError(f"{output} cannot be written: {error}") from error
    return shifts


def _opened(place):
    """Database of a file or a server, for reading."""
    if not gallery.is_address(place):
        return database.Database(place, "r")
    from reid_jax.serve import postgres

    return postgres.Server(place, "r")


def _to_server(parts, output, meta, actor):
    from reid_jax.serve import postgres

    try:
        postgres.create(output, **meta)
    except FileExistsError as error:
        raise DataError(f"{gallery.shown(output)} exists; choose another database") from error
    try:
        with contextlib.closing(postgres.Server(output)) as out:
            return _copy(parts, out, actor)
    except BaseException:
        postgres.drop(output)
        raise


def _common(parts):
    """Arguments of file.create for what all can be put into."""
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
                part.snapshot(source)
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
    for rows in part.chunks(source):
        out.put(target, [(row[0] + shift, *row[1:-1], _typed(row[-1], part, out)) for row in rows])
    out.set_last(target, shift + last)


def _typed(vector, part, out):
    """A vector's bytes in the new gallery's type."""
    return vector if part.type == out.type else np.frombuffer(vector, part.type).astype(out.type).tobytes()


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
