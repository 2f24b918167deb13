"""Data sets in their original folders: finds the folder, reads it, checks it, relabels it."""

import dataclasses
import logging
import os

from reid_jax import places
from reid_jax.data.loaders import LAYOUTS, labels, walk
from reid_jax.data.loaders.common import Options, advice, find_root
from reid_jax.data.records import Dataset
from reid_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

NAMES = (*LAYOUTS, "synthetic")


TRAINS, TESTS = ("train",), ("query", "gallery")  # what is needed of a set


def load_folder(name, root, options=None, check_counts=True, unlabelled=False, needed=TRAINS):
    """Dataset from its original layout.

    name: a key of LAYOUTS. root: the data set's own folder or its parent. options: loaders.common.Options.
    unlabelled: whether training pictures of unknown people (pid -1) are wanted. needed: splits of one's own
    pictures that must not be empty; those of public sets are all needed.
    Errors: ConfigError for an unknown name, variant or split; DataError naming the path for a missing, empty
    or incomplete folder. Files with other names than the layout's and counts other than the published ones
    are warned of.
    """
    if name not in LAYOUTS:
        raise ConfigError(unknown_name(name))
    layout = LAYOUTS[name]
    options = layout.check(options or Options())
    layout = layout.form(options.variant)
    root = find_root(layout, os.path.abspath(places.local(root, "config.data.root")))
    reading, left = read(layout, root, options)
    if text := walk.told(left, walk.PICTURES, root):
        log.warning("%s: pictures that are left out: %s", root, text)
    strange = skipped(reading, unlabelled)
    if strange:
        log.warning(
            "%s: %d entries whose names do not follow the layout are skipped: %s%s",
            root,
            len(strange),
            ", ".join(strange[:3]),
            ", ..." if len(strange) > 3 else "",
        )
    splits = clean(layout, root, reading.splits, unlabelled, needed)
    if check_counts:
        compare_counts(layout, splits)
    if options.everything:
        splits = all_train(splits, unlabelled)
    about = {"kind": reading.kind or layout.kind, "protocol": reading.protocol or layout.protocol}
    about["drawn"] = reading.drawn
    return dataclasses.replace(relabel(name, root, splits, reading.cameras), **about)


def read(layout, root, options):
    """(Reading, what is left out of folders, see walk.noting) of a Layout's form in its own folder."""
    with walk.noting() as left:
        try:
            return layout.read(root, options), left
        except DataError as e:
            raise DataError(f"{e}\n{advice(layout)}") from e


def skipped(reading, unlabelled):
    """Entries of unknown names, without those that train as pictures of unknown people."""
    trained = {r.path for r in reading.splits["train"]} if unlabelled else set()
    return [path for path in reading.strange if path not in trained]


def clean(layout, root, splits, unlabelled=False, needed=TRAINS):
    """Drops junk (-1) and, outside the gallery, distractors (0).

    Sets whose ids count from 0 in train keep them: only a 0 that the gallery uses too is a distractor.
    unlabelled, needed: see `load_folder`. DataError for an empty split and for an identity that no array can
    hold.
    """
    cleaned, free = {}, layout.unlabelled
    for r in (r for records in splits.values() for r in records if abs(r.pid) >= labels.LIMIT):
        raise DataError(f"{r.path}: identity {r.pid} is beyond 2**62; number the identities anew")
    for split, records in splits.items():
        lowest = 1 if layout.distractors and split != "gallery" else 0
        lowest = -1 if unlabelled and free and split == "train" else lowest
        cleaned[split] = [r for r in records if r.pid >= lowest]
        dropped = len(records) - len(cleaned[split])
        if dropped and split != "gallery":
            log.warning("%s: %d images of pid -1 or 0 in %s are left out", layout.title, dropped, split)
    may = (free or not layout.tests) and "query" not in needed
    untested = may and not cleaned["query"] and not cleaned["gallery"]
    for split in cleaned:
        untrained = (free or not layout.trains) and split == "train" and "train" not in needed
        if not cleaned[split] and not untrained and not (untested and split != "train"):
            raise DataError(empty(layout, root, split, splits[split]))
    if not any(cleaned.values()):
        raise DataError(empty(layout, root, "train", splits["train"]))
    return cleaned


def empty(layout, root, split, records):
    """What is wrong with a split without usable records."""
    text = f"{root} holds no usable image for {split}"
    if split == "train" and not layout.trains:
        text += (
            f": {layout.title} is for tests alone; train on another set and name it in config.eval.also, as "
            "in LABEL=NAME:ROOT"
        )
    if split != "train" and not layout.tests:
        text += f": {layout.title} has no test of its own; test on another set"
    if split == "train" and layout.unlabelled and records:
        text += (
            f": nobody is known on its {len(records)} pictures, and this method learns from identities; "
            "label them, or train a method that makes its own labels"
        )
    return f"{text}.\n{advice(layout)}"


def all_train(splits, unlabelled):
    """Splits whose pictures all train, every one once; distractors as unknown people, where these train."""
    people = [r for split in ("query", "gallery") for r in splits[split] if r.pid > 0 or split == "query"]
    unknown = [dataclasses.replace(r, pid=-1) for r in splits["gallery"] if r.pid == 0] if unlabelled else []
    train = {(r.path, r.frames): r for r in (*splits["train"], *people, *unknown)}
    return {"train": list(train.values()), "query": [], "gallery": []}


def count(splits):
    """{"train ids": n, "train images": n, ..., "images": n, "cameras": n}; tracklets count as images."""
    counts = {}
    for split, records in splits.items():
        counts[f"{split} ids"] = len({r.pid for r in records if r.pid >= 0})
        counts[f"{split} images"] = len(records)
    everything = [r for records in splits.values() for r in records]
    counts["images"], counts["cameras"] = len(everything), len({r.camid for r in everything})
    return counts


def compare_counts(layout, splits):
    """One warning listing how the counts differ from the published ones."""
    counts = count(splits)
    wrong = [f"{counts[k]} {k} instead of {n}" for k, n in layout.counts.items() if counts[k] != n]
    if wrong:
        log.warning("%s differs from its published counts: %s", layout.title, ", ".join(wrong))


def relabel(name, root, splits, camera_names=None):
    """Dataset with train pids 0..P-1 in sorted order and camids 0..C-1, cameras of train first.

    Unknown people of train (-1) stay. camera_names: {camera number: name} where it is not c1, c2, ...
    """
    pids = {p: i for i, p in enumerate(sorted({r.pid for r in splits["train"]} - {-1}))} | {-1: -1}
    seen = sorted({r.camid for r in splits["train"]})
    others = sorted({r.camid for records in splits.values() for r in records} - set(seen))
    cameras = {c: i for i, c in enumerate(seen + others)}
    test = (
        tuple(dataclasses.replace(r, camid=cameras[r.camid]) for r in splits[split])
        for split in ("query", "gallery")
    )
    return Dataset(
        name,
        root,
        tuple(dataclasses.replace(r, pid=pids[r.pid], camid=cameras[r.camid]) for r in splits["train"]),
        *test,
        tuple(labels.printable((camera_names or {}).get(c, f"c{c}")) for c in cameras),
        domain_names=(name,),
    )


def unknown_name(name):
    """The message on a data set that is not known."""
    return f"config.data.name is {name!r}; it must be one of {', '.join(map(repr, NAMES))}"
