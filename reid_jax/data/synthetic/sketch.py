"""Drawing for the synthetic places: a canvas in picture heights, and textures.

Lengths are in picture heights: x runs from 0 to LONG, y from 0 (top) to TALL.
"""

import numpy as np
from PIL import Image, ImageDraw

LONG, TALL = 3.0, 1.25
_FINE = 2  # supersampling while drawing


class Sketch:
    """PIL drawing in picture heights, colours in 0..1."""

    def __init__(self, height, mode="RGB", fill=(0, 0, 0)):
        self.unit = height * _FINE
        self.shape = round(TALL * height), round(LONG * height)
        size = self.shape[1] * _FINE, self.shape[0] * _FINE
        self.image = Image.new(mode, size, self._ink(fill))
        self.draw = ImageDraw.Draw(self.image)

    @staticmethod
    def _ink(colour):
        return tuple(int(np.clip(c, 0, 1) * 255) for c in colour)

    def _at(self, points):
        return [(x * self.unit, y * self.unit) for x, y in points]

    def rect(self, x0, y0, x1, y1, colour):
        self.draw.rectangle(
            self._at(((min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1)))), self._ink(colour)
        )

    def poly(self, points, colour):
        self.draw.polygon(self._at(points), self._ink(colour))

    def oval(self, x, y, rx, ry, colour):
        self.draw.ellipse(self._at(((x - rx, y - ry), (x + rx, y + ry))), self._ink(colour))

    def line(self, points, width, colour):
        self.draw.line(self._at(points), self._ink(colour), max(1, round(width * self.unit)), joint="curve")

    def planes(self):
        """f32[3 or 4,H,W]; premultiplied when there is alpha."""
        h, w = self.shape
        out = np.asarray(self.image.resize((w, h), Image.Resampling.BOX), np.float32).transpose(2, 0, 1) / 255
        if len(out) == 4:
            out = out.copy()
            out[:3] *= out[3]
        return np.ascontiguousarray(out)


# ---- textures -------------------------------------------------------------------------------------------
def cloud(rng, shape, cells, octaves=3, stretch=1.0):
    """Smooth noise f32[shape], mean 0, deviation 1; `cells` across the height, wider by `stretch`."""
    total, gain = np.zeros(shape, np.float32), 1.0
    for _ in range(octaves):
        h = max(2, min(shape[0], round(cells)))
        w = max(2, min(shape[1], round(cells * shape[1] / shape[0] / stretch)))
        coarse = Image.fromarray(rng.standard_normal((h, w), np.float32))
        total += gain * np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))
        cells, gain = cells * 2.3, gain * 0.6
    return (total - total.mean()) / (total.std() + 1e-6)


def grids(shape, height):
    y = (np.arange(shape[0], dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(shape[1], dtype=np.float32)[None] + 0.5) / height
    return x, y


def ground(x, y, horizon):
    """World coordinates of the floor: (across, away), 1 = a body height or so at y = 1.05."""
    away = (1.05 - horizon) / np.maximum(y - horizon, 0.03)
    return (x - LONG / 2) * away * 1.1, away * 2.2


def lines(value, half):
    """1 on the joints of a unit grid."""
    return np.clip((half - np.abs(value - np.round(value))) / (0.5 * half) + 0.5, 0, 1)


def tone(image, mask, colour, amount=1.0):
    image += amount * mask * (np.asarray(colour, np.float32)[:, None, None] - image)


def glow(x, y, cx, cy, rx, ry):
    """A soft round spot f32[H,W] with peak 1."""
    return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)


def vary(rng, colour, by=0.05):
    return tuple(np.clip(np.asarray(colour) * rng.uniform(1 - by, 1 + by, 3), 0, 1))


def muted(rng):
    """A random colour of low saturation, as an array."""
    return rng.uniform(0.12, 0.7) + rng.uniform(-0.12, 0.12, 3)
