"""What a loaded data set is: records of train, query and gallery."""

import dataclasses
import hashlib
import os
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image, or one tracklet: absolute path, identity (-1: not to be known) and zero-based camera."""

    path: str  # of the image; of a tracklet its first frame's
    pid: int
    camid: int
    frames: tuple[str, ...] = ()  # a tracklet's frames in order, absolute paths; () for an image
    domain: int = 0  # as config.data.domains says, from 0
    labels: dict = dataclasses.field(default_factory=dict, compare=False)  # {name: number or array}

    def __len__(self):
        """Number of frames, 1 for an image."""
        return len(self.frames) or 1


class TestSet(NamedTuple):
    """Query and gallery of one set and split, with what scoring must know."""

    name: str  # the label that figures are written under; of one split among several LABEL-SPLIT
    query: tuple[Record, ...]
    gallery: tuple[Record, ...]
    protocol: str  # the set's own, see Dataset
    root: str  # that paths are relative to
    label: str = ""  # splits of one set share it
    left_out: tuple[str, ...] = ()  # relative paths of its pictures that cannot be read

    __test__ = False  # for pytest, which takes it for a class of tests


class Truth(NamedTuple):
    """Identities that training must not know; they may rate pseudo labels and do nothing else."""

    pid: np.ndarray  # i32[N] of the unlabelled rows, in their order; -1: nobody knows


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a data set.

    train: first the rows with identities, pids 0..P-1 in sorted order of the original ids and those of a
    joined set side by side; then the rows whose identities are hidden or unknown (pid -1), in random order.
    query, gallery: pids that never collide with a distractor's, which is 0 (gallery only); both are empty
    where there is nobody to test on. camids are 0..C-1
    everywhere and index camera_names, cameras of train first; domains of train are 0..S-1 and index
    domain_names. val_query, val_gallery: identities held out of train (data.val_ids), empty otherwise.
    """

    name: str
    root: str
    train: tuple[Record, ...]
    query: tuple[Record, ...]
    gallery: tuple[Record, ...]
    camera_names: tuple[str, ...]
    val_query: tuple[Record, ...] = ()
    val_gallery: tuple[Record, ...] = ()
    kind: str = "image"  # image | video: what a record is
    protocol: str = "market"  # market | single-shot | single-gallery: how it is evaluated by custom
    drawn: dict = dataclasses.field(default_factory=dict)  # a split made from random draws, as written down
    domain_names: tuple[str, ...] = ()
    attributes: Any = dataclasses.field(default=None, compare=False)  # i32[P, A], a row for each identity
    truth: Truth | None = dataclasses.field(default=None, compare=False)  # of the hidden rows
    tested: str = ""  # the set whose query and gallery these are, where several are joined
    roots: tuple[str, ...] = ()  # of the sets that are joined
    left_out: tuple[str, ...] = ()  # relative paths of test pictures that cannot be read, and are in no split
    also: tuple[TestSet, ...] = ()  # further sets to test on, which nothing is chosen by

    @property
    def num_train_pids(self):
        """P, the number of training identities that may be known; 0 when all are hidden."""
        return 1 + max(r.pid for r in self.train)

    @property
    def num_cams(self):
        """C, the number of training cameras."""
        return 1 + max(r.camid for r in self.train)

    @property
    def tests(self):
        """tuple[TestSet]: the set's own query and gallery, then those of `also`."""
        name = self.tested or self.name
        return TestSet(name, self.query, self.gallery, self.protocol, self.root, name), *self.also

    def fingerprint(self):
        """Text that differs when the records do, wherever the root lies."""
        digest = hashlib.sha256()
        for split in ("train", "query", "gallery", "val_query", "val_gallery"):
            for r in getattr(self, split):
                digest.update(repr((os.path.relpath(r.path, self.root), r.pid, r.camid, len(r))).encode())
            digest.update(split.encode())
        for test in self.also:
            for r in (*test.query, *test.gallery):
                digest.update(repr((test.name, os.path.relpath(r.path, test.root), r.pid, r.camid)).encode())
        return digest.hexdigest()


def with_labels(dataset, labels):
    """The Dataset whose records, of all splits and further test sets, have labels(Record) too."""

    def given(records):
        return tuple(dataclasses.replace(r, labels={**r.labels, **labels(r)}) for r in records)

    splits = {
        s: given(getattr(dataset, s)) for s in ("train", "query", "gallery", "val_query", "val_gallery")
    }
    also = tuple(t._replace(query=given(t.query), gallery=given(t.gallery)) for t in dataset.also)
    return dataclasses.replace(dataset, **splits, also=also)


def extras(records):
    """{name: array [N, ...]} of the labels that all of the records have, with 32 bits instead of 64."""
    names = set.intersection(*(set(r.labels) for r in records)) if records else ()
    arrays = {name: np.stack([r.labels[name] for r in records]) for name in sorted(names)}
    return {name: a.astype(_SHORT.get(a.dtype.name, a.dtype), copy=False) for name, a in arrays.items()}


_SHORT = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32}
