"""One's own pictures: a labels.csv, or the sub-folders train, query and gallery with telling names.

CSV columns: path (below data.root), pid, camid, split (train | query | gallery, may be left out) and
tracklet (may be left out; rows of one tracklet are its frames, in their order). Without a split, identities
are drawn for training and the others tested.
"""

import csv
import os
import re
from typing import NamedTuple

from reid_jax.data.loaders.common import (
    IMAGES,
    Layout,
    Reading,
    check_present,
    draw_half,
    from_one,
    inside,
    of_ids,
    query_and_gallery,
)
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError, DataError

LABELS = "labels.csv"
SPLITS = ("train", "query", "gallery")
COLUMNS = ("path", "pid", "camid", "split", "tracklet")
UNKNOWN = -1  # identity of pictures without one
PATTERN = r"(?:^|/)(?P<pid>-?\d+)_c(?P<camera>\d+)"  # Market-1501's names


class Row(NamedTuple):
    """One picture with labels as written."""

    path: str
    pid: str
    camera: str
    split: str  # "" = to be drawn
    tracklet: str  # "" = none


def read(root, options):
    """Labels from the CSV when there is one, otherwise from the names.

    pids and cameras that are not all integers are numbered from 1 in sorted order; integers keep their
    meaning: -1 is junk and 0, unless train or query use it for a person, a distractor. Training pictures of
    nobody known have pid -1; cameras that are not known count as one.
    """
    path = csv_path(root, options)
    rows, strange = (read_csv(path, root, options), []) if path else read_names(root, options.pattern)
    if not rows:
        return Reading({s: [] for s in SPLITS}, strange)
    pids, _ = numbers([r.pid for r in rows], UNKNOWN)
    camids, cameras = with_unknown(*numbers([r.camera for r in rows], None))
    records = {s: [] for s in (*SPLITS, "")}
    tracklets = {}
    for row, pid, camid in zip(rows, pids, camids, strict=True):
        key = (row.split, row.tracklet, pid, camid) if row.tracklet else row.path
        tracklets.setdefault(key, (row.split, pid, camid, []))[3].append(row.path)
    video = any(row.tracklet for row in rows)
    for split, pid, camid, frames in tracklets.values():
        records[split].append(Record(frames[0], pid, camid, tuple(frames) if video else ()))
    undecided, drawn = records.pop(""), {}
    unknown = [r for r in undecided if r.pid == UNKNOWN]
    if len(unknown) < len(undecided):
        records, drawn = draw(from_one({"query": undecided})["query"], options)
    records["train"] += unknown
    return Reading(from_one(records), strange, drawn, cameras, "video" if video else "image")


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


def numbers(labels, empty):
    """(numbers of labels, {number: name} where these are not the labels themselves); empty: that of ""."""
    if all(re.fullmatch(r"-?\d+", label) for label in labels if label):
        return [int(label) if label else empty for label in labels], {}
    names = sorted(set(labels) - {"", "-1"})
    number = {name: i for i, name in enumerate(names, 1)} | {"": empty, "-1": -1}
    return [number[label] for label in labels], dict(enumerate(names, 1))


def with_unknown(camids, names):
    """(camids, names) as of `numbers` where cameras that are not known are one of their own, the last."""
    if None not in camids:
        return camids, names
    last = 1 + max((c for c in camids if c is not None), default=0)
    return [last if c is None else c for c in camids], {**names, last: "unknown"}


# ---- labels.csv -----------------------------------------------------------------------------------------
def csv_path(root, options):
    """The CSV to read, "" for none."""
    if not options.csv:
        path = os.path.join(root, LABELS)
        return path if os.path.exists(path) else ""
    path = os.path.abspath(os.path.expanduser(options.csv))
    if not os.path.isfile(path):
        raise DataError(f"config.data.csv: {path} is no file")
    return path


def read_csv(path, root, options):
    """Rows of a CSV; DataError naming the line of the first fault."""
    rows, lines = [], {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f, strict=True)
            check_columns(path, reader.fieldnames or [])
            for line in reader:
                where = f"{path}, line {reader.line_num}"
                row = parse_line(line, where, root)
                if lines.setdefault(row.path, reader.line_num) != reader.line_num:
                    raise DataError(
                        f"{where}: {line['path']} is on line {lines[row.path]} already; remove one"
                    )
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"cannot read {path}: {e}; it must be a comma-separated file in UTF-8") from e
    if not rows:
        raise DataError(f"{path} has no line below its header {','.join(COLUMNS)}")
    if len({bool(row.tracklet) for row in rows}) > 1:
        raise DataError(f"{path}: some lines have a tracklet and some have none; give all or none")
    check_present([row.path for row in rows], root, options)
    return rows


def check_columns(path, columns):
    """DataError for columns that are missing, unknown or double."""
    missing = [c for c in COLUMNS[:3] if c not in columns]
    unknown = [c for c in columns if c not in COLUMNS]
    if missing or unknown or len(set(columns)) < len(columns):
        raise DataError(
            f"{path}, line 1: columns are {', '.join(map(repr, columns)) or 'missing'}; "
            "path, pid and camid are needed, split and tracklet may follow, each once and nothing else"
        )


def parse_line(line, where, root):
    """Row of one line."""
    if None in line or None in line.values():
        raise DataError(f"{where} has more or fewer fields than the header; quote fields that hold a comma")
    line = {k: v.strip() for k, v in line.items()}
    split = line.get("split", "")
    if "split" in line and split not in SPLITS:
        raise DataError(f"{where}: split is {split!r}; it must be one of {', '.join(SPLITS)}")
    tested = split in ("query", "gallery")  # who trains may be unknown
    empty = [c for c in COLUMNS[: 3 if tested else 1] if not line[c]]
    if empty:
        raise DataError(f"{where}: {' and '.join(empty)} is empty")
    if line["pid"] and not line["camid"]:
        raise DataError(f"{where}: camid is empty")
    path = inside(root, line["path"], where)
    return Row(path, line["pid"], line["camid"], split, line.get("tracklet", ""))


# ---- names ----------------------------------------------------------------------------------------------
def read_names(root, pattern):
    """(rows, strange paths) of the pictures below train/, query/ and gallery/, or below root to be drawn.

    Pictures of train and those to be drawn whose names do not tell are rows too, of somebody unknown.
    """
    pattern = compiled(pattern or PATTERN)
    present = [s for s in SPLITS if os.path.isdir(os.path.join(root, s))]
    if ("query" in present) != ("gallery" in present):
        missing = ", ".join(s for s in SPLITS if s not in present)
        raise DataError(f"{root} has a folder {' and '.join(present)} but none of {missing}; all are needed")
    rows, strange = [], []
    for split in present or [""]:
        folder = os.path.join(root, split)
        for path in pictures(folder):
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            match = pattern.search(name)
            pid, camera = label_of(match, "pid"), label_of(match, "camera")
            if pid and camera:
                rows.append(Row(path, pid, camera, split, ""))
                continue
            strange.append(path)
            if split in ("train", ""):
                rows.append(Row(path, "", camera, split, ""))
    return rows, strange


def label_of(match, group):
    """What a group of the pattern says of a name, "" where it says nothing."""
    return (match.groupdict().get(group) if match else "") or ""


def compiled(pattern):
    """The regular expression; ConfigError when it is none or lacks a group."""
    try:
        found = re.compile(pattern)
    except re.error as e:
        raise ConfigError(f"config.data.pattern {pattern!r} is no regular expression: {e}") from e
    if missing := {"camera"} - set(found.groupindex):
        raise ConfigError(
            f"config.data.pattern {pattern!r} has no group {' and '.join(sorted(missing))}; "
            "for example (?P<pid>\\d+)_(?P<camera>\\d+)"
        )
    return found


def pictures(folder):
    """Paths of all pictures below a folder, sorted within each folder; DataError when one cannot be read."""

    def stop(error):
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for parent, inner, names in os.walk(folder, onerror=stop):
        inner.sort()
        for name in sorted(names):
            if name.lower().endswith(IMAGES) and name[0] != ".":
                yield os.path.join(parent, name)


LAYOUTS = {
    "folder": Layout(
        "your own data",
        read,
        (),
        ((),),
        "FOLDER/\n    labels.csv with columns path,pid,camid[,split][,tracklet]\n"
        "or  train/ query/ gallery/ with pictures named PID_cCAMERA....jpg (config.data.pattern)\n"
        "or  pictures of such names anywhere below it, the split being drawn (config.data.train_share)",
        "The three forms are explained in reid_jax/data/loaders/folder.py.",
        {},
        unlabelled=True,
    ),
}
