"""One's own pictures: a labels.csv, or the sub-folders train, query and gallery with telling names.

Columns of the table, in any order: path (below data.root), pid, and, as far as there are such, camid
(without it a test compares all pairs), split (train | query | gallery; without it identities are drawn for
training and the others tested) and tracklet (rows of one tracklet are its frames, in their order).
"""

import difflib
import functools
import logging
import os
import re
from typing import NamedTuple

from reid_jax import places
from reid_jax.data.loaders import labels, table, walk
from reid_jax.data.loaders.common import (
    Layout,
    Reading,
    check_present,
    draw_half,
    from_one,
    inside,
    missing_of,
    of_ids,
    query_and_gallery,
)
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError, DataError

LABELS = ("labels.csv", "labels.tsv")
SPLITS = ("train", "query", "gallery")
COLUMNS = ("path", "pid", "camid", "split", "tracklet")
UNKNOWN = -1  # identity of pictures without one
PATTERN = r"(?:^|/)(?P<pid>-?\d+)_c(?P<camera>\d+)"  # Market-1501's names
_HINTS = {"camid": "cam", "split": "split", "tracklet": "track"}  # in other names for these columns
log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One picture with labels as written."""

    path: str
    pid: str
    camera: str  # "" = not known
    split: str  # "" = to be drawn
    tracklet: str  # "" = none
    where: str  # for errors: the file, or the line that names it


def read(root, options):
    """Labels from the table when there is one, otherwise from the names.

    pids and cameras that are not all whole numbers are numbered from 1 in sorted order. The pids -1 (junk)
    and 0 (a distractor, unless train or query use it for a person) keep their meaning however others are
    written. Training pictures of nobody known have pid -1; cameras that are not known count as one, and where
    none is known a test leaves nothing out.
    """
    path = csv_path(root, options)
    rows, strange = (read_csv(path, root, options), []) if path else read_names(root, options.pattern)
    if not rows:
        return Reading({s: [] for s in SPLITS}, strange)
    check_identities(rows)
    pids, _ = numbered([r.pid for r in rows], UNKNOWN, (labels.JUNK, labels.DISTRACTOR))
    camids, cameras = with_unknown(*numbered([r.camera for r in rows], None))
    records, kind = grouped(rows, pids, camids)
    protocol = "" if any(r.camera for r in rows) else "all-pairs"
    undecided, drawn = records.pop(""), {}
    unknown = [r for r in undecided if r.pid == UNKNOWN]
    if len(unknown) < len(undecided):
        records, drawn = draw(from_one({"query": undecided})["query"], options)
        check_drawn(root, records, protocol)
    records["train"] += unknown
    return Reading(from_one(records), strange, drawn, cameras, kind, protocol)


def check_identities(rows):
    """DataError naming the first pid that is negative and not junk."""
    for row in rows:
        number = labels.integer(row.pid)
        if number is not None and number < labels.JUNK:
            raise DataError(
                f"{row.where}: pid is {row.pid}; -1 is junk and 0 a distractor, people have positive numbers "
                "or names: number them anew"
            )


def numbered(written, empty, special=()):
    """labels.numbered of labels, some of which may be empty: these have the number `empty`."""
    numbers, names = labels.numbered([label for label in written if label], special)
    given = iter(numbers)
    return [next(given) if label else empty for label in written], names


def with_unknown(camids, names):
    """(camids, names) as of `numbered` where cameras that are not known are one of their own, the last."""
    if None not in camids:
        return camids, names
    last = 1 + max((c for c in camids if c is not None), default=0)
    return [last if c is None else c for c in camids], {**names, last: "unknown"}


def grouped(rows, pids, camids):
    """({split: records}, image | video): rows of one tracklet become one record."""
    records, tracklets = {s: [] for s in (*SPLITS, "")}, {}
    for row, pid, camid in zip(rows, pids, camids, strict=True):
        key = (row.split, row.tracklet, pid, camid) if row.tracklet else row.path
        tracklets.setdefault(key, (row.split, pid, camid, []))[3].append(row.path)
    video = any(row.tracklet for row in rows)
    for split, pid, camid, frames in tracklets.values():
        records[split].append(Record(frames[0], pid, camid, tuple(frames) if video else ()))
    return records, "video" if video else "image"


def draw(records, options):
    """({split: records}, {"train_ids": [...]}) with config.data.train_share of the identities in train.

    Query: the first record of each other identity and camera; gallery: the rest. A person 0 is a person.
    """
    if options.everything:
        return {"train": [r for r in records if r.pid > 0], "query": [], "gallery": []}, {}
    share = options.train_share
    if not 0 < share < 1:
        raise ConfigError(f"config.data.train_share is {share}; it must lie between 0 and 1")
    ids = {r.pid for r in records if r.pid > 0}
    train, test = draw_half(ids, min(max(round(share * len(ids)), 1), max(len(ids) - 1, 1)), options)
    query, gallery = query_and_gallery(of_ids(records, test))
    return {"train": of_ids(records, train), "query": query, "gallery": gallery}, {"train_ids": train}


def check_drawn(root, splits, protocol):
    """DataError where a drawn test would find every query itself, as no camera is known."""
    if protocol and splits["gallery"] and {*splits["query"]} == {*splits["gallery"]}:
        raise DataError(
            f"{root}: every person that is tested has one picture, and cameras are not known: there is "
            "nothing to search for; add pictures, or a column split"
        )


# ---- the table ------------------------------------------------------------------------------------------
def csv_path(root, options):
    """The table to read, "" for none."""
    if not options.csv:
        candidates = (os.path.join(root, name) for name in LABELS)
        return next((path for path in candidates if os.path.exists(path)), "")
    path = os.path.abspath(places.local(options.csv, "config.data.csv"))
    if not os.path.isfile(path):
        raise DataError(f"config.data.csv: {path} is no file")
    return path


def read_csv(path, root, options):
    """Rows of a table; DataError naming the line of the first fault."""
    header, lines = table.read(path, COLUMNS[:2])
    check_columns(path, header)
    lines = [(number, dict(zip(header, values, strict=True))) for number, values in lines]
    if not lines:
        raise DataError(f"{path} has no line below its header {','.join(COLUMNS)}")
    check_unread(path, header, lines)
    cameras = any(line.get("camid") for _, line in lines)
    rows, numbers = [], {}
    for number, line in lines:
        row = parse_line(line, f"{path}, line {number}", root, cameras)
        if numbers.setdefault(row.path, number) != number:
            raise DataError(f"{row.where}: {line['path']} is on line {numbers[row.path]} already; remove one")
        rows.append(row)
    if len({bool(row.tracklet) for row in rows}) > 1:
        raise DataError(f"{path}: some lines have a tracklet and some have none; give all or none")
    return present(rows, root, options)


def check_columns(path, columns):
    """DataError for columns that are missing or double."""
    known = [c for c in columns if c in COLUMNS]
    if not set(COLUMNS[:2]) <= set(known) or len(set(known)) < len(known):
        raise DataError(
            f"{path}, line 1: columns are {', '.join(map(repr, columns)) or 'missing'}; path and pid are "
            "needed once, camid, split and tracklet may be there once"
        )


def check_unread(path, header, lines):
    """Says which columns are not read; DataError for what seems to be one of ours under another name."""
    others = [c for c in header if c and c not in COLUMNS]
    for column in (c for c in COLUMNS if c not in header):
        near = [
            c for c in others if _HINTS[column] in c or difflib.get_close_matches(c, [column], cutoff=0.75)
        ]
        if column == "split":
            near += [c for c in others if all(line[c].lower() in SPLITS for _, line in lines)]
        if near:
            raise DataError(
                f"{path}, line 1: the column {near[0]!r} is not known, and {column} is missing: call it "
                f"{column}, or remove it if it is something else"
            )
    if others:
        log.info("%s: columns that are not read: %s", path, ", ".join(others))


def parse_line(line, where, root, cameras):
    """Row of one line; cameras: whether any line names one."""
    split = line.get("split", "").lower()
    if "split" in line and split not in SPLITS:
        raise DataError(f"{where}: split is {split!r}; it must be one of {', '.join(SPLITS)}")
    tested = split in ("query", "gallery")  # who trains may be unknown
    needed = ["path", *["pid"] * tested, *["camid"] * (cameras and (tested or bool(line["pid"])))]
    empty = [c for c in needed if not line.get(c)]
    if empty:
        raise DataError(f"{where}: {' and '.join(empty)} is empty")
    path = listed(root, line["path"], where)
    return Row(path, line["pid"], line.get("camid", ""), split, line.get("tracklet", ""), where)


def listed(root, name, where):
    """The path that a table means: also with backslashes, from ~ on, or absolute below the root."""
    odd = "\\" in name or name.startswith("~") or ":/" in name
    if odd and "\0" not in name and not os.path.lexists(os.path.join(root, name)):
        if re.match(r"[A-Za-z]:[\\/]", name):
            raise DataError(f"{where} names {name!r}, a path of Windows; write it from {root} on")
        name = places.local(name.replace("\\", "/"), where)
    return inside(root, name, where)


def present(rows, root, options):
    """The rows with paths as the file system spells them; DataError when a picture is not there.

    Unless those that are missing are to be passed over later.
    """
    missing = missing_of(row.path for row in rows)
    if missing:
        spelled = walk.spelling(root, missing)
        rows = [row._replace(path=spelled.get(row.path, row.path)) for row in rows]
        check_present([row.path for row in rows], root, options)
    return rows


# ---- names ----------------------------------------------------------------------------------------------
def read_names(root, pattern):
    """(rows, strange paths) of the pictures below train/, query/ and gallery/, or below root to be drawn.

    Pictures of train and those to be drawn whose names do not tell are rows too, of somebody unknown.
    """
    pattern = compiled(pattern or PATTERN)
    folders = split_folders(root)
    if ("query" in folders) != ("gallery" in folders):
        missing = ", ".join(s for s in SPLITS if s not in folders)
        raise DataError(f"{root} has a folder {' and '.join(folders)} but none of {missing}; all are needed")
    rows, strange = [], []
    for split, folder in (folders or {"": root}).items():
        said = functools.partial(labels_of, pattern, folder)
        for path in walk.once(folder, walk.pictures(folder), said):
            pid, camera = said(path) or ("", "")
            if pid and camera:
                rows.append(Row(path, pid, camera, split, "", path))
                continue
            strange.append(path)
            if split in ("train", ""):
                rows.append(Row(path, "", camera, split, "", path))
    return rows, strange


def labels_of(pattern, folder, path):
    """(pid, camera) that a path says, "" for one that it does not; None when it says neither."""
    match = pattern.search(os.path.relpath(path, folder).replace(os.sep, "/"))
    groups = match.groupdict() if match else {}
    label = groups.get("pid") or "", groups.get("camera") or ""
    return label if any(label) else None


def split_folders(root):
    """{split: its folder, in small or large letters}; what lies beside them is noted as left out."""
    entries = walk.entries(root)
    names = {e.name.lower(): e.name for e in reversed(entries) if e.folder}
    folders = {s: os.path.join(root, names[s]) for s in SPLITS if s in names}
    for entry in entries if folders else ():
        path = os.path.join(root, entry.name)
        if path not in folders.values():
            count = walk.count_below(path) if entry.folder else walk.looks_like_one(entry.name)
            walk.note(walk.ASIDE, path, count)
    return folders


def compiled(pattern):
    """The regular expression; ConfigError when it is none or lacks a group."""
    try:
        expression = re.compile(pattern)
    except re.error as e:
        raise ConfigError(f"config.data.pattern {pattern!r} is no regular expression: {e}") from e
    if missing := {"camera"} - set(expression.groupindex):
        raise ConfigError(
            f"config.data.pattern {pattern!r} has no group {' and '.join(sorted(missing))}; "
            "for example (?P<pid>\\d+)_(?P<camera>\\d+)"
        )
    return expression


LAYOUTS = {
    "folder": Layout(
        "your own data",
        read,
        (),
        ((),),
        "FOLDER/\n    labels.csv with columns path,pid[,camid][,split][,tracklet]\n"
        "or  train/ query/ gallery/ with pictures named PID_cCAMERA....jpg (config.data.pattern)\n"
        "or  pictures of such names anywhere below it, the split being drawn (config.data.train_share)",
        "The three forms are explained in reid_jax/data/loaders/folder.py.",
        {},
        unlabelled=True,
    ),
}
