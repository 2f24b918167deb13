"""Pictures that are named one by one, and cameras by the names of folders or files."""

import dataclasses
import os
import re

from reid_jax import places
from reid_jax.data.datasets import Source, labelled
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError, DataError

_LIST = ".txt"


def are_files(sources):
    """Whether sources name files, pictures or .txt lists of them."""
    return all(map(_is_file, sources))


def _is_file(source):
    try:
        return os.path.isfile(places.local(source, "the source"))
    except ConfigError:  # an address, or a data set's NAME:FOLDER
        return False


def open_files(sources):
    """datasets.Source of pictures and .txt lists of them, one path a line, relative to the list's folder.

    Pictures come in the order they are named. DataError for an empty list.
    """
    paths = []
    for source in (places.local(s, "the source") for s in sources):
        paths += _of_list(source) if source.lower().endswith(_LIST) else [os.path.abspath(source)]
    root = os.path.commonpath([os.path.dirname(p) for p in paths])
    records = tuple(Record(path, *(labelled(path) or (-1, 0))) for path in paths)
    label = os.path.basename(sources[0]) if len(sources) == 1 else f"{len(records)} pictures"
    return Source(label, root, {"images": records})


def _of_list(path):
    """Absolute paths of a list."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read as a list of pictures, a path a line ({e})") from e
    folder = os.path.dirname(os.path.abspath(path))
    paths = [os.path.join(folder, os.path.expanduser(line)) for line in lines if line and line[0] != "#"]
    if not paths:
        raise DataError(f"{path} names no picture; write a path a line")
    return paths


def with_cameras(records, root, rule):
    """(records with camids, {camera's name: camid}) by "folder" or a regular expression on the path.

    Names that are all whole numbers are the camids; others are numbered from 0 in sorted order. ConfigError
    for an expression that cannot be, DataError naming a picture it does not match.
    """
    names = [_name(os.path.relpath(r.path, root), r.path, rule) for r in records]
    different = sorted(set(names))
    numbers = all(name.isascii() and name.isdigit() and int(name) < 2**31 for name in different)
    cameras = {name: int(name) if numbers else i for i, name in enumerate(different)}
    changed = (dataclasses.replace(r, camid=cameras[n]) for r, n in zip(records, names, strict=True))
    return tuple(changed), cameras


def _name(path, whole, rule):
    """The camera's name of a picture."""
    if rule == "folder":
        return os.path.basename(os.path.dirname(whole))
    try:
        pattern = re.compile(rule)
    except re.error as e:
        raise ConfigError(f"--camera-from={rule} is no regular expression ({e})") from e
    match = pattern.search(path.replace(os.sep, "/"))
    if match is None:
        raise DataError(f"{path}: --camera-from={rule} does not match; every picture needs a camera")
    camera = match["camera"] if "camera" in pattern.groupindex else match[min(1, pattern.groups)]
    return camera or ""
