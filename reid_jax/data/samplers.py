"""Which rows make a batch: samplers, all of them pure functions of (seed, step).

Rows are chosen by groups, i[N]: identities, pseudo labels, or whatever else a method wants to see together.
"""

import functools
import threading

import numpy as np

from reid_jax.errors import ConfigError, DataError


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


class Uniform(Sampler):
    """P groups of K images, each group once an epoch, in random order (CAP's ClassUniformlySampler).

    groups: i[N]; rows of group -1 are left out. A group with fewer than K images gives some of them several
    times: K of its list repeated K times. Groups that do not fill a last batch sit out the epoch. Errors:
    DataError naming data.ids for too few groups.
    """

    def __init__(self, groups, ids, instances, seed=0):
        super().__init__(seed)
        self.size, self.ids, self.instances = checked_size(ids, instances), ids, instances
        self._images = split_rows(groups)
        self.batches_per_epoch = len(self._images) // ids
        if not self.batches_per_epoch:
            raise DataError(f"{len(self._images)} groups do not fill a batch of {ids}: lower config.data.ids")

    def _draw(self, rng):
        k, chosen = self.instances, []
        for i in rng.permutation(len(self._images))[: self.batches_per_epoch * self.ids].tolist():
            rows = self._images[i]
            chosen.append(rng.permutation(rows if len(rows) >= k else np.tile(rows, k))[:k])
        return np.concatenate(chosen).reshape(-1, self.size)


class Gallery(Sampler):
    """Every group once an epoch with K images, the others of it from other cameras than the first one's.

    The RandomMultipleGallerySampler of SpCL, MMT, MEB-Net and cluster contrast. groups: i[N]; rows of group
    -1 are left out. camids: i[N], or None: any other image may follow the first (so it is too where a group
    has a single camera). A group of one image gives that image alone; otherwise K - 1 others are drawn, with
    replacement if they are fewer than K. The groups make one sequence that is cut into batches of ids *
    instances rows, so that a group may lie across two, and whose rest is dropped. Errors: DataError naming
    data.ids when there are too few images.
    """

    def __init__(self, groups, camids, ids, instances, seed=0):
        super().__init__(seed)
        self.size, self.ids, self.instances = checked_size(ids, instances), ids, instances
        self._images = split_rows(groups)
        self._camids = None if camids is None else np.asarray(camids)
        total = sum(self._length(rows) for rows in self._images)
        self.batches_per_epoch = total // self.size
        if not self.batches_per_epoch:
            raise DataError(
                f"{len(self._images)} groups give {total} images an epoch, which do not fill a batch of "
                f"{self.size}: lower config.data.ids"
            )

    def _length(self, rows):
        return self.instances if len(rows) > 1 else 1

    def _draw(self, rng):
        drawn = [self._group(rng, self._images[i]) for i in rng.permutation(len(self._images)).tolist()]
        rows = np.concatenate(drawn)
        return rows[: self.batches_per_epoch * self.size].reshape(-1, self.size)

    def _group(self, rng, rows):
        """The images of one group in one epoch: i[K], or i[1]."""
        first, more = rng.integers(len(rows)), self.instances - 1
        if len(rows) == 1 or not more:
            return rows[first : first + 1]
        others = np.delete(rows, first)
        if self._camids is not None:
            elsewhere = rows[self._camids[rows] != self._camids[rows[first]]]
            others = elsewhere if len(elsewhere) else others
        enough = len(others) > more
        drawn = rng.permutation(others)[:more] if enough else others[rng.integers(len(others), size=more)]
        return np.concatenate([rows[first : first + 1], drawn])


class EveryCamera(Gallery):
    """Every group once an epoch with K images: one of each of its cameras, then others (ICE's sampler).

    The MoreCameraSampler of ICE. Of more than K cameras K are drawn. The others are drawn with replacement if
    they are too few; where there are none, all K are, from those one of each camera. Without camids all
    images are by one.
    """

    def _length(self, rows):
        return self.instances

    def _group(self, rng, rows):
        """The images of one group in one epoch: i[K]."""
        rows, k = rng.permutation(rows), self.instances
        cameras = np.zeros(len(rows)) if self._camids is None else self._camids[rows]
        _, first = np.unique(cameras, return_index=True)  # of random order: any of a camera's
        chosen, others = rng.permutation(rows[first]), np.delete(rows, first)
        more = k - len(chosen)
        if more <= 0:
            return chosen[:k]
        if not len(others):
            return chosen[rng.integers(len(chosen), size=k)]
        drawn = others[:more] if len(others) >= more else others[rng.integers(len(others), size=more)]
        return np.concatenate([chosen, drawn])


class Shuffled(Sampler):
    """Every image once an epoch, shuffled, in batches of `size`; a remainder sits out.

    labels: i[N]; rows labelled -1 are left out. Errors: DataError naming data.ids for too few images.
    """

    def __init__(self, labels, size, seed=0):
        super().__init__(seed)
        self._rows = np.flatnonzero(np.asarray(labels) >= 0)
        self.size, self.batches_per_epoch = size, len(self._rows) // size
        if not self.batches_per_epoch:
            raise DataError(
                f"{len(self._rows)} training images do not fill a batch of {size}: lower config.data.ids"
            )

    def _draw(self, rng):
        drawn = self.batches_per_epoch * self.size
        return self._rows[rng.permutation(len(self._rows))[:drawn]].reshape(-1, self.size)


class Positives(Shuffled):
    """`Shuffled`, every image followed by another one of its group: rows 0, 2, ..., partners 1, 3, ...

    An image that is alone in its group is its own partner. size: images of a batch without partners.
    """

    unit = 2

    def __init__(self, labels, size, seed=0):
        super().__init__(labels, size, seed)
        self.size = 2 * size
        labels = np.asarray(labels)[self._rows]
        self._order = np.argsort(labels, kind="stable")
        _, first, count = np.unique(labels[self._order], return_index=True, return_counts=True)
        place = np.arange(len(labels))
        self._first, self._count = np.repeat(first, count), np.repeat(count, count)
        self._place = np.empty(len(labels), np.int64)  # of a kept row in the order by groups
        self._place[self._order] = place

    def _draw(self, rng):
        drawn = self.batches_per_epoch * (self.size // 2)
        chosen = rng.permutation(len(self._rows))[:drawn]
        place = self._place[chosen]
        first, count = self._first[place], self._count[place]
        ahead = 1 + (rng.random(drawn) * (count - 1)).astype(np.int64)
        partner = self._order[first + (place - first + ahead) % count]
        both = np.stack([self._rows[chosen], self._rows[partner]], -1)
        return both.reshape(self.batches_per_epoch, self.size)


class Cameras(Sampler):
    """Batches of K images of each camera, image j of camera c at row j * C + c.

    camids: i[N] from 0. instances: K. labels: i[N] or None; rows labelled -1 are left out. Every camera is
    shuffled and cut into groups of K, a remainder sits out; the epoch ends with the smallest camera. A camera
    with fewer than K images is drawn with replacement and ends the epoch after one batch. Errors: DataError
    for a camera without images.
    """

    def __init__(self, camids, instances, seed=0, labels=None):
        super().__init__(seed)
        camids = np.asarray(camids)
        known = np.ones(len(camids), bool) if labels is None else np.asarray(labels) >= 0
        self.ids, self.instances = int(camids.max()) + 1, instances
        self.size, self.unit = self.ids * instances, self.ids
        self.units = "the number of images of each camera in a batch"
        self._of = [np.flatnonzero(known & (camids == c)) for c in range(self.ids)]
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


class Domains(Sampler):
    """S samplers side by side, one for each domain: row (p S + s) K + k of a batch is row p K + k of batch s.

    So any contiguous n-th of a batch holds the same n-th of every domain's batch, if n divides P. samplers:
    all of one size P * instances. Each goes through its own epochs: batch b has batch b of every domain, so
    that small domains start over and big ones are not cut. steps: of an epoch; 0: of the longest domain's.
    """

    def __init__(self, samplers, instances, steps=0):
        super().__init__(0)
        sizes = {s.size for s in samplers}
        if len(sizes) != 1 or min(sizes) % instances:
            raise ValueError(f"samplers of {sorted(sizes)} rows cannot alternate in runs of {instances}")
        self.samplers, self.instances = samplers, instances
        self.size, self.unit = len(samplers) * sizes.pop(), len(samplers) * instances
        self.units = "the identities of a batch from every domain, config.data.ids,"
        self.batches_per_epoch = steps or max(s.batches_per_epoch for s in samplers)

    def batch(self, step):
        runs = [s.batch(step).reshape(-1, self.instances) for s in self.samplers]
        return np.stack(runs, axis=1).reshape(-1)

    def epoch(self, e):
        first = e * self.batches_per_epoch
        return np.stack([self.batch(first + i) for i in range(self.batches_per_epoch)])


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
