"""Data sets by name: finds the folder, checks it, relabels, holds out validation identities."""

import dataclasses
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reid_jax.config import choice, split_label
from reid_jax.data import clips, tfds_sets, union
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.loaders.common import (
    IMAGES,
    PID_CAMERA,
    Options,
    advice,
    find_root,
    query_and_gallery,
)
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

NAMES = (*LAYOUTS, "synthetic")


def load(data, workdir, seed=0):
    """The Dataset that a config's `data` section names.

    workdir: where "synthetic" puts its pictures (WORKDIR/data) when data.root is empty. seed: of the draw of
    data.val_ids. Errors: ConfigError for an unknown name, DataError for a folder that cannot be used.
    """
    if choice("data.source", data.source, ("folder", "tfds")) == "tfds":
        dataset = load_built(data)
    elif data.name == "synthetic":
        dataset = load_synthetic(data, workdir)
    elif "+" in data.name:
        dataset = load_union(data)
    elif not data.root and data.name in LAYOUTS:
        layout = LAYOUTS[data.name]
        raise DataError(
            f"config.data.root is empty: where is {layout.title}? Set --config.data.root=FOLDER.\n"
            + advice(layout)
        )
    else:
        dataset = load_folder(data.name, data.root, reader_options(data))
    save_drawn(dataset, workdir)
    if data.split_tracklets:
        dataset = cut(dataset, data.split_tracklets)
    if data.val_ids:
        dataset = hold_out(dataset, data.val_ids, seed)
    check_train(dataset, data)
    return dataset


def reader_options(data):
    """What the readers want to know of a config's `data` section."""
    return Options(data.variant, data.split, data.split_seed, data.csv, data.pattern, data.train_share)


def load_union(data):
    """The sets that data.name joins by "+", merged; see reid_jax.data.union."""
    names = union.names(data.name)
    for name in names:
        if name not in LAYOUTS:
            raise ConfigError(unknown_name(name))
    test = union.test_index(names, data.test)
    union.check_overlap(names, names[test])
    roots = union.per_set(data.root, len(names), ",", "root")
    if "" in roots:
        raise DataError(
            "config.data.root is empty: set --config.data.root=ROOT1,ROOT2, a folder for each data set in "
            "the order of config.data.name, or one folder that holds them all"
        )
    variants = union.per_set(data.variant, len(names), "+", "variant")
    found = []
    for name, root, variant in zip(names, roots, variants, strict=True):
        options = dataclasses.replace(reader_options(data), variant=variant)
        if LAYOUTS[name].form(variant).num_splits == 1:
            options = dataclasses.replace(options, split=0)  # data.split is for the sets that have several
        found.append(load_folder(name, root, options))
    return union.merge(found, test)


def load_synthetic(data, workdir):
    """Generates (or finds again) the synthetic set and loads it."""
    from reid_jax.data import synthetic

    tree = data.synthetic
    settings = dict(tree.items()) if hasattr(tree, "items") else dict(vars(tree))
    return read_synthetic(synthetic.generate(data.root or os.path.join(workdir, "data"), **settings))


def read_synthetic(root):
    """Loads a synthetic set from its own folder, like the real one that its kind imitates."""
    from reid_jax.data import synthetic

    kind = synthetic.stored_kind(root) or "image"
    dataset = load_folder(synthetic.layout_of(kind), root, check_counts=False)
    names = synthetic.stored_camera_names(root) or dataset.camera_names
    protocol = "market" if kind == "lowlight" else dataset.protocol  # its gallery has every camera
    return dataclasses.replace(dataset, name="synthetic", camera_names=names, protocol=protocol)


def load_built(data):
    """The set that `python -m reid_jax.data build` wrote to data.root."""
    if "+" in data.name:
        raise ConfigError(f"config.data.name is {data.name!r}: joined sets need config.data.source=folder")
    if data.name not in NAMES:
        raise ConfigError(unknown_name(data.name))
    if not data.root:
        raise DataError(
            "config.data.source is 'tfds' and config.data.root empty: where is the built set? Write it with "
            f"python -m reid_jax.data build {data.name} --root FOLDER --output BUILT, then set "
            "--config.data.root=BUILT"
        )
    layout = LAYOUTS.get(data.name)
    options = layout.check(reader_options(data)) if layout else Options()
    return tfds_sets.load(data.root, data.name, options)


def unknown_name(name):
    """The message on a data set that is not known."""
    return f"config.data.name is {name!r}; it must be one of {', '.join(map(repr, NAMES))}"


def save_drawn(dataset, workdir):
    """Writes a split that was drawn at random to WORKDIR/split.json."""
    if not dataset.drawn or not workdir:
        return
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, "split.json")
    text = json.dumps({"name": dataset.name, **dataset.drawn})
    if os.path.exists(path) and Path(path).read_text(errors="replace") == text:
        return  # written by an earlier start, or by another process of this one
    with open(path, "w") as f:
        f.write(text)
    log.info("%s has no published split of this kind; the drawn one is in %s", dataset.name, path)


def load_folder(name, root, options=None, check_counts=True):
    """Dataset from its original layout.

    name: a key of LAYOUTS. root: the data set's own folder or its parent. options: loaders.common.Options.
    Errors: ConfigError for an unknown name, variant or split; DataError naming the path for a missing, empty
    or incomplete folder. Files with other names than the layout's and counts other than the published ones
    are warned of.
    """
    if name not in LAYOUTS:
        raise ConfigError(unknown_name(name))
    layout = LAYOUTS[name]
    options = layout.check(options or Options())
    root = find_root(layout, os.path.abspath(os.path.expanduser(root)))
    layout = layout.form(options.variant)
    try:
        found = layout.read(root, options)
    except DataError as e:
        raise DataError(f"{e}\n{advice(layout)}") from e
    if found.strange:
        log.warning(
            "%s: %d entries whose names do not follow the layout are skipped: %s%s",
            root,
            len(found.strange),
            ", ".join(found.strange[:3]),
            ", ..." if len(found.strange) > 3 else "",
        )
    splits = clean(layout, root, found.splits)
    if check_counts:
        compare_counts(layout, splits)
    about = {"kind": found.kind or layout.kind, "protocol": layout.protocol, "drawn": found.drawn}
    return dataclasses.replace(relabel(name, root, splits, found.cameras), **about)


class Source(NamedTuple):
    """Images to embed: where they come from, and the records of each split."""

    label: str
    root: str
    splits: dict  # {"query": records, "gallery": records}, {"train": ...} or {"images": ...}
    protocol: str = "market"  # the data set's own


def open_source(text, splits=("query", "gallery")):
    """Source of 'NAME:ROOT', a data set in its layout, of 'tfds:FOLDER', a built one, or of a folder of
    pictures; 'LABEL=' may precede.

    A folder is read with everything below it, as one split "images"; names like Market-1501's give identity
    and camera, others pid -1 and camera 0. Raises DataError or ConfigError naming what is wrong.
    """
    label, rest = split_label(text)
    name, _, root = rest.partition(":")
    if name in (*LAYOUTS, "tfds") and root:
        dataset = tfds_sets.load(root) if name == "tfds" else load_folder(name, root)
        parts = {s: getattr(dataset, s) for s in splits}
        return Source(label or name, dataset.root, parts, dataset.protocol)
    if not os.path.isdir(rest):
        raise DataError(
            f"{rest} is neither a folder nor NAME:FOLDER with NAME one of {', '.join(LAYOUTS)}; "
            "for example market1501:/data/Market-1501-v15.09.15"
        )
    return Source(label or os.path.basename(os.path.abspath(rest)), rest, {"images": pictures(rest)})


def pictures(root):
    """Records of all pictures below a folder, sorted by path."""
    records = []
    for folder, inside, names in os.walk(os.path.abspath(root)):
        inside.sort()
        for name in sorted(n for n in names if n.lower().endswith(IMAGES) and n[0] != "."):
            match = PID_CAMERA.match(name)
            pid, camera = (int(match[1]), int(match[2])) if match else (-1, 0)
            records.append(Record(os.path.join(folder, name), pid, camera))
    if not records:
        raise DataError(f"{root} holds no picture ({', '.join(IMAGES)})")
    return tuple(records)


def clean(layout, root, splits):
    """Drops junk (-1) everywhere and distractors (0) outside the gallery; DataError for an empty split.

    Sets whose ids count from 0 in train keep them: only a 0 that the gallery uses too is a distractor.
    """
    kept = {}
    for split, records in splits.items():
        lowest = 1 if layout.distractors and split != "gallery" else 0
        kept[split] = [r for r in records if r.pid >= lowest]
        dropped = len(records) - len(kept[split])
        if dropped and split != "gallery":
            log.warning("%s: %d images of pid -1 or 0 in %s are left out", layout.title, dropped, split)
        if not kept[split]:
            raise DataError(f"{root} holds no usable image for {split}.\n{advice(layout)}")
    return kept


def count(splits):
    """{"train ids": n, "train images": n, ..., "images": n, "cameras": n}; tracklets count as images."""
    found = {}
    for split, records in splits.items():
        found[f"{split} ids"] = len({r.pid for r in records})
        found[f"{split} images"] = len(records)
    everything = [r for records in splits.values() for r in records]
    found["images"], found["cameras"] = len(everything), len({r.camid for r in everything})
    return found


def compare_counts(layout, splits):
    """One warning listing how the counts differ from the published ones."""
    found = count(splits)
    wrong = [f"{found[k]} {k} instead of {n}" for k, n in layout.counts.items() if found[k] != n]
    if wrong:
        log.warning("%s differs from its published counts: %s", layout.title, ", ".join(wrong))


def relabel(name, root, splits, camera_names=None):
    """Dataset with train pids 0..P-1 in sorted order and camids 0..C-1, cameras of train first.

    camera_names: {camera number: name} where it is not c1, c2, ...
    """
    pids = {p: i for i, p in enumerate(sorted({r.pid for r in splits["train"]}))}
    own = sorted({r.camid for r in splits["train"]})
    rest = sorted({r.camid for records in splits.values() for r in records} - set(own))
    cameras = {c: i for i, c in enumerate(own + rest)}
    return Dataset(
        name,
        root,
        tuple(Record(r.path, pids[r.pid], cameras[r.camid], r.frames) for r in splits["train"]),
        tuple(Record(r.path, r.pid, cameras[r.camid], r.frames) for r in splits["query"]),
        tuple(Record(r.path, r.pid, cameras[r.camid], r.frames) for r in splits["gallery"]),
        tuple((camera_names or {}).get(c, f"c{c}") for c in cameras),
    )


def cut(dataset, size):
    """Cuts the training tracklets into pieces of `size` frames, the last one with the remainder."""
    if size < 0 or dataset.kind != "video":
        raise ConfigError(f"config.data.split_tracklets is {size}; it is for tracklets and at least 0")
    train = [
        dataclasses.replace(r, path=frames[0], frames=frames)
        for r in dataset.train
        for frames in clips.pieces(r.frames, size)
    ]
    return dataclasses.replace(dataset, train=tuple(train))


def hold_out(dataset, count, seed=0):
    """Moves `count` training identities, drawn by seed, into val_query and val_gallery.

    Query: the first image of each (pid, camid); gallery: the rest, or all of them where there is no rest.
    Held-out pids become 1 + their training
    label (0 would be a distractor); the remaining train pids are relabelled 0..P-1 again. ConfigError when
    no training identity would remain.
    """
    total = dataset.num_train_pids
    if not 0 < count < total:
        raise ConfigError(f"config.data.val_ids is {count}; {dataset.name} has {total} training identities")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, total))))
    held = set(rng.permutation(total)[:count].tolist())
    left = {p: i for i, p in enumerate(p for p in range(total) if p not in held)}
    moved = [dataclasses.replace(r, pid=r.pid + 1) for r in dataset.train if r.pid in held]
    query, gallery = query_and_gallery(moved)
    train = tuple(dataclasses.replace(r, pid=left[r.pid]) for r in dataset.train if r.pid in left)
    val = {"val_query": tuple(query), "val_gallery": tuple(gallery)}
    return dataclasses.replace(dataset, train=train, **val)


def check_train(dataset, data):
    """Errors and warnings on a training set that the batch shape or the method cannot use well."""
    total = dataset.num_train_pids
    if data.distinct_ids and total < data.ids:
        raise DataError(
            f"{dataset.name} has {total} training identities, fewer than the {data.ids} distinct ones of a "
            "batch: lower config.data.ids (or config.data.val_ids)"
        )
    if len({r.camid for r in dataset.train}) < 2:
        log.warning(
            "%s: all training images come from one camera; methods that compare cameras (efl) cannot learn "
            "anything from it",
            dataset.name,
        )
    single = sum(n == 1 for n in Counter(r.pid for r in dataset.train).values())
    if single and data.instances > 1:
        log.warning(
            "%s: %d of %d training identities have a single image; batches repeat it %d times",
            dataset.name,
            single,
            total,
            data.instances,
        )
