"""P groups with K images each, every group once an epoch."""

import numpy as np

from reid_jax.data.samplers import Sampler, checked_size, split_rows
from reid_jax.errors import DataError


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
