"""Data sets by name: finds the folder, checks it, relabels, holds out validation identities."""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable

import numpy as np

from reid_jax.data import folders
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a data set lies on the disk and what its publication counts."""

    title: str
    read: Callable
    names: tuple[str, ...]  # usual names of the set's own folder
    parts: tuple[tuple[str, ...], ...]  # alternatives: the entries its folder must have
    tree: str
    source: str
    counts: dict  # {"train images": n, ...}, compared with a warning


MARKET_TREE = """\
    bounding_box_train/{0}
    query/{0}
    bounding_box_test/{0}"""

LAYOUTS = {
    "market1501": Layout(
        "Market-1501",
        folders.read_market,
        ("Market-1501-v15.09.15", "Market-1501", "market1501", "Market1501"),
        (("bounding_box_train", "query", "bounding_box_test"),),
        "Market-1501-v15.09.15/\n" + MARKET_TREE.format("0002_c1s1_000451_03.jpg"),
        "Ask its authors for a copy: https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
        {
            "train ids": 751,
            "train images": 12936,
            "query ids": 750,
            "query images": 3368,
            "gallery ids": 751,  # 750 and the distractors' 0
            "gallery images": 15913,
            "cameras": 6,
        },
    ),
    "dukemtmc": Layout(
        "DukeMTMC-reID",
        folders.read_market,
        ("DukeMTMC-reID", "dukemtmc-reid", "dukemtmc", "DukeMTMC"),
        (("bounding_box_train", "query", "bounding_box_test"),),
        "DukeMTMC-reID/\n" + MARKET_TREE.format("0001_c2_f0046182.jpg"),
        "Its authors have withdrawn the data set and no longer hand it out: only a copy you already hold, "
        "and are allowed to use, can be loaded. Market-1501 and MSMT17 are the usual replacements.",
        {
            "train ids": 702,
            "train images": 16522,
            "query ids": 702,
            "query images": 2228,
            "gallery ids": 1110,
            "gallery images": 17661,
            "cameras": 8,
        },
    ),
    "msmt17": Layout(
        "MSMT17",
        folders.read_msmt17,
        ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17"),
        tuple(
            (*pair, "list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
            for pair in (("train", "test"), ("mask_train_v2", "mask_test_v2"))
        ),
        "MSMT17_V1/  (MSMT17_V2/: mask_train_v2/ and mask_test_v2/)\n"
        "    train/0000/0000_000_01_0303morning_0015_0.jpg\n"
        "    test/0000/0000_000_01_0303morning_0008_0.jpg\n"
        "    list_train.txt  list_val.txt  list_query.txt  list_gallery.txt",
        "Ask its authors for a copy (a signed agreement is needed): https://www.pkuvmc.com/dataset.html",
        {
            "train ids": 1041,
            "train images": 32621,
            "query ids": 3060,
            "query images": 11659,
            "gallery ids": 3060,
            "gallery images": 82161,
            "cameras": 15,
        },
    ),
    "me_reid": Layout(
        "ME-ReID",
        folders.read_me_reid,
        ("ME-ReID", "ME-ReID-dataset", "me_reid", "me-reid"),
        (("train", "query", "gallery"),),
        "ME-ReID/\n    train/PID/CAMID/NAME.png\n    query/PID/CAMID/NAME.png\n"
        "    gallery/PID/CAMID/NAME.png",
        "Ask its authors for a copy: https://github.com/liuyf21/ME-ReID-dataset",
        {"images": 5908, "cameras": 30},
    ),
}
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
        dataset = load_folder(data.name, data.root)
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


def load_folder(name, root, check_counts=True):
    """Dataset from its original layout.

    name: a key of LAYOUTS. root: the data set's own folder or its parent. Errors: ConfigError for an unknown
    name; DataError naming the path for a missing, empty or incomplete folder. Files with other names than the
    layout's and counts other than the published ones are warned of.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"config.data.name is {name!r}; it must be one of {', '.join(map(repr, NAMES))}")
    layout = LAYOUTS[name]
    root = find_root(layout, os.path.abspath(os.path.expanduser(root)))
    try:
        splits, strange = layout.read(root)
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
    return relabel(name, root, splits)


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
    distractors = layout.read is folders.read_market
    for split, records in splits.items():
        lowest = 1 if distractors and split != "gallery" else 0
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
        tuple(Record(r.path, pids[r.pid], cameras[r.camid]) for r in splits["train"]),
        tuple(Record(r.path, r.pid, cameras[r.camid]) for r in splits["query"]),
        tuple(Record(r.path, r.pid, cameras[r.camid]) for r in splits["gallery"]),
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
            moved = Record(r.path, r.pid + 1, r.camid)
            if query.setdefault((r.pid, r.camid), moved) is not moved:
                gallery.append(moved)
    train = tuple(Record(r.path, left[r.pid], r.camid) for r in dataset.train if r.pid in left)
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
