"""SOURCEs of pictures for a gallery: which pictures one names, and what is known of each."""

import csv
import os
import re

from reid_jax.data.loaders import labels, walk
from reid_jax.errors import ConfigError, DataError

COLUMNS = {"path": "path", "person": "person", "pid": "person", "camera": "camera", "camid": "camera"}
COLUMNS |= {"time": "time", "tracklet": "tracklet"}


def pictures_of(args):
    """(absolute paths, {field: list of values}) of all SOURCEs."""
    rows = [row for source in args.sources for row in rows_of(source)]
    if not rows:
        raise DataError(f"there is no picture in {', '.join(args.sources)}")
    paths = [row["path"] for row in rows]
    columns = {}
    for field in ("camera", "person", "tracklet", "time"):
        fixed, rule = getattr(args, field), getattr(args, f"{field}_from")
        if fixed and rule:
            raise ConfigError(f"--{field} and --{field}-from cannot both be given")
        listed = [row.get(field) or None for row in rows]
        columns[field] = [
            v or fixed or (rule and derived(rule, field, row)) for v, row in zip(listed, rows, strict=True)
        ]
    return paths, columns


def rows_of(source):
    """Dicts of path, its part below SOURCE, and what is known of it: of a picture, a folder or a table."""
    if os.path.isdir(source):
        paths = [path for path, _ in walk.pictures(source)]
        return [{"path": os.path.abspath(p), "below": os.path.relpath(p, source)} for p in paths]
    if not os.path.exists(source):
        raise DataError(f"there is no {source}")
    if not source.lower().endswith(".csv"):
        return [{"path": os.path.abspath(source), "below": source}]
    folder = os.path.dirname(os.path.abspath(source))
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{source} is no table: {error}") from error
    if not table or "path" not in table[0]:
        raise DataError(f"{source} needs a line of column names, path among them, and rows below it")
    rows = [
        {COLUMNS[k]: v for k, v in row.items() if k in COLUMNS and v and _is_known(k, v)} for row in table
    ]
    given = [row.get("path", "") for row in rows]
    return [r | {"path": os.path.join(folder, p), "below": p} for r, p in zip(rows, given, strict=True)]


def _is_known(column, value):
    """Whether a cell tells something: pids of junk (-1) and distractors (0) do not."""
    return column != "pid" or labels.integer(value, powers=False) not in (labels.JUNK, labels.DISTRACTOR)


def derived(rule, field, row):
    """What a rule finds in a path: the folder's name, the file's time, or a regex's first group."""
    path = row["path"]
    if rule == "folder" and field != "time":
        return os.path.basename(os.path.dirname(path))
    if rule == "mtime" and field == "time":
        return os.path.getmtime(path)
    try:
        match = re.search(rule, row["below"].replace(os.sep, "/"))
    except re.error as error:
        raise ConfigError(f"--{field}-from={rule} is no regular expression: {error}") from error
    if match is None:
        raise DataError(f"--{field}-from={rule} finds nothing in {row['below']}")
    return match[field] if field in match.re.groupindex else match[min(1, match.re.groups)]
