"""A model of pure numpy for tests of the gallery, its commands and its page: small pictures to unit rows."""

import io

import numpy as np
from PIL import Image

from reid_jax.errors import PictureError
from reid_jax.serve import search


class Stub:
    """The mean colours of 2 x 4 fields of a picture, centred: f32[N,24]."""

    dim, hash = 24, "5" * 64
    card = {"thresholds": {"fpir": [[0.5, 0.2, 0.9], [0.1, 0.6, 0.8], [0.01, 0.9, 0.5]]}}

    def __init__(self):
        self.broken = {}

    def __call__(self, pictures, on_broken="stop"):
        rows, self.broken = [], {}
        for i, picture in enumerate(pictures):
            try:
                rows.append(self.feature(picture))
            except (OSError, ValueError) as error:
                if on_broken == "stop":
                    why = f"{picture} cannot be read: {error}"
                    raise PictureError(f"picture {i}: {why}; on_broken='nan'", i, why) from error
                self.broken[i] = str(error)
                rows.append(np.full(self.dim, np.nan))
        return search.unit(np.array(rows).reshape(-1, self.dim))

    def feature(self, picture):
        """f64[24] of one picture: a path, bytes or u8[h,w,3]."""
        if isinstance(picture, bytes):
            picture = io.BytesIO(picture)
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else Image.open(picture)
        pixels = np.asarray(image.convert("RGB").resize((2, 4), Image.Resampling.BOX), float)
        return pixels.ravel() - 117.5


class Other(Stub):
    """Another model of as many numbers."""

    hash = "6" * 64


def picture(person, number=0):
    """u8[16,8,3]: eight fields in a person's colours, and a little noise by number."""
    colours = np.random.default_rng(person).integers(20, 236, (4, 2, 3))
    noise = np.random.default_rng([person, number]).integers(-12, 13, (16, 8, 3))
    return (np.kron(colours, np.ones((4, 4, 1), int)) + noise).clip(0, 255).astype(np.uint8)


def jpeg(pixels, kind="PNG"):
    """The bytes of a picture's file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def folder(root, persons=6, cameras=("door", "yard", "hall")):
    """Writes pictures root/CAMERA/personNN_0.png; returns their paths, cameras and persons."""
    paths, seen, names = [], [], []
    for number, camera in enumerate(cameras):
        (root / camera).mkdir(parents=True)
        for person in range(persons):
            path = root / camera / f"person{person:02d}_0.png"
            path.write_bytes(jpeg(picture(person, number)))
            paths.append(str(path))
            seen.append(camera)
            names.append(f"person{person:02d}")
    return paths, seen, names
