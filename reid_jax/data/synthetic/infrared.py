"""People in visible and infrared light in SYSU-MM01's folders; cameras 3 and 6 of its six are infrared.

An infrared picture has one channel. Cloth of any dye reflects near infrared alike, so that colours that tell
people apart by day come close to each other: what is bright or dark stays, compressed, and a lamp beside the
lens lights the middle. Each picture is that of the image set with the same seed, seen so.
"""

from typing import NamedTuple

import numpy as np

from reid_jax.data.synthetic.camera import environment

CAMERAS = 6
INFRARED = (2, 5)  # counted from 0
_MIX = (0.55, 0.3, 0.15)  # of red, green and blue in the one channel
_GRAIN = 10  # name of a random stream


class Shot(NamedTuple):
    """One picture: identity, 0-based camera, number within both."""

    split: str
    pid: int
    cam: int
    n: int

    @property
    def path(self):
        """cam3/0001/0001.jpg."""
        return f"cam{self.cam + 1}/{self.pid:04d}/{self.n + 1:04d}.jpg"


def shots(s):
    """Lists of Shots, one an identity; test: infrared ones are queries."""
    return [
        [Shot(_split(pid, cam, s), pid, cam, n) for cam in range(CAMERAS) for n in range(s["images"])]
        for pid in range(1, 1 + s["train_ids"] + s["test_ids"])
    ]


def _split(pid, cam, s):
    return "train" if pid <= s["train_ids"] else "query" if cam in INFRARED else "gallery"


def seen(picture, job, settings):
    """The picture u8[H,W,3] as an infrared camera has it; that of a visible one as it is."""
    if job.cam not in INFRARED:
        return picture
    rng = np.random.default_rng([settings["seed"], _GRAIN, job.pid, job.cam, job.n])
    grey = (picture.astype(np.float32) / 255) @ np.array(_MIX, np.float32)
    grey = 0.25 + 0.6 * grey**0.7
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in grey.shape)
    grey *= 1.1 - 0.35 * (y[:, None] ** 2 + x**2) / 2
    grey += 0.02 * rng.standard_normal(grey.shape, np.float32)
    return np.repeat((255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None], 3, -1)


def metadata(s):
    """{path: bytes} of the lists of identities: a quarter of the training ones are called validation."""
    first, last = s["train_ids"] - s["train_ids"] // 4, s["train_ids"] + s["test_ids"]
    parts = {"train": (1, first), "val": (first + 1, s["train_ids"]), "test": (s["train_ids"] + 1, last)}
    return {f"exp/{name}_id.txt": _listed(*ends) for name, ends in parts.items()}


def _listed(first, last):
    return (",".join(map(str, range(first, last + 1))) + "\n").encode()


def camera_names(s):
    """Readable names, such as 'c3 indoor, infrared'."""
    light = {cam: ", infrared" for cam in INFRARED}
    return tuple(f"c{cam + 1} {environment(cam, 0)[0]}{light.get(cam, '')}" for cam in range(CAMERAS))
