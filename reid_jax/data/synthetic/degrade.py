"""Low-resolution and low-light pictures in DI-REID's folders, {train,query,gallery}/0020/00020_c0_00000.jpg.

lowres is like MLR-VIPeR: camera 0 is down-sampled by 2, 3 or 4, drawn per picture, and stored small. caviar
is like CAVIAR4REID: camera 0 is a poor one, with its own blur, noise, compression and any ratio. lowlight:
half of the training pictures and all queries are dark and noisy, of every camera. The degradation of each
picture is written to degradation.csv. Each picture is that of the image set with the same seed, degraded.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from reid_jax.data.degrade import Ranges, darkening
from reid_jax.data.synthetic.camera import ENVIRONMENTS

TABLE = "degradation.csv"
RATIOS = (2, 3, 4)
_RANGES = Ranges()
_LEVEL, _GRAIN = 8, 9  # names of random streams


class Shot(NamedTuple):
    """One picture: `pid` as in the file name, 0-based `cam`, number `n` within pid and camera."""

    split: str
    pid: int
    cam: int
    n: int

    @property
    def path(self):
        """train/0020/00020_c0_00000.jpg."""
        return f"{self.split}/{self.pid:04d}/{self.pid:05d}_c{self.cam}_{self.n:05d}.jpg"


class Level(NamedTuple):
    """How far a picture is degraded; the defaults are a clean one."""

    ratio: float = 1.0  # of the sides, before to after
    gamma: float = 1.0
    gain: float = 1.0
    blur: float = 0.0  # deviation, pixels of the large picture
    noise: float = 0.0  # deviation, levels of 255, at full brightness


def shots(s):
    """Lists of Shots for the settings `s`, one list an identity. Test: degraded ones are queries."""
    groups = []
    for pid in range(1, 1 + s["train_ids"] + s["test_ids"]):
        train = pid <= s["train_ids"]
        group = []
        for cam in range(s["cameras"]):
            for n in range(s["images"]):
                query = n == 0 if s["kind"] == "lowlight" else cam == 0
                group.append(Shot("train" if train else "query" if query else "gallery", pid, cam, n))
        groups.append(group)
    return groups


def level_of(shot, s):
    """The Level of a Shot, a function of kind, seed, identity, camera and number alone."""
    rng = np.random.default_rng([s["seed"], _LEVEL, shot.pid, shot.cam, shot.n])
    if s["kind"] == "lowlight":
        if shot.split == "gallery" or (shot.split == "train" and rng.random() < 0.5):
            return Level()
        return Level(
            gamma=_uniform(rng, *_RANGES.gamma),
            gain=_uniform(rng, *_RANGES.gain),
            noise=_uniform(rng, 3, 8),
        )
    if shot.cam:
        return Level()
    if s["kind"] == "lowres":
        return Level(ratio=float(rng.choice(RATIOS)))
    return Level(ratio=_uniform(rng, 2, 4.5), blur=_uniform(rng, 0.6, 1.5), noise=_uniform(rng, 2, 6))


def _uniform(rng, low, high):
    return round(float(rng.uniform(low, high)), 4)  # as the table prints it


def degrade(picture, shot, s):
    """The degraded u8[h,w,3] of a picture u8[H,W,3]; h, w are H, W divided by the ratio and rounded."""
    level = level_of(shot, s)
    rng = np.random.default_rng([s["seed"], _GRAIN, shot.pid, shot.cam, shot.n])
    image = Image.fromarray(picture)
    if level.blur:
        image = image.filter(ImageFilter.GaussianBlur(level.blur * picture.shape[0] / 128))
    if level.ratio > 1:
        size = [max(1, round(side / level.ratio)) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    if level.gamma > 1:
        image = image.point(darkening(level.gamma, level.gain) * 3)
    values = np.asarray(image)
    if level.noise:
        values = _noisy(rng, values, level.noise)
    return values


def jpeg(shot, s):
    """Options of the JPEG writer: hardly any further loss, but for the poor camera's own."""
    if s["kind"] == "caviar" and shot.cam == 0:
        return dict(quality=80)
    return dict(quality=95, subsampling=0)


def _noisy(rng, values, deviation):
    """Sensor noise: its variance has a constant part and one that grows with the light."""
    light = values.astype(np.float32)
    spread = deviation * np.sqrt(0.15 + 0.85 * light / 255)
    noise = rng.standard_normal(light.shape, np.float32) + 0.5 * rng.standard_normal(
        (*light.shape[:2], 1), np.float32
    )
    return np.clip(np.rint(light + spread * noise), 0, 255).astype(np.uint8)


def metadata(s):
    """{path: bytes}: the table of degradations."""
    lines = [",".join(("path", *Level._fields))]
    for group in shots(s):
        lines += [",".join((shot.path, *(f"{v:g}" for v in level_of(shot, s)))) for shot in group]
    return {TABLE: ("\n".join(lines) + "\n").encode()}


def camera_names(s):
    """Readable names of the cameras: tuple of str such as 'c0 street low'."""
    low = "" if s["kind"] == "lowlight" else " low"
    places = [ENVIRONMENTS[i % len(ENVIRONMENTS)] for i in range(s["cameras"])]
    return tuple(f"c{i} {place}{'' if i else low}" for i, place in enumerate(places))
