"""Degradations of pictures u8[H,W,3] at their own size, before they are resized: DI-REID's and a few more.

Down-sampled pictures stay small. See degrade_device for batches on the device.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from reid_jax.config import choice
from reid_jax.errors import ConfigError

KINDS = ("res", "ill", "jpeg", "blur", "noise")
HEIGHT = 256  # of the picture that blur radii are given for


class Ranges(NamedTuple):
    """What `draw` draws from, uniformly; DI-REID's (its paper's for `ratio`, its code's for the others)."""

    ratio: tuple[float, float] = (2.0, 4.0)
    gamma: tuple[float, float] = (2.0, 3.5)
    gain: tuple[float, float] = (0.75, 1.0)
    quality: tuple[float, float] = (10, 20)
    radius: tuple[float, float] = (3, 6)
    deviation: tuple[float, float] = (10, 10)


DEFAULT = Ranges()
_LOWEST = dict(ratio=1, gamma=0, gain=0, quality=1, radius=0, deviation=0)


class Settings(NamedTuple):
    """config.data.degrade, checked."""

    kind: str = "res"
    share: float = 0.0
    ranges: Ranges = DEFAULT

    @classmethod
    def of(cls, section):
        """From the config; ConfigError naming the field that is out of its range."""
        choice("data.degrade.kind", section.kind, KINDS)
        ranges = Ranges(**{n: tuple(getattr(section, n)) for n in Ranges._fields})
        for name, (low, high) in ranges._asdict().items():
            if not _LOWEST[name] <= low <= high:
                raise ConfigError(
                    f"config.data.degrade.{name} is ({low}, {high}); it goes up from {_LOWEST[name]} or more"
                )
        if not 0 <= section.share <= 1:
            raise ConfigError(f"config.data.degrade.share is {section.share}; it is a probability")
        return cls(section.kind, section.share, ranges)

    def draw(self, rng, picture):
        """A degraded version of a picture, see `draw`."""
        return draw(rng, picture, self.kind, self.ranges)


def draw(rng, picture, kind, ranges=DEFAULT):
    """A degraded version u8[h,w,3] of a picture u8[H,W,3], the strength drawn from rng (a numpy Generator).

    kind: res (down-sampled) | ill (dark) | jpeg | blur | noise. Raises ConfigError for another.
    """
    choice("data.degrade.kind", kind, KINDS)
    if kind == "res":
        return shrink(picture, rng.uniform(*ranges.ratio))
    if kind == "ill":
        return darken(picture, rng.uniform(*ranges.gamma), rng.uniform(*ranges.gain))
    if kind == "jpeg":
        return compress(picture, round(rng.uniform(*ranges.quality)))
    if kind == "blur":
        return blur(picture, rng.uniform(*ranges.radius))
    return add_noise(rng, picture, rng.uniform(*ranges.deviation))


def shrink(picture, ratio):
    """Down-sampled by `ratio`: bilinear with antialiasing, sides rounded down (at least 1)."""
    height, width = (max(1, int(side / ratio)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def enlarge(picture, height, width):
    """Resized to height x width, bicubic."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def darkening(gamma, gain):
    """Table of 256 levels: v -> trunc(255.999 gain (v / 255)^gamma)."""
    return [int(255.999 * gain * (v / 255) ** gamma) for v in range(256)]


def darken(picture, gamma, gain):
    """Every level through the table of `darkening`."""
    return np.array(darkening(gamma, gain), np.uint8)[picture]


def compress(picture, quality):
    """Written as JPEG of a quality (1 to 95) and read again."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def blur(picture, radius):
    """Gaussian blur; radius: standard deviation in pixels of a picture 256 high."""
    filter = ImageFilter.GaussianBlur(radius * picture.shape[0] / HEIGHT)
    return np.asarray(Image.fromarray(picture).filter(filter))


def add_noise(rng, picture, deviation):
    """Gaussian noise, deviation in levels of 255."""
    noisy = picture + deviation * rng.standard_normal(picture.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
