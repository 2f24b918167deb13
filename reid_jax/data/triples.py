"""DI-REID's training triples: an image, its synthetic degradation, and another real image."""

import sys

import grain
import numpy as np

from reid_jax.config import choice
from reid_jax.data import degrade
from reid_jax.data.images import original
from reid_jax.data.sampler import Sampler
from reid_jax.data.transforms import generator, uniforms
from reid_jax.errors import ConfigError, DataError

_PARTNER, _DEGRADE = 0x70617274, 0x74726970  # names of random streams


class TripleSampler(Sampler):
    """Shuffled epochs of all images, data.ids * data.instances in a batch; a remainder sits out.

    camids: i[N]. `partners` gives the third image: with data.pairs "un" one of another camera; "semi" one of
    the other quality, images of data.poor_cameras being poor, and then the good one comes first.
    Raises ConfigError or DataError when there are no such pairs.
    """

    def __init__(self, camids, data, seed=0):
        super().__init__(seed)
        self.ids, self.instances = data.ids * data.instances, 1
        group = np.asarray(camids)
        if choice("data.pairs", data.pairs, ("un", "semi")) == "semi":
            group = np.isin(group, data.poor_cameras).astype(int)  # 1: poor
        self.group, self.semi = group, data.pairs == "semi"
        if len(np.unique(group)) < 2:
            what = "good and poor images (data.poor_cameras)" if self.semi else "images of several cameras"
            raise DataError(f"triples need {what}; the training set has one kind only")
        self.batches_per_epoch = len(group) // self.ids
        if not self.batches_per_epoch:
            raise ConfigError(
                f"{len(group)} training images do not fill a batch of {self.ids}: lower config.data.ids"
            )
        self.order = np.argsort(group, kind="stable")
        self.count = np.bincount(group)
        self.first = np.cumsum(self.count) - self.count

    def _draw(self, rng):
        kept = self.batches_per_epoch * self.ids
        return rng.permutation(len(self.group))[:kept].reshape(-1, self.ids)

    def partners(self, rows, position):
        """(rows of the first images, rows of the third) of a batch's rows from a global position on."""
        u = uniforms(self.seed, _PARTNER, position, len(rows), 4)[:, 0]
        own = self.group[rows]
        pick = (u * (len(self.group) - self.count[own])).astype(np.int64)  # among those of other groups
        pick += np.where(pick >= self.first[own], self.count[own], 0)
        other = self.order[pick].astype(np.int32)
        swap = (own == 1) & self.semi
        return np.where(swap, other, rows), np.where(swap, rows, other)


class TripleSource(grain.MapDataset):
    """Element k: batch start_step + k.

    image u8[B,3,H,W,3]: x_i, F(x_i) (degraded at its own size, then resized as the others), x_k; pid, camid,
    index i32[B] of x_i, pid_k, camid_k, index_k i32[B] of x_k.
    """

    def __init__(self, records, data, seed, labels, sampler, start_step, part):
        super().__init__()
        self.paths, self.labels, self.sampler = [r.path for r in records], labels, sampler
        self.size, self.settings = (data.height, data.width), degrade.Settings.of(data.degrade)
        self.seed, self.start_step, self.part = seed, start_step, part

    def __len__(self):
        return sys.maxsize - self.start_step

    def __getitem__(self, k):
        if isinstance(k, slice):
            return self.slice(k)
        epoch, batch = divmod(self.start_step + k, self.sampler.batches_per_epoch)
        position = (self.start_step + k) * self.sampler.ids + self.part.start
        first, third = self.sampler.partners(self.sampler.epoch(epoch)[batch, self.part], position)
        image = np.empty((len(first), 3, *self.size, 3), np.uint8)
        for i, (a, c) in enumerate(zip(first, third, strict=True)):
            rng, clean = generator(self.seed, _DEGRADE, position + i), original(self.paths[a])
            pictures = clean, self.settings.draw(rng, clean), original(self.paths[c])
            image[i] = [degrade.enlarge(p, *self.size) for p in pictures]
        of = {"": first, "_k": third}
        found = {f"{n}{end}": values[rows] for end, rows in of.items() for n, values in self.labels.items()}
        return {"image": image, **found, **{f"index{end}": rows for end, rows in of.items()}}
