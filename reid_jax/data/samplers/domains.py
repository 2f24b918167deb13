"""The same number of images of every camera, or of every domain, side by side in a batch."""

import numpy as np

from reid_jax.data.samplers import Sampler
from reid_jax.errors import DataError


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
