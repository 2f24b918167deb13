"""What readers of data sets share: the Layout that describes one, listings, split draws, checks.

A reader takes the data set's own folder and Options and returns a Reading with the labels as published
(pid -1 = junk, camid = camera number, from any number on).
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reid_jax.data.loaders import matfile, walk
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError, DataError

PID_CAMERA = re.compile(r"(-?\d+)_c(\d+)")  # 0002_c1s1_000451_03.jpg, 0001_c2_f0046182.jpg


@dataclasses.dataclass(frozen=True)
class Options:
    """Which form and which split of a data set: config.data.variant, .split, .split_seed."""

    variant: str = ""  # one of the Layout's variants, "" for its first
    split: int = 0  # number of a published or drawn split, from 0
    seed: int = 0  # of drawn splits
    csv: str = ""  # the last three: config.data.csv, .pattern, .train_share of the set "folder"
    pattern: str = ""
    train_share: float = 0.5
    everything: bool = False  # config.data.train_on is "all": nobody is left to test on
    on_broken: str = "stop"  # config.data.on_broken, which holds for listed pictures that are missing too


class Reading(NamedTuple):
    """What a reader found."""

    splits: dict  # {"train", "query", "gallery": [Record]}, see Layout.unlabelled
    strange: list  # paths or lines whose names do not follow the layout
    drawn: dict = {}  # what was drawn at random and is no published split: {"train_ids": [...], ...}
    cameras: dict = {}  # {camera number: name} where numbers are not the published names
    kind: str = ""  # image | video where the Layout leaves it open
    protocol: str = ""  # where it is another than the Layout's


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a data set lies on the disk, what its publication counts, and where it comes from."""

    title: str
    read: Callable  # (root, Options) -> Reading
    names: tuple[str, ...]  # usual names of the set's own folder
    parts: tuple[tuple[str, ...], ...]  # alternatives: the entries its folder must have
    tree: str
    source: str  # whom to ask for it
    counts: dict  # {"train images": n, ...} (tracklets count as images), compared with a warning
    terms: str = ""  # under which terms it is given
    kind: str = "image"  # image | video
    protocol: str = "market"  # one of eval.protocols.PROTOCOLS
    variants: tuple[str, ...] = ()  # forms to choose from, the first is the default
    num_splits: int = 1
    distractors: bool = False  # pid 0 is a distractor (gallery only), not a person
    unlabelled: bool = False  # pid -1 in train is somebody unknown, no junk; and there may be no test set
    trains: bool = True  # False: it has no training pictures and is for config.eval.also
    tests: bool = True  # False: it has no query and gallery
    differs: dict = dataclasses.field(default_factory=dict)  # {variant: {field above: its value there}}

    def form(self, variant):
        """The Layout of one of its variants: fields that differ there are replaced."""
        return dataclasses.replace(self, **self.differs.get(variant, {}))

    def check(self, options):
        """Options with the default variant filled in; ConfigError for a variant or split it has not."""
        variant = options.variant or (self.variants[0] if self.variants else "")
        if variant not in (self.variants or ("",)):
            known = ", ".join(map(repr, self.variants)) or "no variants"
            raise ConfigError(f"config.data.variant is {variant!r}; {self.title} has {known}")
        count = self.form(variant).num_splits
        if not 0 <= options.split < count:
            name = f"{self.title} ({variant})" if variant else self.title
            raise ConfigError(f"config.data.split is {options.split}; {name} has splits 0 to {count - 1}")
        return dataclasses.replace(options, variant=variant)


def advice(layout):
    """The expected tree and where the data set comes from."""
    return f"Expected layout ({layout.title}):\n{layout.tree}\n{layout.source}"


def find_root(layout, root):
    """The data set's own folder: root, or one of its usual names under root."""
    if not os.path.isdir(root):
        problem = "is not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"config.data.root: {root} {problem}.\n{advice(layout)}")
    best = None
    for folder in (root, *(os.path.join(root, n) for n in layout.names)):
        for parts in layout.parts:
            missing = [p for p in parts if not os.path.exists(os.path.join(folder, p))]
            if not missing:
                return folder
            if len(missing) < len(parts) and (best is None or len(missing) < len(best[1])):
                best = folder, missing
    if best is None:
        raise DataError(f"config.data.root: {root} does not hold {layout.title}.\n{advice(layout)}")
    raise DataError(f"{best[0]} is incomplete, it has no {' and no '.join(best[1])}.\n{advice(layout)}")


def listing(folder):
    """Sorted names in a folder, but for what `walk` leaves out; DataError when it cannot be read."""
    return [entry.name for entry in walk.entries(folder)]


def image_names(folder):
    """Sorted names of image files in a folder (Thumbs.db and the like are no images)."""
    return [entry.name for entry in walk.entries(folder) if walk.is_picture(folder, entry)]


def read_flat(folder, pattern=PID_CAMERA, camera=None):
    """(records, strange paths) of the images of one folder.

    pattern: groups pid and camera in their names; pid alone where all are of one `camera`.
    """
    records, strange = [], []
    for name in image_names(folder):
        path, match = os.path.join(folder, name), pattern.match(name)
        if match:
            records.append(Record(path, int(match[1]), int(match[2]) if camera is None else camera))
        else:
            strange.append(path)
    return records, strange


def integer_folders(folder, strange):
    """[(number, path)] of the sub-folders in numeric order; other entries are added to `strange`."""
    folders = []
    for name in listing(folder):
        path = os.path.join(folder, name)
        if re.fullmatch(r"-?\d+", name) and os.path.isdir(path):
            folders.append((int(name), path))
        elif os.path.isdir(path) or walk.looks_like_one(name):
            strange.append(path)
    return sorted(folders)


def read_lines(path):
    """Stripped non-empty lines of a text file; DataError when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as f:
            return [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read {path}: {e}") from e


def inside(folder, name, source):
    """FOLDER/NAME; NAME may be absolute. DataError when a listed name leads out of the folder."""
    folder = os.path.normpath(folder)
    path = os.path.normpath(os.path.join(folder, name))
    if os.path.isabs(name) and not below(path, folder) and "\0" not in name:
        real, top = os.path.realpath(os.path.dirname(path)), os.path.realpath(folder)
        if below(os.path.join(real, "x"), top):  # the folder is written without a link, or with another
            path = os.path.normpath(os.path.join(folder, os.path.relpath(real, top), os.path.basename(path)))
    if not below(path, folder):
        raise DataError(f"{source} names {name!r}, which lies outside of {folder}")
    return path


def below(path, folder):
    """Whether a normal path lies in a folder."""
    return path.startswith(folder.rstrip(os.sep) + os.sep) and path != folder


def check_present(paths, folder, options):
    """DataError when listed files are not there, unless they are to be passed over later.

    One directory listing for each folder.
    """
    if options.on_broken != "skip":
        refuse_missing(missing_of(paths), len(paths), folder)


def missing_of(paths):
    """The paths that are not there, folder by folder; links that lead nowhere are not."""
    names = {}
    for path in paths:
        names.setdefault(os.path.dirname(path), set()).add(path)
    missing = []
    for parent, wanted in names.items():
        missing += sorted(wanted - {os.path.join(parent, n) for n in walk.names_in(parent)})
    return missing


def refuse_missing(missing, count, folder):
    """DataError when some of `count` listed images are missing."""
    if missing:
        foreign = any("\udc80" <= c <= "\udcff" for c in missing[0])
        coding = f" ({missing[0]!r} is not UTF-8: perhaps the list was saved in another encoding)"
        raise DataError(
            f"{len(missing)} of {count} listed images are missing under {folder}, first {missing[0]}"
            f"{coding if foreign else ''}: the copy is incomplete; unpack the archive again, or pass over "
            "what is missing (on_broken=skip)"
        )


def read_mat(path, *wanted):
    """Arrays of the named variables of a MATLAB file (before v7.3); DataError when it cannot be read."""
    try:
        variables = matfile.load(path, wanted)
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {path} ({e}); copy the file again") from e
    if missing := [name for name in wanted if name not in variables]:
        raise DataError(f"{path} has no variable {', '.join(map(repr, missing))}; copy the file again")
    return [variables[name] for name in wanted]


def from_one(splits):
    """Splits of a set whose persons count from 0, moved up by one: 0 marks distractors."""
    if all(r.pid for part in ("train", "query") for r in splits.get(part, ())):
        return splits
    return {s: [dataclasses.replace(r, pid=r.pid + (r.pid >= 0)) for r in rs] for s, rs in splits.items()}


def of_ids(records, ids):
    """The records of the given identities."""
    ids = set(ids)
    return [r for r in records if r.pid in ids]


def without_repeats(records, strange):
    """The first record of each (pid, camid), for sets with one picture a camera; others go to `strange`."""
    first = {}
    for r in records:
        if first.setdefault((r.pid, r.camid), r) is not r:
            strange.append(r.path)
    return list(first.values())


def query_and_gallery(records):
    """(first record of each (pid, camid), the others), lists in the order of `records`.

    Where there are no others, all records are gallery: evaluation leaves out a query's own camera anyway.
    """
    query = {}
    gallery = [r for r in records if query.setdefault((r.pid, r.camid), r) is not r]
    return list(query.values()), gallery or list(query.values())


@contextlib.contextmanager
def writing(folder):
    """DataErrors instead of the operating system's while something is written."""
    try:
        yield
    except OSError as e:
        raise DataError(f"cannot write {e.filename or folder}: {e.strerror}; free space or allow it") from e


def both_ways(options):
    """(Options of the draw, whether the views change places): splits 2 n and 2 n + 1 share draw n."""
    return dataclasses.replace(options, split=options.split // 2), options.split % 2 == 1


def draw_half(ids, count, options):
    """(drawn, others): `count` of the sorted ids for training by options' seed and split, and the rest."""
    ids = sorted(ids)
    if not 0 < count < len(ids):
        raise DataError(f"{len(ids)} identities cannot be split into {count} for training and a rest")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((options.seed, options.split))))
    chosen = {ids[i] for i in rng.permutation(len(ids))[:count]}
    return sorted(chosen), [i for i in ids if i not in chosen]
