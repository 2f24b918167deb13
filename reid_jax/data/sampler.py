"""P x K batches: P identities or cameras with K images each, as a pure function of (seed, epoch)."""

import threading

import numpy as np

from reid_jax.errors import ConfigError, DataError


class Sampler:
    """Epochs drawn on demand by `_draw`; the last two are kept."""

    def __init__(self, seed):
        self.seed = seed % 2**64
        self._lock = threading.Lock()
        self._recent = {}  # the last two epochs: reader threads stand on either side of a border

    def __getstate__(self):
        return {**self.__dict__, "_lock": None, "_recent": {}}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def epoch(self, e):
        """i32[M, P*K]: rows of the M batches of epoch e (read-only)."""
        with self._lock:
            if e not in self._recent:
                if len(self._recent) > 1:
                    del self._recent[next(iter(self._recent))]
                rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, e))))
                self._recent[e] = self._draw(rng).astype(np.int32)
                self._recent[e].flags.writeable = False
            return self._recent[e]


class PKSampler(Sampler):
    """Cuts every epoch into batches of P groups of K images of one identity.

    pids: i[N], identity of each row; rows of identity -1 are left out. ids: P. instances: K. distinct: P
    different identities in each batch (deep-person-reid's rule); False lets one appear twice (AP3D's). An
    identity with fewer than K images is drawn K times with replacement; a remainder of fewer than K sits
    out the epoch. The number of batches is the same in every epoch. Errors: DataError naming data.ids for too
    few identities or groups.
    """

    def __init__(self, pids, ids, instances, seed=0, distinct=True):
        if ids < 1 or instances < 1:
            raise ConfigError(f"config.data.ids and instances must be at least 1, not {ids} and {instances}")
        super().__init__(seed)
        pids = np.asarray(pids, np.int64)
        self._rows = np.flatnonzero(pids >= 0)
        self.ids, self.instances, self.distinct = ids, instances, distinct
        _, self._label, self._count = np.unique(pids[self._rows], return_inverse=True, return_counts=True)
        self._groups = np.maximum(self._count // instances, 1)  # g_i
        if distinct and len(self._count) < ids:
            raise DataError(
                f"{len(self._count)} training identities do not fill a batch of {ids}: lower config.data.ids"
            )
        total = int(self._groups.sum())
        self.batches_per_epoch = longest(self._groups, ids) if distinct else total // ids
        if self.batches_per_epoch < 1:
            raise DataError(
                f"{total} groups of {instances} images do not fill a batch of {ids}: lower config.data.ids"
            )

    def _draw(self, rng):
        """Identities in groups of K, one after the other."""
        rows = self._rows[self._shuffled_groups(rng)]
        order = self._distinct_order(rng) if self.distinct else self._free_order(rng)
        return rows[order].reshape(self.batches_per_epoch, self.ids * self.instances)

    def _shuffled_groups(self, rng):
        """i64[sum g, K]: every identity's shuffled rows cut into groups, identities one after the other."""
        k, count, groups = self.instances, self._count, self._groups
        items = np.lexsort((rng.random(len(self._label)), self._label))  # by identity, shuffled within
        first = np.cumsum(count) - count
        slot = np.arange(groups.sum() * k)
        owner = np.repeat(np.arange(len(count)), groups * k)
        place = slot - np.repeat((np.cumsum(groups) - groups) * k, groups * k)
        few = count < k
        drawn = (rng.random(len(slot)) * count[owner]).astype(np.int64)
        place = np.where(few[owner], drawn, place)
        return items[first[owner] + place].reshape(-1, k)

    def _free_order(self, rng):
        """Group numbers of the epoch, any order."""
        return rng.permutation(int(self._groups.sum()))[: self.batches_per_epoch * self.ids]

    def _distinct_order(self, rng):
        """Group numbers of the epoch, no identity twice in a batch.

        With m batches left an identity with m groups left must be taken, so it never has more groups than
        batches remain; the others are drawn without replacement, weighted by their groups (Gumbel top-k).
        """
        batches, p = self.batches_per_epoch, self.ids
        left = self._kept(rng)
        following = np.cumsum(self._groups) - self._groups  # next unused group of each identity
        noise = rng.gumbel(size=(batches, len(left)))
        chosen = np.empty((batches, p), np.int64)
        for b in range(batches):
            with np.errstate(divide="ignore"):
                score = np.log(left) + noise[b]
            score[left == batches - b] = np.inf
            take = np.argpartition(-score, p - 1)[:p]
            chosen[b] = following[take]
            following[take] += 1
            left[take] -= 1
        return rng.permuted(chosen, axis=1).ravel()

    def _kept(self, rng):
        """i64[ids]: groups of each identity in this epoch, at most M each, P * M in all."""
        capped = np.minimum(self._groups, self.batches_per_epoch)
        owner = np.repeat(np.arange(len(capped)), capped)
        keep = rng.permutation(len(owner))[: self.ids * self.batches_per_epoch]
        return np.bincount(owner[keep], minlength=len(capped))


class CameraSampler(Sampler):
    """Batches of K images of each camera, image j of camera c at row j * C + c.

    camids: i[N] from 0. instances: K. labels: i[N] or None; rows labelled -1 are left out. Every camera is
    shuffled and cut into groups of K, a remainder sits out; the epoch ends with the smallest camera. One with
    fewer than K images is drawn with replacement and ends the epoch after one batch. Errors: DataError for a
    camera without images.
    """

    def __init__(self, camids, instances, seed=0, labels=None):
        super().__init__(seed)
        camids = np.asarray(camids)
        kept = np.ones(len(camids), bool) if labels is None else np.asarray(labels) >= 0
        self.ids, self.instances = int(camids.max()) + 1, instances
        self._of = [np.flatnonzero(kept & (camids == c)) for c in range(self.ids)]
        empty = [c for c, rows in enumerate(self._of) if not len(rows)]
        if empty:
            raise DataError(f"no training image of camera {', '.join(map(str, empty))} has a label")
        self.batches_per_epoch = max(min(map(len, self._of)) // instances, 1)

    def _draw(self, rng):
        batches, k = self.batches_per_epoch, self.instances
        chosen = []
        for rows in self._of:
            few = len(rows) < batches * k
            chosen.append(rng.choice(rows, batches * k) if few else rng.permutation(rows)[: batches * k])
        return np.stack(chosen, -1).reshape(batches, k * self.ids)


def longest(groups, p):
    """Largest M with sum_i min(groups_i, M) >= p * M: the most batches of p distinct identities.

    The difference of both sides is concave in M and 0 at M = 0, so bisection finds the last non-negative one.
    """
    low, high = 0, int(groups.sum()) // p
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= p * middle:
            low = middle
        else:
            high = middle - 1
    return low
