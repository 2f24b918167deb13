"""Host side of the augmentation: which pictures are flipped, cropped where, erased where.

Draws are counter-based: those of a record depend on (seed, global position) alone, position = step * batch
size + row, whoever makes them and in whatever order.
"""

import dataclasses

import numpy as np

from reid_jax.errors import ConfigError

VIEWS = ("strong", "strong")  # how the views of a batch are augmented unless a stream says otherwise
NOISES = ("normal", "uniform")  # fills of erased rectangles that are no colour
NO_JITTER = np.array([1, 1, 1, 0], np.float32)
TRIES = 100  # at most, of random erasing, as in MMT's code
_AUGMENT = 0x617567  # name of the random stream
_JITTER = 0x6A697474
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
    views: tuple[str, ...] = VIEWS  # of each view: strong | weak, which is without erasing and jitter
    erase_aspect_log: bool = False
    erase_tries: int = TRIES
    erase_whole: bool = False
    erase_fill: tuple | str = (0.0, 0.0, 0.0)
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)

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
            ("erase_aspect", 0 < self.aspects[0] <= self.aspects[-1]),
            ("erase_tries", 1 <= self.erase_tries <= TRIES),
            ("erase_fill", self.erase_fill in NOISES if isinstance(self.erase_fill, str) else True),
            ("jitter", len(self.jitter) == 3 and 0 <= min(self.jitter) <= max(self.jitter) <= 1),
        ):
            if not fine:
                raise ConfigError(f"config.data.{field} is {getattr(self, field)!r}, out of its range")

    @classmethod
    def of(cls, data, seed, views=VIEWS):
        """From a config's `data` section."""
        fields = [f.name for f in dataclasses.fields(cls) if f.name not in ("seed", "views")]
        values = {f: getattr(data, f) for f in fields}
        values |= {name: tuple(values[name]) for name in ("erase_area", "jitter")}
        return cls(**values, seed=seed, views=tuple(views))

    @property
    def aspects(self):
        """(lowest, highest) h / w of what is erased."""
        aspect = self.erase_aspect
        return (aspect, 1 / aspect if aspect else 0) if isinstance(aspect, int | float) else tuple(aspect)

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

        crop: y, x offset into the padded image (pad_crop when off). erase: y, x, h, w; h = w = 0 for none;
        with noise for a fill also the seed of that noise, i32[count,V,5]. With jitter also "jitter"
        f32[count,V,4]: three factors and the number of their order.
        """
        u = self.uniforms(first, count)
        crop = np.floor(u[..., 1:3] * (2 * self.pad_crop + 1)).astype(np.int32)
        strong = np.array([v == "strong" for v in self.views], bool)
        erase = np.where(strong[:, None], self._erase(u[..., 3:]), 0).astype(np.int32)
        if isinstance(self.erase_fill, str):
            noise = np.floor(u[..., -1:] * 2**31).astype(np.int32)
            erase = np.concatenate([erase, noise], -1)
        draws = {"flip": u[..., 0] < self.flip, "crop": crop, "erase": erase}
        if any(self.jitter):
            draws["jitter"] = np.where(strong[:, None], self._jitter(first, count), NO_JITTER)
        return draws

    def _jitter(self, first, count):
        """f32[count,V,4]: factors of brightness, contrast, saturation, and which of the 6 orders."""
        views = len(self.views)
        u = uniforms(self.seed, _JITTER, first, count, 4 * views).reshape(count, views, 4)
        factors = 1 + (2 * u[..., :3] - 1) * np.array(self.jitter)
        return np.concatenate([factors, np.floor(6 * u[..., 3:])], -1).astype(np.float32)

    def _erase(self, u):
        """RandomErasing on uniforms [..., 3 + 2 * TRIES]: the first of erase_tries rectangles that fits."""
        low, high = self.erase_area
        area = (low + u[..., 3 : 3 + TRIES] * (high - low)) * (self.height * self.width)
        narrow, wide = np.log(self.aspects) if self.erase_aspect_log else self.aspects
        aspect = narrow + u[..., 3 + TRIES : 3 + 2 * TRIES] * (wide - narrow)
        aspect = np.exp(aspect) if self.erase_aspect_log else aspect
        h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (h < self.height + self.erase_whole) & (w < self.width + self.erase_whole)
        fits &= np.arange(TRIES) < self.erase_tries
        pick = fits.argmax(-1)[..., None]
        h, w = np.take_along_axis(h, pick, -1)[..., 0], np.take_along_axis(w, pick, -1)[..., 0]
        y, x = np.floor(u[..., 1] * (self.height - h + 1)), np.floor(u[..., 2] * (self.width - w + 1))
        done = (u[..., 0] < self.erase) & fits.any(-1)
        return np.where(done[..., None], np.stack([y, x, h, w], -1), 0).astype(np.int32)
