"""Changes of training pictures before they are resized: AutoAugment's policy, random parts of a picture.

Host code; what is drawn depends on (seed, global position) alone.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from reid_jax.config import choice
from reid_jax.data import autoaugment, decode
from reid_jax.errors import ConfigError

CROPS = ("none", "resized", "larger")
TRIES = 10  # of a part that fits


@dataclasses.dataclass(frozen=True)
class Changes:
    """Of config.data; height, width: of the pictures it makes."""

    height: int
    width: int
    crop: str
    crop_share: float
    crop_area: tuple
    crop_aspect: tuple
    crop_scale: float
    autoaugment: float
    resize: str

    def __post_init__(self):
        choice("data.crop", self.crop, CROPS)
        for field in ("crop_area", "crop_aspect"):
            if np.shape(getattr(self, field)) != (2,):
                raise ConfigError(
                    f"config.data.{field} is {getattr(self, field)!r}; it must be two numbers, the lowest "
                    "and the highest"
                )
        for field, fine in (
            ("crop_share", 0 <= self.crop_share <= 1),
            ("crop_area", 0 < self.crop_area[0] <= self.crop_area[1] <= 1),
            ("crop_aspect", 0 < self.crop_aspect[0] <= self.crop_aspect[1]),
            ("crop_scale", self.crop_scale >= 1),
            ("autoaugment", 0 <= self.autoaugment <= 1),
        ):
            if not fine:
                raise ConfigError(f"config.data.{field} is {getattr(self, field)!r}, out of its range")

    @classmethod
    def of(cls, data):
        """From a config's `data` section; ConfigError for values out of range or that go with no other."""
        changes = cls(**{f.name: getattr(data, f.name) for f in dataclasses.fields(cls)})
        if changes.any and (data.frames or data.degrade.share):
            other = "frames" if data.frames else "degrade.share"
            raise ConfigError(
                f"config.data.crop and autoaugment change pictures as they are read, which cannot be joined "
                f"with config.data.{other}: leave them at none and 0"
            )
        return changes

    @property
    def any(self):
        """Whether pictures are ever changed."""
        return self.crop != "none" or self.autoaugment > 0

    def drawn(self, rng):
        """(whether the policy is taken, whether a part is), the first two numbers of a generator."""
        policy, part = rng.random(2)
        return policy < self.autoaugment, self.crop != "none" and part < self.crop_share

    def made(self, rng, picture, policy, part):
        """u8[h,w,3] -> u8[height,width,3], changed as `drawn` says, by the generator's next numbers."""
        image = Image.fromarray(picture)
        if policy:
            image = autoaugment.changed(image, rng)
        if not part:
            return self._resized(image, self.height, self.width)
        if self.crop == "larger":
            return self._larger(rng, image)
        return self._resized(image.crop(self.box(rng, image)), self.height, self.width)

    def _larger(self, rng, image):
        """torchreid's Random2DTranslation."""
        height, width = (round(side * self.crop_scale) for side in (self.height, self.width))
        y, x = rng.integers([height - self.height, width - self.width], endpoint=True)
        return self._resized(image, height, width)[y : y + self.height, x : x + self.width]

    def box(self, rng, image):
        """CamStyle's and IDE's RandomSizedRectCrop: (left, top, right, bottom), of all where nothing fits."""
        width, height = image.size
        for _ in range(TRIES):
            area, aspect = rng.uniform(*self.crop_area) * width * height, rng.uniform(*self.crop_aspect)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h <= height and 0 < w <= width:
                y, x = rng.integers([height - h, width - w], endpoint=True)
                return int(x), int(y), int(x + w), int(y + h)
        return 0, 0, width, height

    def _resized(self, image, height, width):
        return np.asarray(image.resize((width, height), decode.filter_of(self.resize)))
