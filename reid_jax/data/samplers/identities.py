"""P identities with K images each, an identity as often as it has images for it."""

import functools

import numpy as np

from reid_jax.data.samplers import Sampler, checked_size, split_rows
from reid_jax.errors import DataError


class PK(Sampler):
    """Cuts every epoch into batches of P times K images of one identity.

    labels: i[N], identity (or another group) of each row; rows of identity -1 are left out. ids: P.
    instances: K. distinct: P different identities in each batch (deep-person-reid's rule); False lets one
    appear twice (AP3D's). An identity with fewer than K images is drawn K times with replacement; a remainder
    of fewer than K sits out the epoch. The number of batches is the same in every epoch. Errors: DataError
    naming data.ids for too few identities or groups.
    """

    def __init__(self, labels, ids, instances, seed=0, distinct=True):
        super().__init__(seed)
        self.size = checked_size(ids, instances)
        self.ids, self.instances, self.distinct = ids, instances, distinct
        labels = np.asarray(labels, np.int64)
        self._rows = np.flatnonzero(labels >= 0)
        _, self._label, self._count = np.unique(labels[self._rows], return_inverse=True, return_counts=True)
        self._plan(np.maximum(self._count // instances, 1))

    def _plan(self, groups):
        """Batches of an epoch that has groups[i] (g_i) times K images of identity i; DataError for none."""
        self._groups, total = groups, int(groups.sum())
        if self.distinct and len(groups) < self.ids:
            raise DataError(
                f"{len(groups)} training identities do not fill a batch of {self.ids}: lower config.data.ids"
            )
        self.batches_per_epoch = longest(groups, self.ids) if self.distinct else total // self.ids
        if self.batches_per_epoch < 1:
            raise DataError(
                f"{total} groups of {self.instances} images do not fill a batch of {self.ids}: lower "
                "config.data.ids"
            )

    def _draw(self, rng):
        """Identities in groups of K, one after the other."""
        rows = self._rows[self._shuffled_groups(rng)]
        return rows[self._order(rng)].reshape(self.batches_per_epoch, self.size)

    def _order(self, rng):
        """Group numbers of the epoch, P for each batch."""
        return self._distinct_order(rng) if self.distinct else self._free_order(rng)

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


class Pairs(PK):
    """P x K batches of identities that several domains share: K images of each domain for every identity.

    Row (p S + s) K + k of a batch: image k of its identity p from domain s. labels, domains: i[N]; rows of
    identity -1 and identities that are not in all S domains are left out. An identity comes max(1, n // K)
    times in an epoch, n being its images in the domain that has the most; its images of a domain are
    shuffled and taken in turn, from the first again when they have been used up.
    """

    def __init__(self, labels, domains, ids, instances, seed=0, distinct=True):
        labels, domains = np.asarray(labels, np.int64), np.asarray(domains)
        count = int(domains.max()) + 1
        shared = functools.reduce(np.intersect1d, (labels[domains == d] for d in range(count)))
        if not (shared >= 0).any():
            raise DataError("config.data.pair_ids is set, but no identity has images in every domain")
        super().__init__(np.where(np.isin(labels, shared), labels, -1), ids, instances, seed, distinct)
        self.unit = count * instances
        self.size = ids * self.unit
        images = split_rows(self._label * count + domains[self._rows])  # every identity is in every domain
        self._images = [images[i : i + count] for i in range(0, len(images), count)]
        most = np.array([max(map(len, of)) for of in self._images])
        self._plan(np.maximum(most // instances, 1))

    def _shuffled_groups(self, rng):
        """i64[sum g, S K]: the images of every identity, from all domains, identities one after the other."""
        k = self.instances
        groups = [
            np.concatenate([np.resize(rng.permutation(x), (g, k)) for x in of], axis=1)
            for of, g in zip(self._images, self._groups.tolist(), strict=True)
        ]
        return np.concatenate(groups)


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
