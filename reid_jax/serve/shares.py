"""Features of many pictures, in blocks that are kept as they are done, by one process or several.

A block is always the same whole batches, so its features are the same bits whichever process computes them:
the file of several processes is that of one. Blocks lie in FILE.parts until the file is whole; a command that
was stopped goes on with those that are missing, with any number of processes.
"""

import hashlib
import json
import logging
import os
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from reid_jax import methods
from reid_jax.data import testable
from reid_jax.errors import ConfigError, DataError, PictureError
from reid_jax.eval import store
from reid_jax.fields import plain
from reid_jax.train import embedding, processes
from reid_jax.train.checkpoint import write_json

log = logging.getLogger(__name__)
BATCHES = 16  # of a block


class Work(NamedTuple):
    """What is to be embedded, and where its blocks lie."""

    run: Any  # restore.Restored
    embedder: Any  # embedding.Embedder
    records: list
    size: int  # records of a block
    folder: str
    foreign: bool  # whether cameras count otherwise than in training

    def place(self, block):
        """The file of a block."""
        return os.path.join(self.folder, f"{block:06d}.npz")

    def block(self, block):
        """The records of a block."""
        return self.records[block * self.size : (block + 1) * self.size]


def features(run, source, output, net="auto", on_broken="stop", progress=False):
    """store.FeatureSet of a datasets.Source by a restore.Restored; None on all processes but the first.

    output: the file that is going to be written, beside which blocks are kept until `done`. on_broken: "stop"
    raises PictureError for a picture that cannot be read, "skip" leaves it out, "nan" makes its row NaN (that
    of a tracklet without a frame that can be read). All processes call this, with the same pictures on a disk
    that they share. ConfigError, DataError and PictureError as of Restored.features.
    """
    work = opened(run, source, output, net, on_broken)
    count = -(-len(work.records) // work.size)
    missing = processes.from_first(lambda: [b for b in range(count) if not os.path.exists(work.place(b))])
    if len(missing) < count:
        log.info("%s: %d of %d blocks are there already", work.folder, count - len(missing), count)
    write(work, missing[processes.parts(len(missing))[jax.process_index()]], on_broken, progress)
    processes.wait()
    return joined(work, source, count, on_broken) if processes.first() else None


def done(output):
    """Takes the blocks away, once the file is written."""
    shutil.rmtree(f"{output}.parts", ignore_errors=True)


def opened(run, source, output, net, on_broken):
    """Work of these arguments; blocks of other work that lie at its place are removed."""
    if net == "all":
        raise ConfigError("one network at a time: auto or a network's name, not 'all'")
    (name,) = methods.choose_net(run.method, net)
    embedder = embedding.Embedder(run.method, name, run.devices)
    records = [r for part in source.splits.values() for r in part]
    if not records:
        raise DataError("there are no images to embed")
    foreign = not source.name or source.name != run.config.data.name
    batch = -(-run.config.eval.batch_size // embedder.multiple) * embedder.multiple
    work = Work(run, embedder, records, BATCHES * batch, f"{output}.parts", foreign)
    key = key_of(work, name, on_broken != "stop")
    if processes.from_first(lambda: begun(work.folder, key)) != key:
        raise DataError(
            f"{processes.me()} has other pictures, another run or another number of devices than process 0: "
            "start all with the same arguments on machines that are alike and share their files"
        )
    return work


def key_of(work, name, tolerant):
    """SHA-256 of all that the blocks depend on, but for what is in the pictures."""
    run = work.run
    total = hashlib.sha256(json.dumps([plain(run.config), int(run.step), name, work.size, tolerant]).encode())
    for r in work.records:
        total.update(f"{r.path}\0{r.camid}\0{len(r.frames)}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def begun(folder, key):
    """The key, which is written into the folder; what was of another key is removed."""
    place = os.path.join(folder, "key.json")
    try:
        with open(place, encoding="utf-8") as file:
            same = json.load(file) == key
    except (OSError, ValueError):
        same = False
    try:
        if not same:
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            write_json(place, key)
    except OSError as e:
        raise DataError(f"cannot write to {folder}: {e.strerror or e}; choose another --output") from e
    return key


def write(work, blocks, on_broken, progress=False):
    """Computes blocks and writes each when it is done."""
    records = [r for b in blocks for r in work.block(b)]
    gone = work.run.broken({"": records}, progress) if on_broken != "stop" else set()
    whole = [testable.without([r], gone) for r in records]
    some = next((kept[0] for kept in whole if kept), None)
    if some is None:  # none can be read: how many numbers a feature has is known to other blocks
        for b in blocks:
            save(work.place(b), np.empty((len(work.block(b)), 0), np.float32), gone)
        return
    seen = [kept[0] if kept else some for kept in whole]  # a stand-in keeps the batches whole
    try:
        absent, first = np.array([not kept for kept in whole]), 0
        for b, rows in zip(blocks, parts_of(work, blocks, seen, progress), strict=True):
            rows[absent[first : first + len(rows)]] = np.nan
            first += len(rows)
            save(work.place(b), rows, gone & set(testable.paths_of(work.block(b))))
    except PictureError as e:
        raise PictureError(f"{e}, or leave out what cannot be read with --on_broken=skip") from e


def parts_of(work, blocks, seen, progress):
    """Yields f32[n,D] of each block; seen: the records of all of them."""
    sizes = [len(work.block(b)) for b in blocks]
    starts = np.cumsum([0, *sizes])
    if work.run.config.data.frames or any(r.frames for r in work.records):
        for start, size in zip(starts, sizes, strict=False):
            part = seen[start : start + size]
            yield embedding.embed_records(
                work.run.config, work.embedder, work.run.state, part, progress, foreign=work.foreign
            )
        return
    waiting, rows = list(sizes), []
    given = work.run.config, work.embedder, work.run.state, seen, progress
    for features in embedding.embed_images(*given, foreign=work.foreign):
        rows.append(features)
        if waiting and sum(map(len, rows)) >= waiting[0]:
            yield np.concatenate(rows)
            waiting, rows = waiting[1:], []


def save(place, rows, gone):
    """Writes a block."""
    store.save_arrays(place, {"feature": rows, "gone": np.array(sorted(gone), np.str_)})


def joined(work, source, count, on_broken):
    """store.FeatureSet of all blocks."""
    rows, gone = [], set()
    for b in range(count):
        try:
            with np.load(work.place(b), allow_pickle=False) as stored:
                rows.append(stored["feature"])
                gone.update(stored["gone"].tolist())
        except Exception as e:  # whatever a damaged byte leads to
            raise DataError(f"{work.place(b)} is damaged ({e}); delete it and run this again") from e
    dim = max(r.shape[1] for r in rows)
    if not dim:
        raise PictureError("none of the pictures can be read")
    rows = [r if r.shape[1] else np.full((len(r), dim), np.nan, np.float32) for r in rows]
    feature_set = embedding.labelled(np.concatenate(rows), source.splits, source.root)
    if on_broken != "skip" or not gone:
        return feature_set
    left = {split: testable.without(records, gone) for split, records in source.splits.items()}
    keep = np.array([bool(testable.without([r], gone)) for r in work.records])
    return embedding.labelled(feature_set.feature[keep], left, source.root)
