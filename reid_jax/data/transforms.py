"""Host side of the augmentation: which pictures are flipped, cropped where, erased where.

Draws are counter-based: those of a record depend on (seed, global position) alone, position = step * batch
size + row, whoever makes them and in whatever order.
"""

import dataclasses

import numpy as np

from reid_jax.errors import ConfigError

VIEWS = ("strong", "strong")  # how the views of a batch are augmented unless a stream says otherwise
TRIES = 100  # of random erasing, as in MMT's code
_AUGMENT = 0x617567  # name of the random stream
STRIDE = 208  # uniform numbers of one view: 6 + 2 * TRIES, rounded up so that a record's are whole counters


def uniforms(seed, purpose, first, count, width):
    """f64[count,width] in [0, 1): the numbers of positions first .. first + count - 1.

    purpose: an integer of its own for each use, so that their numbers are independent. width: a multiple of
    4, as Philox gives four numbers a counter.
    """
    key = np.random.SeedSequence((seed % 2**64, purpose)).generate_state(2, np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=first * width // 4))
    return rng.random((count, width))


def generator(seed, purpose, position):
    """numpy Generator of one position, for draws of any number; purpose as in `uniforms`."""
    key = np.random.SeedSequence((seed % 2**64, purpose)).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=position << 64))


def clip_uniforms(seed, first, count, frames):
    """f64[count,frames] in [0, 1): what the clips at positions first .. first + count - 1 are drawn with."""
    return uniforms(seed, 0x636C6970, first, count, -(-frames // 4) * 4)[:, :frames]


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws augmentations for images of height x width; probabilities and ranges as in config.data."""

    height: int
    width: int
    flip: float
    pad_crop: int
    erase: float
    erase_area: tuple[float, float]
    erase_aspect: float
    seed: int = 0
    views: tuple[str, ...] = VIEWS  # of each view: strong | weak, which is without erasing

    def __post_init__(self):
        if set(self.views) - {"strong", "weak"}:
            raise ValueError(f"views are 'strong' or 'weak', not {self.views}")
        low, high = self.erase_area if len(self.erase_area) == 2 else (0, 0)
        for field, fine in (
            ("height", self.height >= 1),
            ("width", self.width >= 1),
            ("flip", 0 <= self.flip <= 1),
            ("pad_crop", self.pad_crop >= 0),
            ("erase", 0 <= self.erase <= 1),
            ("erase_area", 0 < low <= high <= 1),
            ("erase_aspect", 0 < self.erase_aspect <= 1),
        ):
            if not fine:
                raise ConfigError(f"config.data.{field} is {getattr(self, field)!r}, out of its range")

    @classmethod
    def of(cls, data, seed, views=VIEWS):
        """From a config's `data` section."""
        fields = [f.name for f in dataclasses.fields(cls) if f.name not in ("seed", "views")]
        values = {f: getattr(data, f) for f in fields}
        return cls(**{**values, "erase_area": tuple(data.erase_area)}, seed=seed, views=tuple(views))

    def uniforms(self, first, count):
        """f64[count, V, STRIDE] in [0, 1): the numbers of positions first .. first + count - 1.

        Two views share a purpose, so that those of a third leave the first two's as they are.
        """
        pairs = [
            uniforms(self.seed, _AUGMENT + (pair << 24), first, count, 2 * STRIDE).reshape(count, 2, STRIDE)
            for pair in range(-(-len(self.views) // 2))
        ]
        return np.concatenate(pairs or [np.empty((count, 0, STRIDE))], axis=1)[:, : len(self.views)]

    def __call__(self, first, count):
        """{flip bool[count,V], crop i32[count,V,2], erase i32[count,V,4]} of the positions from `first` on.

        crop: y, x offset into the padded image (pad_crop when off). erase: y, x, h, w; h = w = 0 for none.
        """
        u = self.uniforms(first, count)
        crop = np.floor(u[..., 1:3] * (2 * self.pad_crop + 1)).astype(np.int32)
        strong = np.array([v == "strong" for v in self.views], bool)
        erase = np.where(strong[:, None], self._erase(u[..., 3:]), 0).astype(np.int32)
        return {"flip": u[..., 0] < self.flip, "crop": crop, "erase": erase}

    def _erase(self, u):
        """MMT's RandomErasing on uniforms [..., 3 + 2 * TRIES]: up to 100 tries of area and aspect."""
        low, high = self.erase_area
        area = (low + u[..., 3 : 3 + TRIES] * (high - low)) * (self.height * self.width)
        narrow, wide = self.erase_aspect, 1 / self.erase_aspect
        aspect = narrow + u[..., 3 + TRIES : 3 + 2 * TRIES] * (wide - narrow)
        h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (h < self.height) & (w < self.width)
        pick = fits.argmax(-1)[..., None]
        h, w = np.take_along_axis(h, pick, -1)[..., 0], np.take_along_axis(w, pick, -1)[..., 0]
        y, x = np.floor(u[..., 1] * (self.height - h + 1)), np.floor(u[..., 2] * (self.width - w + 1))
        done = (u[..., 0] < self.erase) & fits.any(-1)
        return np.where(done[..., None], np.stack([y, x, h, w], -1), 0).astype(np.int32)
