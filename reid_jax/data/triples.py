"""DI-REID's training triples: an image, its synthetic degradation, and another real image."""

import numpy as np

from reid_jax.config import choice
from reid_jax.data import degrade
from reid_jax.data.samplers.images import Shuffled
from reid_jax.data.streams import Stream
from reid_jax.data.transforms import generator, uniforms
from reid_jax.errors import DataError

_PARTNER, _DEGRADE = 0x70617274, 0x74726970  # names of random streams


class TripleSampler(Shuffled):
    """Shuffled epochs of all images, data.ids * data.instances in a batch; a remainder sits out.

    camids: i[N]. `partners` gives the third image: with data.pairs "un" one of another camera; "semi" one of
    the other quality, images of data.poor_cameras being poor, and then the good one comes first.
    Raises ConfigError or DataError when there are no such pairs, or too few images.
    """

    def __init__(self, camids, data, seed=0):
        super().__init__(np.zeros(len(camids)), data.ids * data.instances, seed)
        group = np.asarray(camids)
        if choice("data.pairs", data.pairs, ("un", "semi")) == "semi":
            group = np.isin(group, data.poor_cameras).astype(int)  # 1: poor
        self.group, self.semi = group, data.pairs == "semi"
        if len(np.unique(group)) < 2:
            needed = "good and poor images (data.poor_cameras)" if self.semi else "images of several cameras"
            raise DataError(f"triples need {needed}; the training set has one kind only")
        self.order = np.argsort(group, kind="stable")
        self.count = np.bincount(group)
        self.first = np.cumsum(self.count) - self.count

    def partners(self, rows, position):
        """(rows of the first images, rows of the third) of a batch's rows from a global position on."""
        u = uniforms(self.seed, _PARTNER, position, len(rows), 4)[:, 0]
        group = self.group[rows]
        pick = (u * (len(self.group) - self.count[group])).astype(np.int64)  # among those of other groups
        pick += np.where(pick >= self.first[group], self.count[group], 0)
        other = self.order[pick].astype(np.int32)
        swap = (group == 1) & self.semi
        return np.where(swap, other, rows), np.where(swap, rows, other)


class Triples(Stream):
    """Stream of triples: an image x_i, its degradation F(x_i), another image x_k.

    A batch: image u8[B,3,H,W,3] (F(x_i) is degraded at its own size, then resized as the others); columns and
    index of x_i, and the same of x_k under names that end in "_k".
    """

    def example(self, data, size=2):
        columns = {**self.columns, "index": np.zeros(0, np.int32)}
        zeros = {n: np.zeros((size, *v.shape[1:]), v.dtype) for n, v in columns.items()}
        image = np.zeros((size, 3, data.height, data.width, 3), np.uint8)
        return {"image": image, **{f"{n}{end}": v for end in ("", "_k") for n, v in zeros.items()}}

    def source(self, records, data, first_step, share):
        from reid_jax.data import pipeline

        return pipeline.TripleSource(self, records, data, first_step, share)

    def batch(self, images, settings, step, share):
        """What a step takes of the share; images: an images.Originals, settings: a degrade.Settings.

        Of a broken file that is passed over another one's picture and columns are given.
        """
        position, size = step * self.size + share.start, (images.height, images.width)
        first, third = self.sampler.partners(self.sampler.batch(step)[share], position)
        image = np.empty((len(first), 3, *size, 3), np.uint8)
        for i in range(len(first)):
            rng, (clean, first[i]) = generator(self.seed, _DEGRADE, position + i), images.get(int(first[i]))
            other, third[i] = images.get(int(third[i]))
            pictures = clean, settings.draw(rng, clean), other
            image[i] = [degrade.enlarge(p, *size) for p in pictures]
        ends = {"": first, "_k": third}
        columns = {f"{n}{end}": v[rows] for end, rows in ends.items() for n, v in self.columns.items()}
        return {"image": image, **columns, **{f"index{end}": rows for end, rows in ends.items()}}
