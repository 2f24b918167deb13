"""Data sets by name: joins them, hides what a method must not know, holds out validation identities."""

import dataclasses
import json
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reid_jax import places
from reid_jax.config import choice, split_label
from reid_jax.data import attributes, clips, generated, points, styles, test_sets, tfds_sets, union
from reid_jax.data.folders import NAMES, load_folder, unknown_name
from reid_jax.data.loaders import LAYOUTS, walk
from reid_jax.data.loaders.common import PID_CAMERA, Options, advice, query_and_gallery
from reid_jax.data.loaders.labels import LIMIT
from reid_jax.data.records import Record
from reid_jax.data.rows import hide
from reid_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)
SYNTHETIC = re.compile("synthetic([2-9]?)")  # names of synthetic sets that are joined


def load(data, workdir, seed=0, labels="all", also="", cameras=True):
    """The Dataset that a config's `data` section names.

    workdir: where "synthetic" puts its pictures (WORKDIR/data) when data.root is empty. seed: config.seed,
    for the order of hidden rows. labels: whose identities the method may read, "all" | "source" (not those of
    data.target, nor those of a single set) | "none". also: config.eval.also. cameras: whether it may read by
    which cameras hidden rows are. Errors: ConfigError for an unknown name, DataError for a folder that cannot
    be used.
    """
    choice("labels", labels, ("all", "source", "none"))
    choice("data.train_on", data.train_on, ("train", "all"))
    dataset = read(data, workdir, labels)
    more = test_sets.load(also, data, lambda name: load_synthetic(data, workdir, name))
    dataset = dataclasses.replace(dataset, also=(*dataset.also, *more))
    save_drawn(dataset, workdir)
    dataset = with_tables(dataset, data)
    if data.split_tracklets:
        dataset = cut(dataset, data.split_tracklets)
    dataset = without_hidden(dataset, data, seed, labels, cameras)
    if data.val_ids:
        dataset = hold_out(dataset, data.val_ids)  # the same identities whatever the run's seed
    if data.styles:
        dataset = styles.add(dataset, data.styles)
    if data.generated:
        dataset = generated.add(dataset, data.generated)
    dataset = with_domains(dataset, data)
    check_train(dataset, data, cameras or labels != "none")
    return dataset


def with_tables(dataset, data):
    """The Dataset with the body points and attributes that data.points and data.attributes name."""
    if data.points:
        dataset = points.attach(dataset, data)
    return attributes.attach(dataset, data) if data.attributes else dataset


def read(data, workdir, labels="all"):
    """The Dataset that data.name, .root and .source name, as it is; labels: see `load`."""
    if choice("data.source", data.source, ("folder", "tfds")) == "tfds":
        return load_built(data, labels)
    if data.name == "synthetic":
        return load_synthetic(data, workdir)
    if "+" in data.name:
        return load_union(data, workdir, labels)
    if not data.root and data.name in LAYOUTS:
        layout = LAYOUTS[data.name]
        raise DataError(
            f"config.data.root is empty: where is {layout.title}? Set --config.data.root=FOLDER.\n"
            + advice(layout)
        )
    return load_folder(data.name, data.root, reader_options(data), unlabelled=labels != "all")


def without_hidden(dataset, data, seed, labels, cameras=True):
    """The Dataset without what the method must not know of its training rows, see rows.hide."""
    sets = data.name.split("+")
    if data.target:
        union.chosen_set(sets, data.target, "target")
        if labels == "none" and len(sets) > 1:
            raise ConfigError(
                f"config.data.target is {data.target!r}, but the method learns without any identities: name "
                "that set alone in config.data.name, and leave config.data.target empty"
            )
    elif labels == "source" and len(sets) > 1:
        raise ConfigError(
            f"config.data.name is {data.name!r}: which set is to be adapted to, without its identities? Set "
            "config.data.target to it"
        )
    single = len(sets) == 1
    if labels == "none" or (single and (data.target or labels == "source")):
        start = 0
    elif data.target:
        start = next(i for i, r in enumerate(dataset.train) if r.domain == len(sets) - 1)
    else:
        return dataset
    if not start and labels == "all":
        raise ConfigError(
            f"config.data.target is {data.target!r}, and the method learns from identities only: join a set "
            f"that it may learn from, as in config.data.name=dukemtmc+{data.target}"
        )
    return hide(dataset, start, seed, cameras)


def with_domains(dataset, data):
    """The Dataset with domains as data.domains says."""
    by = choice("data.domains", data.domains, ("set", "camera", "modality"))
    if by == "set":
        return dataset
    of, names = list(range(len(dataset.camera_names))), dataset.camera_names
    if by == "modality":
        of, names = [int("infrared" in name) for name in dataset.camera_names], ("visible", "infrared")
        if len(set(of)) == 1:
            raise ConfigError(
                f"config.data.domains is 'modality', but {dataset.name} has no infrared cameras beside "
                "visible ones: leave it at 'set'"
            )
    splits = {
        split: tuple(dataclasses.replace(r, domain=of[r.camid]) for r in getattr(dataset, split))
        for split in ("train", "query", "gallery", "val_query", "val_gallery")
    }
    return dataclasses.replace(dataset, domain_names=names, **splits)


def reader_options(data):
    """What the readers want to know of a config's `data` section."""
    settings = data.variant, data.split, data.split_seed, data.csv, data.pattern, data.train_share
    return Options(*settings, everything=data.train_on == "all", on_broken=data.on_broken)


def load_union(data, workdir, labels="all"):
    """The sets that data.name joins by "+", merged, data.target being the last; see reid_jax.data.union.

    Of synthetic sets, synthetic+synthetic2, each has people and cameras of its own.
    """
    names = union.names(data.name)
    if all(SYNTHETIC.fullmatch(name) for name in names):
        return merged(data, names, {name: load_synthetic(data, workdir, name) for name in names})
    for name in names:
        if SYNTHETIC.fullmatch(name):
            raise ConfigError(
                f"config.data.name is {data.name!r}: synthetic sets are joined with each other only"
            )
        if name not in LAYOUTS:
            raise ConfigError(unknown_name(name))
    if data.target:
        union.chosen_set(names, data.target, "target")
    for tested in union.tested(names, data):
        union.check_overlap(names, tested, data.target)
    roots = union.per_set(data.root, len(names), ",", "root")
    if "" in roots:
        raise DataError(
            "config.data.root is empty: set --config.data.root=ROOT1,ROOT2, a folder for each data set in "
            "the order of config.data.name, or one folder that holds them all"
        )
    variants = union.per_set(data.variant, len(names), "+", "variant")
    sets = {}
    for name, root, variant in zip(names, roots, variants, strict=True):
        options = dataclasses.replace(reader_options(data), variant=variant)
        if LAYOUTS[name].form(variant).num_splits == 1:
            options = dataclasses.replace(options, split=0)  # data.split is for the sets that have several
        unlabelled = labels == "none" or name == data.target
        sets[name] = load_folder(name, root, options, unlabelled=unlabelled)
    return merged(data, names, sets)


def merged(data, names, sets):
    """The Dataset of sets {name: Dataset} as data.test and data.target say."""
    order = sorted(names, key=lambda name: name == data.target)  # what is hidden comes last
    test, *more = map(order.index, union.tested(names, data))
    joined = union.merge([sets[name] for name in order], test, more)
    return dataclasses.replace(joined, name=data.name)


def load_synthetic(data, workdir, name="synthetic"):
    """Generates (or finds again) the synthetic set and loads it; that of number N has a seed of its own."""
    from reid_jax.data import synthetic

    tree, root = data.synthetic, data.root or os.path.join(workdir, "data")
    settings = dict(tree.items()) if hasattr(tree, "items") else dict(vars(tree))
    if number := SYNTHETIC.fullmatch(name)[1]:
        settings["seed"] += 1000 * (int(number) - 1)  # runs of neighbouring seeds share no people
        settings["style"] += (int(number) - 1) * (settings["style"] > 0)
        root = os.path.join(root, name)
    folder, options = synthetic.generate(root, **settings), Options(everything=data.train_on == "all")
    return dataclasses.replace(read_synthetic(folder, options), name=name)


def read_synthetic(root, options=None):
    """Loads a synthetic set from its own folder, like the real one that its kind imitates."""
    from reid_jax.data import synthetic

    kind = synthetic.stored_kind(root) or "image"
    dataset = load_folder(synthetic.layout_of(kind), root, options, check_counts=False)
    names = synthetic.stored_camera_names(root) or dataset.camera_names
    protocol = "market" if kind == "lowlight" else dataset.protocol  # its gallery has every camera
    about = {"name": "synthetic", "domain_names": ("synthetic",), "camera_names": names, "protocol": protocol}
    return dataclasses.replace(dataset, **about)


def load_built(data, labels="all"):
    """The set that `python -m reid_jax.data build` wrote to data.root; labels: see `load`."""
    if data.train_on == "all":
        raise ConfigError("config.data.train_on=all needs config.data.source=folder")
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
    dataset = tfds_sets.load(data.root, data.name, options)
    return dataset if labels != "all" else labelled_only(dataset)


def labelled_only(dataset):
    """The Dataset without training pictures of unknown people; DataError when none is left."""
    known = tuple(r for r in dataset.train if r.pid >= 0)
    if not known:
        raise DataError(
            f"{dataset.root}: nobody is known on the {len(dataset.train)} training pictures, and this method "
            "learns from identities"
        )
    if len(known) < len(dataset.train):
        count = len(dataset.train) - len(known)
        log.warning("%s: %d training pictures of unknown people are left out", dataset.name, count)
    return dataclasses.replace(dataset, train=known)


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


class Source(NamedTuple):
    """Images to embed: where they come from, and the records of each split."""

    label: str
    root: str
    splits: dict  # {"query": records, "gallery": records}, {"train": ...} or {"images": ...}
    protocol: str = "market"  # the data set's own
    name: str = ""  # of a public set in its own layout, whose cameras are always numbered alike


def open_source(text, splits=("query", "gallery"), on_broken="stop"):
    """Source of 'NAME:ROOT', a data set in its layout, of 'tfds:FOLDER', a built one, or of a folder of
    pictures; 'LABEL=' may precede.

    A folder is read with everything below it, as one split "images"; names like Market-1501's give identity
    and camera, others pid -1 and camera 0. on_broken: "skip" keeps listed pictures that are missing, to be
    left out later. Raises DataError or ConfigError naming what is wrong.
    """
    label, address = split_label(text)
    name, _, root = address.partition(":")
    if name in (*LAYOUTS, "tfds") and root:
        wanted = dict(options=Options(on_broken=on_broken), unlabelled=True, needed=tuple(splits))
        dataset = tfds_sets.load(root) if name == "tfds" else load_folder(name, root, **wanted)
        records = {s: getattr(dataset, s) for s in splits}
        public = name if name in LAYOUTS and not LAYOUTS[name].unlabelled else ""
        return Source(label or name, dataset.root, records, dataset.protocol, public)
    if "://" in address or address.startswith("~"):
        address = places.local(address, "the source")
    if not os.path.isdir(address):
        raise DataError(
            f"{address} is neither a folder nor NAME:FOLDER with NAME one of {', '.join(LAYOUTS)}; "
            "for example market1501:/data/Market-1501-v15.09.15"
        )
    return Source(label or os.path.basename(os.path.abspath(address)), address, {"images": pictures(address)})


def pictures(root):
    """Records of all pictures below a folder, in its order; what is left out of them is told in the log."""
    root = os.path.abspath(root)
    with walk.noting() as left:
        paths = walk.once(root, walk.pictures(root), labelled)
    if text := walk.told(left, walk.PICTURES, root):
        log.warning("%s: pictures that are left out: %s", root, text)
    if not paths:
        raise DataError(f"{root} holds no picture ({', '.join(walk.IMAGES)})")
    return tuple(Record(path, *(labelled(path) or (-1, 0))) for path in paths)


def labelled(path):
    """(identity, camera) that a name like Market-1501's gives, None for another; numbers fit into arrays."""
    match = PID_CAMERA.match(os.path.basename(path))
    pid, camera = (int(match[1]), int(match[2])) if match else (0, 0)
    return (pid, camera) if match and abs(pid) < LIMIT and camera < 2**31 else None


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
    Held-out pids become 1 + their training label (0 would be a distractor); the remaining train pids are
    relabelled 0..P-1 again. Rows without identity stay. ConfigError when no training identity would remain,
    or none is known.
    """
    total = dataset.num_train_pids
    if not total:
        raise ConfigError(
            f"config.data.val_ids is {count}, but it picks identities, and those of {dataset.name} are "
            "hidden from this method: set it to 0"
        )
    if not 0 < count < total:
        raise ConfigError(f"config.data.val_ids is {count}; {dataset.name} has {total} training identities")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, total))))
    held = set(rng.permutation(total)[:count].tolist())
    remaining = [p for p in range(total) if p not in held]
    left = {-1: -1} | {p: i for i, p in enumerate(remaining)}
    moved = [dataclasses.replace(r, pid=r.pid + 1) for r in dataset.train if r.pid in held]
    query, gallery = query_and_gallery(moved)
    train = tuple(dataclasses.replace(r, pid=left[r.pid]) for r in dataset.train if r.pid in left)
    val = {"val_query": tuple(query), "val_gallery": tuple(gallery)}
    table = None if dataset.attributes is None else dataset.attributes[remaining]
    return dataclasses.replace(dataset, train=train, attributes=table, **val)


def check_train(dataset, data, cameras=True):
    """Errors and warnings on a training set that the batch shape or the method cannot use well.

    cameras: whether the method may know by which cameras all rows are.
    """
    total, unlabelled = dataset.num_train_pids, sum(r.pid < 0 for r in dataset.train)
    ids = (data.source_ids if unlabelled else 0) or data.ids
    if not total and data.distinct_ids and unlabelled < data.ids:
        raise DataError(
            f"{dataset.name} has {unlabelled} training pictures of unknown people, which cannot make the "
            f"{data.ids} clusters of a batch: lower config.data.ids"
        )
    if total and data.distinct_ids and total < ids:
        raise DataError(
            f"{dataset.name} has {total} training identities, fewer than the {ids} distinct ones of a "
            "batch: lower config.data.ids (or config.data.val_ids)"
        )
    if cameras and len({r.camid for r in dataset.train}) < 2:
        log.warning(
            "%s: all training images come from one camera; methods that compare cameras cannot learn "
            "anything from it",
            dataset.name,
        )
    single = sum(n == 1 for n in Counter(r.pid for r in dataset.train if r.pid >= 0).values())
    if single and data.instances > 1:
        log.warning(
            "%s: %d of %d training identities have a single image; batches repeat it %d times",
            dataset.name,
            single,
            total,
            data.instances,
        )
