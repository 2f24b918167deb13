"""Which rows make a batch: samplers, all of them pure functions of (seed, step).

Rows are chosen by groups, i[N]: identities, pseudo labels, or whatever else a method wants to see together.
Here is what all share; the samplers are in the modules by what they go through.
"""

import threading

import numpy as np

from reid_jax.errors import ConfigError


class Sampler:
    """Epochs drawn on demand by `_draw`; the last two are kept.

    size: rows of a global batch. batches_per_epoch: the same in every epoch. unit: rows that a share of the
    batch (of a host, of a device) cannot be cut within. units: what these are, for errors.
    """

    size: int
    batches_per_epoch: int
    unit = 1
    units = "config.data.ids * config.data.instances"

    def __init__(self, seed):
        self.seed = seed % 2**64
        self._lock = threading.Lock()
        self._recent = {}  # the last two epochs: reader threads stand on either side of a border

    def __getstate__(self):
        return {**self.__dict__, "_lock": None, "_recent": {}}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def batch(self, step):
        """i32[size]: rows of the batch of a step, counted from 0 over all epochs (read-only)."""
        epoch, place = divmod(step, self.batches_per_epoch)
        return self.epoch(epoch)[place]

    def epoch(self, e):
        """i32[M, size]: rows of the M batches of epoch e (read-only)."""
        with self._lock:
            if e not in self._recent:
                if len(self._recent) > 1:
                    del self._recent[next(iter(self._recent))]
                rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, e))))
                self._recent[e] = self._draw(rng).astype(np.int32)
                self._recent[e].flags.writeable = False
            return self._recent[e]


def checked_size(ids, instances):
    """ids * instances; ConfigError when one of them is not positive."""
    if ids < 1 or instances < 1:
        raise ConfigError(f"config.data.ids and instances must be at least 1, not {ids} and {instances}")
    return ids * instances


def split_rows(groups):
    """[i[n_g]]: the rows of every group in the order of their numbers; rows of group -1 are left out."""
    groups = np.asarray(groups)
    order = np.argsort(groups, kind="stable")[np.count_nonzero(groups < 0) :]
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
