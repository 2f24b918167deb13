"""Every image once an epoch."""

import numpy as np

from reid_jax.data.samplers import Sampler
from reid_jax.errors import DataError


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
