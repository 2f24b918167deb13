"""The files of a copy: readable, turned, deep, left out, or several times there."""

import collections
import concurrent.futures
import hashlib
import io
import os
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from reid_jax.data import decode
from reid_jax.data.check.problems import Problem
from reid_jax.data.loaders import walk


class File(NamedTuple):
    """What reading a file gave."""

    path: str
    size: int
    digest: bytes
    error: str = ""  # of a whole one
    turned: bool = False  # by its EXIF orientation
    deep: tuple = ()  # of grey pictures of more than 8 bits: lowest and highest value, the value of white


def read_files(paths, quick, threads, progress):
    """[File] of the paths, in their order."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reads = pool.map(lambda path: read_file(path, quick), paths, chunksize=64)
        return list(tqdm(reads, total=len(paths), unit="file", disable=not progress))


def read_file(path, quick):
    """Reads, hashes and, unless quick, decodes a file."""
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as e:
        return File(path, 0, b"", e.strerror or str(e))
    fields = path, len(data), hashlib.blake2b(data, digest_size=16).digest()
    if not data:
        return File(*fields, "empty")
    turned = decode.orientation(data) != 1
    try:
        return File(*fields, "", turned, () if quick else values(data))
    except Exception as e:  # PIL's plugins raise whatever a damaged byte leads to
        return File(*fields, "no image" if isinstance(e, UnidentifiedImageError) else str(e) or repr(e))


def values(data):
    """File.deep of a picture, which is decoded."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        decode.rgb(image)
        if not decode.is_deep(image):
            return ()
        grey = decode.values_of(image)
        return float(grey.min()), float(grey.max()), decode.span(grey)[1]


def unreadable(files):
    """Files that cannot be read."""
    broken = [f"{f.path} ({f.error})" for f in files if f.error]
    return (
        [Problem("unreadable", f"{len(broken)} of {len(files)} files cannot be read", broken)]
        if broken
        else []
    )


def turned(files):
    """Notes on EXIF orientations."""
    count = sum(f.turned for f in files)
    text = f"{count} pictures have an EXIF orientation: they are turned as a viewer does, as long as "
    return [f"{text}config.data.exif is set"] if count else []


def deep(files):
    """Notes on grey pictures of more than 8 bits."""
    spans = [f.deep for f in files if f.deep]
    if not spans:
        return []
    low, high = min(f[0] for f in spans), max(f[1] for f in spans)
    white = collections.Counter(f"{f[2]:.12g}" for f in spans)
    scales = ", ".join(f"{top} in {n}" for top, n in white.items())
    return [
        f"{len(spans)} pictures have grey values of more than 8 bits, from {low:.6g} to {high:.6g}; white is "
        f"{scales}; one scale for all: config.data.grey=BLACK,WHITE"
    ]


def broken_links(left):
    """Links that lead nowhere."""
    paths = list(left.get(walk.BROKEN, ()))
    return [Problem("link", f"{len(paths)} {walk.BROKEN}", paths)] if paths else []


def left_out(left, root):
    """Notes on what is not read; of other files by their suffixes."""
    reasons = [r for r in left if r not in (walk.BROKEN, walk.OTHER)]
    notes = [f"pictures that are left out: {text}"] if (text := walk.told(left, reasons, root)) else []
    others = collections.Counter(os.path.splitext(p)[1].lower() for p in left.get(walk.OTHER, ()))
    shown = ", ".join(f"{suffix or 'without a suffix'} {n}" for suffix, n in others.most_common(8))
    return notes + ([f"{others.total()} files that are {walk.OTHER}: {shown}"] if others else [])


def duplicates(files, splits):
    """(problems, notes) of identical files under several names.

    A picture in query and gallery with one identity and camera is a note: the rule of evaluation removes it.
    """
    same = collections.defaultdict(list)
    for f in files:
        if f.size:
            same[f.size, f.digest].append(f.path)
    doubled = {path: key for key, paths in same.items() if len(paths) > 1 for path in paths}
    uses = collections.defaultdict(set)  # of a group of identical files: (split, pid, camid)
    for split, records in splits.items():
        for r in records:
            for key in {doubled[p] for p in paths_of(r) if p in doubled}:
                uses[key].add((split, r.pid, r.camid))
    kinds = collections.defaultdict(list)
    for key, labels in uses.items():
        kinds[judge(labels)].append(" = ".join(same[key]))
    problems = [
        Problem("duplicate", f"{len(kinds[text])} groups of identical files {text}", kinds[text])
        for text in (OTHER_IDS, OTHER_SIDE, OTHER_CAMERAS)
        if kinds[text]
    ]
    return problems, [f"{len(kinds[t])} groups of identical files {t}" for t in HARMLESS if kinds[t]]


def paths_of(record):
    """The files of a record."""
    return record.frames or (record.path,)


OTHER_IDS = "with different identities"
OTHER_SIDE = "in train and in test"
OTHER_CAMERAS = "in query and gallery with different cameras"
HARMLESS = ("in query and gallery with one camera (they never match each other)", "within a split")


def judge(labels):
    """What identical files used as {(split, pid, camid)} amount to."""
    splits = {split for split, _, _ in labels}
    if len({pid for split, pid, _ in labels if split != "train"}) > 1:
        return OTHER_IDS
    if len({pid for split, pid, _ in labels if split == "train" and pid >= 0}) > 1:
        return OTHER_IDS
    if "train" in splits and len(splits) > 1:
        return OTHER_SIDE
    if len(splits) > 1:
        return HARMLESS[0] if len({camid for _, _, camid in labels}) == 1 else OTHER_CAMERAS
    return HARMLESS[1]
