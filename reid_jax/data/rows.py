"""What a method may know of training rows, and the hiding of what it may not."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from reid_jax.data.records import Truth, extras
from reid_jax.errors import DataError


class Rows(NamedTuple):
    """A block of a training set: its rows `start` to start + N - 1.

    Cameras and domains are counted from 0 within the block.
    """

    start: int
    pid: Any  # i32[N], 0..P-1, or -1 throughout
    camid: Any  # i32[N]
    domain: Any  # i32[N]
    extras: dict = {}  # {name: array [N, ...]}

    @property
    def num_pids(self):
        """Identities, 0 where they are hidden."""
        return int(self.pid.max(initial=-1)) + 1

    @property
    def num_cams(self):
        """Cameras."""
        return int(self.camid.max(initial=-1)) + 1

    @property
    def num_domains(self):
        """Domains."""
        return int(self.domain.max(initial=-1)) + 1

    @property
    def ids_of_domains(self):
        """Number of identities that each domain shows; () where there is one domain."""
        if self.num_domains < 2:
            return ()
        return tuple(len(np.unique(self.pid[self.domain == d])) for d in range(self.num_domains))


def rows_of(dataset):
    """(Rows with identities, Rows whose identities are hidden) of a training set; None for what is not there.

    Raises DataError when rows with and without identity are mixed: see `hide`.
    """
    pid = np.array([r.pid for r in dataset.train], np.int32)
    labelled = int(np.count_nonzero(pid >= 0))
    if (pid[:labelled] < 0).any():
        raise DataError(f"{dataset.name}: training rows without identity must follow those that have one")
    blocks = (0, labelled), (labelled, len(pid))
    first, second = (block(dataset.train[a:b], a) if a < b else None for a, b in blocks)
    return first, second


def block(records, start):
    """Rows of the records of a training set from row `start` on."""
    pid, camid, domain = (np.array([getattr(r, f) for r in records], np.int32) for f in FIELDS)
    if start:  # cameras and domains of what lies before come first
        camid, domain = camid - camid.min(), domain - domain.min()
    return Rows(start, pid, camid, domain, extras(records))


FIELDS = ("pid", "camid", "domain")


def hide(dataset, start, seed, cameras=True):
    """A Dataset that does not know whom its training rows from `start` on show, nor by their order.

    Their pids become -1, their order is drawn from seed (files lie sorted by identity). The identities go
    to Dataset.truth, to rate labels, unless nobody is known. The identities of the rows before must be
    0..P-1. cameras=False: nor by which cameras; all these rows then have their first one.
    """
    labelled, hidden = dataset.train[:start], dataset.train[start:]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed % 2**64, 0x68696465))))
    hidden = [hidden[i] for i in rng.permutation(len(hidden)).tolist()]
    pid = np.array([r.pid for r in hidden], np.int32)
    known = {} if cameras or not hidden else {"camid": min(r.camid for r in hidden)}
    attributes = dataset.attributes
    if attributes is not None:
        people = 1 + max((r.pid for r in labelled), default=-1)
        attributes = attributes[:people] if people else None
    return dataclasses.replace(
        dataset,
        train=(*labelled, *(dataclasses.replace(r, pid=-1, **known) for r in hidden)),
        attributes=attributes,
        truth=Truth(pid) if (pid >= 0).any() else None,
    )
