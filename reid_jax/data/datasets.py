"""Data sets by name: finds the folder, checks it, relabels, holds out validation identities."""

import dataclasses
import json
import logging
import os
from collections import Counter
from typing import NamedTuple

import numpy as np

from reid_jax.config import split_label
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.loaders.common import IMAGES, PID_CAMERA, Options
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

NAMES = (*LAYOUTS, "synthetic")


def load(data, workdir, seed=0):
    """The Dataset that a config's `data` section names.

    workdir: where "synthetic" puts its pictures (WORKDIR/data) when data.root is empty. seed: of the draw of
    data.val_ids. Errors: ConfigError for an unknown name, DataError for a folder that cannot be used.
    """
    if data.name == "synthetic":
        dataset = load_synthetic(data, workdir)
    elif not data.root and data.name in LAYOUTS:
        layout = LAYOUTS[data.name]
        raise DataError(
            f"config.data.root is empty: where is {layout.title}? Set --config.data.root=FOLDER.\n"
            + advice(layout)
        )
    else:
        options = Options(data.variant, data.split, data.split_seed)
        dataset = load_folder(data.name, data.root, options)
    save_drawn(dataset, workdir)
    if data.val_ids:
        dataset = hold_out(dataset, data.val_ids, seed)
    check_train(dataset, data)
    return dataset


def load_synthetic(data, workdir):
    """Generates (or finds again) the synthetic set and loads it like Market-1501."""
    from reid_jax.data import synthetic

    tree = data.synthetic
    settings = dict(tree.items()) if hasattr(tree, "items") else dict(vars(tree))
    root = synthetic.generate(data.root or os.path.join(workdir, "data"), **settings)
    dataset = load_folder("market1501", root, check_counts=False)
    names = synthetic.stored_camera_names(root) or dataset.camera_names
    return dataclasses.replace(dataset, name="synthetic", camera_names=names)


def save_drawn(dataset, workdir):
    """Writes a split that was drawn at random to WORKDIR/split.json."""
    if not dataset.drawn or not workdir:
        return
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, "split.json")
    with open(path, "w") as f:
        json.dump({"name": dataset.name, **dataset.drawn}, f)
    log.info("%s has no published split of this kind; the drawn one is in %s", dataset.name, path)


def load_folder(name, root, options=None, check_counts=True):
    """Dataset from its original layout.

    name: a key of LAYOUTS. root: the data set's own folder or its parent. options: loaders.common.Options.
    Errors: ConfigError for an unknown name, variant or split; DataError naming the path for a missing, empty
    or incomplete folder. Files with other names than the layout's and counts other than the published ones
    are warned of.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"config.data.name is {name!r}; it must be one of {', '.join(map(repr, NAMES))}")
    layout = LAYOUTS[name]
    options = layout.check(options or Options())
    root = find_root(layout, os.path.abspath(os.path.expanduser(root)))
    try:
        splits, strange, drawn = layout.read(root, options)
    except DataError as e:
        raise DataError(f"{e}\n{advice(layout)}") from e
    if strange:
        log.warning(
            "%s: %d entries whose names do not follow the layout are skipped: %s%s",
            root,
            len(strange),
            ", ".join(strange[:3]),
            ", ..." if len(strange) > 3 else "",
        )
    splits = clean(layout, root, splits)
    if check_counts:
        compare_counts(layout, splits)
    about = {"kind": layout.kind, "protocol": layout.protocol, "drawn": drawn}
    return dataclasses.replace(relabel(name, root, splits), **about)


class Source(NamedTuple):
    """Images to embed: where they come from, and the records of each split."""

    label: str
    root: str
    splits: dict  # {"query": records, "gallery": records}, {"train": ...} or {"images": ...}


def open_source(text, splits=("query", "gallery")):
    """Source of 'NAME:ROOT', a data set in its layout, or of a folder of pictures; 'LABEL=' may precede.

    A folder is read with everything below it, as one split "images"; names like Market-1501's give identity
    and camera, others pid -1 and camera 0. Raises DataError or ConfigError naming what is wrong.
    """
    label, rest = split_label(text)
    name, _, root = rest.partition(":")
    if name in LAYOUTS and root:
        dataset = load_folder(name, root)
        return Source(label or name, dataset.root, {s: getattr(dataset, s) for s in splits})
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


def advice(layout):
    """The expected tree and where the data set comes from."""
    return f"Expected layout ({layout.title}):\n{layout.tree}\n{layout.source}"


def find_root(layout, root):
    """The data set's own folder: root, or one of its usual names under root."""
    if not os.path.isdir(root):
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"config.data.root: {root} {what}.\n{advice(layout)}")
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


def compare_counts(layout, splits):
    """One warning listing how the counts differ from the published ones."""
    found = {}
    for split, records in splits.items():
        found[f"{split} ids"] = len({r.pid for r in records})
        found[f"{split} images"] = len(records)
    everything = [r for records in splits.values() for r in records]
    found["images"], found["cameras"] = len(everything), len({r.camid for r in everything})
    wrong = [f"{found[k]} {k} instead of {n}" for k, n in layout.counts.items() if found[k] != n]
    if wrong:
        log.warning("%s differs from its published counts: %s", layout.title, ", ".join(wrong))


def relabel(name, root, splits):
    """Dataset with train pids 0..P-1 in sorted order and camids 0..C-1, cameras of train first."""
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
        tuple(f"c{c}" for c in cameras),
    )


def hold_out(dataset, count, seed=0):
    """Moves `count` training identities, drawn by seed, into val_query and val_gallery.

    Query: the first image of each (pid, camid); gallery: the rest. Held-out pids become 1 + their training
    label (0 would be a distractor); the remaining train pids are relabelled 0..P-1 again. ConfigError when
    no training identity would remain.
    """
    total = dataset.num_train_pids
    if not 0 < count < total:
        raise ConfigError(f"config.data.val_ids is {count}; {dataset.name} has {total} training identities")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, total))))
    held = set(rng.permutation(total)[:count].tolist())
    left = {p: i for i, p in enumerate(p for p in range(total) if p not in held)}
    query, gallery = {}, []
    for r in dataset.train:
        if r.pid in held:
            moved = dataclasses.replace(r, pid=r.pid + 1)
            if query.setdefault((r.pid, r.camid), moved) is not moved:
                gallery.append(moved)
    train = tuple(dataclasses.replace(r, pid=left[r.pid]) for r in dataset.train if r.pid in left)
    val = {"val_query": tuple(query.values()), "val_gallery": tuple(gallery)}
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
