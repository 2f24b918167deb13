"""Places: a wide panorama per camera, its light, and things that stand between camera and person.

Lengths are in picture heights: x runs from 0 to LONG, y from 0 (top) to TALL. People stand at y of about
1.05; what is farther away ends higher up and is smaller.
"""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

LONG, TALL = 3.0, 1.25
_FINE = 2  # supersampling while drawing


@dataclass(frozen=True)
class Scene:
    """Panoramas of TALL * H x LONG * H pixels: picture and its light f32[3,..] (picture not yet lit), fronts:
    premultiplied f32[4,..] of what hides people, air: flakes f32[..] or None."""

    picture: np.ndarray
    light: np.ndarray
    fronts: tuple
    air: np.ndarray | None


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


def _grids(shape, height):
    y = (np.arange(shape[0], dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(shape[1], dtype=np.float32)[None] + 0.5) / height
    return x, y


def _ground(x, y, horizon):
    """World coordinates of the floor: (across, away), 1 = a body height or so at y = 1.05."""
    away = (1.05 - horizon) / np.maximum(y - horizon, 0.03)
    return (x - LONG / 2) * away * 1.1, away * 2.2


def _lines(value, half):
    """1 on the joints of a unit grid."""
    return np.clip((half - np.abs(value - np.round(value))) / (0.5 * half) + 0.5, 0, 1)


def _tone(image, mask, colour, amount=1.0):
    image += amount * mask * (np.asarray(colour, np.float32)[:, None, None] - image)


def glow(x, y, cx, cy, rx, ry):
    """A soft round spot f32[H,W] with peak 1."""
    return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)


def _vary(rng, colour, by=0.05):
    return tuple(np.clip(np.asarray(colour) * rng.uniform(1 - by, 1 + by, 3), 0, 1))


def _muted(rng):
    """A random colour of low saturation, as an array."""
    return rng.uniform(0.12, 0.7) + rng.uniform(-0.12, 0.12, 3)


# ---- things ---------------------------------------------------------------------------------------------
def _windows(sk, rng, x0, x1, y0, y1, glass, frame, pitch=0.16, lit=None):
    w, h = pitch * 0.55, pitch * 0.8
    for y in np.arange(y0 + 0.02, y1 - h, pitch * 1.15):
        for x in np.arange(x0 + 0.03, x1 - w, pitch):
            sk.rect(x - 0.008, y - 0.008, x + w + 0.008, y + h + 0.012, frame)
            bright = lit is not None and rng.random() < 0.4
            sk.rect(x, y, x + w, y + h, _vary(rng, lit if bright else glass, 0.12))
            sk.line(((x + w / 2, y), (x + w / 2, y + h)), 0.006, frame)
            if not bright:
                sk.poly(
                    ((x, y + h * 0.6), (x + w * 0.6, y), (x + w, y), (x, y + h)),
                    _vary(rng, np.add(glass, 0.07)),
                )


def _door(sk, rng, x, base, w, h, colour):
    sk.rect(x - 0.012, base - h - 0.012, x + w + 0.012, base, np.multiply(colour, 0.55))
    sk.rect(x, base - h, x + w, base, colour)
    sk.rect(x + w * 0.15, base - h * 0.9, x + w * 0.85, base - h * 0.55, np.multiply(colour, 0.6))
    sk.oval(x + w * 0.86, base - h * 0.45, 0.006, 0.006, (0.8, 0.75, 0.5))


def _facades(sk, rng, base, colours, glass, lit=None, snow=False):
    """A row of houses whose walls end on the ground at y = base."""
    x = -rng.uniform(0, 0.3)
    while x < LONG:
        w = rng.uniform(0.4, 0.85)
        wall = _vary(rng, colours[int(rng.integers(len(colours)))], 0.08)
        sk.rect(x, 0, x + w, base, wall)
        shop = rng.random() < 0.55
        top = base - rng.uniform(0.34, 0.42)
        _windows(sk, rng, x, x + w, -0.1, top - 0.04, glass, np.multiply(wall, 1.2), lit=lit)
        sk.rect(x, top - 0.03, x + w, top - 0.015, np.multiply(wall, 0.7))
        if shop:
            sign = (
                colours[int(rng.integers(len(colours)))]
                if lit is None
                else np.multiply(lit, rng.uniform(0.3, 1, 3))
            )
            sk.rect(x + 0.03, top, x + w - 0.03, top + 0.055, np.multiply(sign, rng.uniform(0.5, 1)))
            for k in np.arange(x + 0.07, x + w - 0.12, 0.035):
                sk.rect(k, top + 0.015, k + rng.uniform(0.01, 0.025), top + 0.04, np.add(sign, 0.3))
            pane = glass if lit is None or rng.random() < 0.5 else lit
            sk.rect(x + 0.04, top + 0.07, x + w - 0.04, base - 0.05, np.multiply(pane, 0.8))
            for k in np.linspace(x + 0.04, x + w - 0.04, 4):
                sk.line(((k, top + 0.07), (k, base - 0.05)), 0.012, np.multiply(wall, 0.5))
            _goods(sk, rng, x + 0.06, x + w - 0.06, top + 0.12, base - 0.05, pane)
        else:
            _door(
                sk, rng, x + w * rng.uniform(0.1, 0.6), base, 0.14, 0.3, _vary(rng, (0.35, 0.22, 0.14), 0.5)
            )
            _windows(
                sk, rng, x + 0.02, x + w, top + 0.05, base - 0.07, glass, np.multiply(wall, 1.2), lit=lit
            )
        if snow:
            sk.rect(x, top - 0.045, x + w, top - 0.025, (0.93, 0.95, 0.97))
        sk.rect(x, base - 0.035, x + w, base, np.multiply(wall, 0.6))
        x += w


def _goods(sk, rng, x0, x1, y0, y1, pane):
    for x in np.arange(x0, x1, 0.055):
        h = rng.uniform(0.3, 0.95) * (y1 - y0) * 0.7
        sk.rect(
            x,
            y1 - h,
            x + rng.uniform(0.02, 0.05),
            y1,
            np.multiply(pane, 0.4) + rng.uniform(0, 0.3, 3) * np.mean(pane),
        )


def _car(sk, rng, x, base, size, colour, dark=1.0, snow=False):
    """Side view of a parked car, `size` long, wheels on y = base."""

    def at(*points):
        return [(x + px * size, base - py * size) for px, py in points]

    glass = np.multiply((0.16, 0.19, 0.23), dark)
    sk.oval(x + 0.5 * size, base, 0.52 * size, 0.03 * size, np.multiply((0.10, 0.10, 0.11), dark))
    body = at(
        (0, 0.07),
        (0.01, 0.19),
        (0.16, 0.22),
        (0.30, 0.34),
        (0.66, 0.34),
        (0.80, 0.22),
        (0.98, 0.19),
        (1, 0.07),
    )
    sk.poly(body, colour)
    sk.poly(at((0, 0.07), (0.0, 0.13), (1, 0.13), (1, 0.07)), np.multiply(colour, 0.7))
    sk.poly(at((0.20, 0.22), (0.31, 0.32), (0.47, 0.32), (0.47, 0.22)), glass)
    sk.poly(at((0.49, 0.22), (0.49, 0.32), (0.65, 0.32), (0.76, 0.22)), glass)
    sk.line(at((0.02, 0.19), (0.98, 0.19)), 0.006, np.add(colour, 0.12))
    for wheel in (0.2, 0.79):
        sk.oval(
            x + wheel * size, base - 0.07 * size, 0.078 * size, 0.078 * size, np.multiply((0.07,) * 3, dark)
        )
        sk.oval(
            x + wheel * size,
            base - 0.07 * size,
            0.045 * size,
            0.045 * size,
            np.multiply((0.6, 0.6, 0.62), dark),
        )
    sk.oval(x + 0.985 * size, base - 0.16 * size, 0.015 * size, 0.02 * size, (0.95, 0.93, 0.85))
    sk.oval(x + 0.012 * size, base - 0.16 * size, 0.012 * size, 0.02 * size, (0.7, 0.1, 0.08))
    if snow:
        white = (0.92, 0.94, 0.97)
        sk.poly(at((0.29, 0.33), (0.33, 0.38), (0.63, 0.38), (0.67, 0.33)), white)
        sk.poly(at((0.8, 0.21), (0.82, 0.235), (0.96, 0.205), (0.98, 0.185)), white)


def _branch(sk, rng, x, y, angle, length, width, colour, depth):
    ex, ey = x + length * cos(angle), y - length * sin(angle)
    sk.line(((x, y), (ex, ey)), width, colour)
    if depth:
        for _ in range(int(rng.integers(2, 4))):
            turn = angle + rng.uniform(-0.7, 0.7)
            _branch(sk, rng, ex, ey, turn, length * rng.uniform(0.6, 0.8), width * 0.6, colour, depth - 1)


def _trunk(sk, rng, x, base, width, colour):
    sk.poly(((x - width * 0.8, base), (x - width / 2, base - 0.1), (x - width / 2, 0), (x + width / 2, 0),
             (x + width / 2, base - 0.1), (x + width * 0.8, base)), colour)  # fmt: skip
    sk.rect(x + width * 0.1, 0, x + width / 2, base - 0.05, np.multiply(colour, 0.7))


def _leaves(sk, rng, x, y, rx, ry, colours, count):
    for i in range(count):
        a, r = rng.uniform(0, 2 * pi), rng.uniform(0, 1) ** 0.6
        shade = colours[min(len(colours) - 1, int(i / count * len(colours)))]
        px, py = x + rx * r * cos(a), y + ry * r * sin(a)
        sk.oval(px, py, *rng.uniform(0.012, 0.045, 2), _vary(rng, shade, 0.15))


def _lamp(sk, x, base, colour, glass):
    sk.rect(x - 0.012, base - 0.03, x + 0.012, base, colour)
    sk.line(((x, base), (x, 0.06), (x + 0.06, 0.03), (x + 0.1, 0.03)), 0.012, colour)
    sk.oval(x + 0.11, 0.035, 0.03, 0.014, glass)


def _passer(sk, rng, x, base, size, dark=1.0):
    """A small figure far away."""
    top, low = (np.multiply(_muted(rng), dark) for _ in range(2))
    lean = rng.uniform(-0.06, 0.06) * size
    for side in (-1, 1):
        sk.line(
            ((x, base - 0.5 * size), (x + side * 0.08 * size + lean, base)),
            0.085 * size,
            np.multiply(low, 0.7),
        )
        sk.line(
            ((x + side * 0.1 * size, base - 0.8 * size), (x + side * 0.14 * size, base - 0.5 * size)),
            0.06 * size,
            top,
        )
    sk.poly([(x + dx * size, base - dy * size) for dx, dy in
             ((-0.12, 0.82), (0.12, 0.82), (0.1, 0.47), (-0.1, 0.47))], top)  # fmt: skip
    sk.oval(x, base - 0.91 * size, 0.055 * size, 0.07 * size, np.multiply((0.62, 0.47, 0.38), dark))
    sk.oval(x, base - 0.95 * size, 0.056 * size, 0.045 * size, np.multiply((0.12, 0.1, 0.09), dark))


# ---- places ---------------------------------------------------------------------------------------------
_STONE = (
    (0.62, 0.56, 0.48),
    (0.55, 0.30, 0.24),
    (0.70, 0.67, 0.60),
    (0.45, 0.47, 0.50),
    (0.72, 0.60, 0.44),
    (0.36, 0.42, 0.46),
)


def _street(rng, height):
    base, horizon = rng.uniform(0.50, 0.62), rng.uniform(-0.1, 0.12)
    sk = Sketch(height, fill=(0.6, 0.7, 0.8))
    _facades(sk, rng, base, _STONE, (0.24, 0.29, 0.35))
    sk.rect(0, base, LONG, TALL, (0.57, 0.55, 0.52))
    sk.rect(0, base + 0.03, LONG, base + 0.21, (0.34, 0.34, 0.36))
    sk.rect(0, base + 0.205, LONG, base + 0.23, (0.70, 0.69, 0.66))
    for _ in range(4):
        _passer(sk, rng, rng.uniform(0, LONG), base + 0.04, 0.42)
    x = rng.uniform(-0.5, 0.2)
    while x < LONG:
        if rng.random() < 0.75:
            _car(sk, rng, x, base + 0.15, 0.92, rng.choice(_CARS))
        x += rng.uniform(1.0, 1.5)
    for x in rng.uniform(0, LONG, 2):
        _lamp(sk, x, base + 0.22, (0.22, 0.24, 0.25), (0.8, 0.8, 0.75))
    x = rng.uniform(0.2, LONG - 0.2)
    _trunk(sk, rng, x, base + 0.23, 0.07, (0.30, 0.23, 0.17))
    _leaves(sk, rng, x, 0.06, 0.36, 0.18, ((0.13, 0.22, 0.09), (0.2, 0.34, 0.13), (0.33, 0.47, 0.2)), 260)
    image = sk.planes()
    x, y = _grids(sk.shape, height)
    across, away = _ground(x, y, horizon)
    floor = np.clip((y - base - 0.225) * 40, 0, 1)
    joints = np.maximum(_lines(across * 1.6, 0.03), _lines(away * 2.2, 0.03))
    image *= 1 - 0.22 * floor * joints
    image *= 1 + 0.05 * cloud(rng, sk.shape, 5) * floor + 0.035 * cloud(rng, sk.shape, 40, 2)
    light = np.ones_like(image)
    sun = np.clip(cloud(rng, sk.shape, 1.3, 1, 0.7) * 1.5 + 0.9, 0, 1)
    light *= 0.80 + 0.28 * sun
    rails = _fence(rng, height, (0.25, 0.27, 0.28), 0.3)
    return Scene(image, light, (_hood(rng, height), _post(rng, height, (0.35, 0.36, 0.37)), rails), None)


_CARS = np.array(
    (
        (0.72, 0.73, 0.75),
        (0.12, 0.12, 0.14),
        (0.5, 0.1, 0.1),
        (0.15, 0.22, 0.38),
        (0.82, 0.82, 0.8),
        (0.35, 0.37, 0.38),
    )
)


def _snow(rng, height):
    base, horizon = rng.uniform(0.42, 0.55), rng.uniform(-0.05, 0.15)
    sk = Sketch(height, fill=(0.80, 0.83, 0.87))
    _facades(sk, rng, base, np.array(_STONE) * 0.5 + 0.33, (0.38, 0.43, 0.49), snow=True)
    sk.rect(0, base, LONG, TALL, (0.87, 0.89, 0.93))
    ridge = [(x, base + 0.02 - rng.uniform(0, 0.07)) for x in np.arange(0, LONG, 0.12)]
    sk.poly([(0, base + 0.02), *ridge, (LONG, base + 0.02)], (0.93, 0.94, 0.97))
    x = rng.uniform(-0.3, 0.6)
    while x < LONG:
        if rng.random() < 0.6:
            _car(sk, rng, x, base + 0.12, 0.86, rng.choice(_CARS) * 0.7 + 0.2, snow=True)
        x += rng.uniform(1.0, 1.6)
    for x in rng.uniform(0.1, LONG, 4):
        bark = (0.27, 0.24, 0.23)
        _branch(sk, rng, x, base + 0.16, pi / 2 + rng.uniform(-0.1, 0.1), 0.24, 0.035, bark, 5)
    for _ in range(3):
        _passer(sk, rng, rng.uniform(0, LONG), base + 0.07, 0.4)
    image = sk.planes()
    x, y = _grids(sk.shape, height)
    across, away = _ground(x, y, horizon)
    floor = np.clip((y - base - 0.15) * 12, 0, 1)
    bumps = cloud(rng, sk.shape, 9, 3, 2.5)
    image *= 1 + floor * (0.05 * bumps - 0.06)
    for _ in range(3):  # trodden paths: rows of dents
        lane = rng.uniform(-2.5, 2.5) + 0.15 * np.sin(away * 3)
        step = (np.sin(away * 26 + np.sign(across - lane) * 1.5) > 0.2) * (
            np.abs(np.abs(across - lane) - 0.06) < 0.04
        )
        image *= 1 - 0.16 * floor * step
    _tone(image, floor * np.clip(bumps - 0.6, 0, 1), (0.72, 0.78, 0.88), 0.4)
    flakes = Sketch(height, "RGB")
    for _ in range(420):
        fx, fy, r = rng.uniform(0, LONG), rng.uniform(0, TALL), rng.uniform(0.003, 0.011)
        flakes.oval(fx, fy, r, r * rng.uniform(1, 1.8), (rng.uniform(0.5, 1),) * 3)
    air = flakes.planes()[0]
    bank = _bank(rng, height, (0.90, 0.92, 0.95))
    return Scene(image, np.ones_like(image), (bank, _post(rng, height, (0.33, 0.31, 0.30))), air)


def _indoor(rng, height):
    base, horizon = rng.uniform(0.60, 0.70), rng.uniform(0.0, 0.15)
    wall = _vary(rng, (0.40, 0.36, 0.31), 0.12)
    sk = Sketch(height, fill=wall)
    bright = Sketch(height)  # where daylight comes through
    sk.rect(0, 0, LONG, 0.05, (0.24, 0.22, 0.2))
    x = rng.uniform(-0.1, 0.15)
    while x < LONG:
        w = rng.uniform(0.5, 0.8)
        _glass_door(sk, bright, rng, x, base, w)
        x += w
        gap = rng.uniform(0.2, 0.34)
        sk.rect(x, 0, x + gap, base, _vary(rng, wall, 0.06))
        if rng.random() < 0.6:
            sk.rect(x + 0.05, base - 0.42, x + gap - 0.05, base - 0.2, _vary(rng, (0.5, 0.4, 0.3), 0.5))
        else:
            sk.rect(x + 0.07, base - 0.1, x + 0.17, base, (0.3, 0.18, 0.12))
            _leaves(sk, rng, x + 0.12, base - 0.18, 0.07, 0.1, ((0.07, 0.14, 0.06), (0.12, 0.24, 0.1)), 40)
        x += gap
    sk.rect(0, base, LONG, TALL, (0.33, 0.31, 0.29))
    sk.rect(0, base - 0.025, LONG, base, (0.17, 0.15, 0.14))
    image, shine = sk.planes(), bright.planes()[0]
    x, y = _grids(sk.shape, height)
    across, away = _ground(x, y, horizon)
    floor = (y > base).astype(np.float32)
    joints = np.maximum(_lines(across * 1.3, 0.02), _lines(away * 1.8, 0.02))
    image *= 1 - 0.3 * floor * joints
    image *= 1 + 0.035 * cloud(rng, sk.shape, 30, 2)
    _reflect(image, shine, base, height, floor, 0.62)
    light = 0.9 + 0.35 * np.exp(-np.abs(y - base) / 0.4) * np.ones_like(image)
    return Scene(
        image,
        light.astype(np.float32),
        (_post(rng, height, wall, 0.2), _fence(rng, height, (0.5, 0.5, 0.52), 0.36)),
        None,
    )


def _glass_door(sk, bright, rng, x, base, w):
    sky = np.array((0.97, 0.98, 1.0))
    sk.rect(x, 0.05, x + w, base, (0.14, 0.13, 0.13))
    panes = int(rng.integers(2, 4))
    for k in range(panes):
        a, b = x + 0.02 + k * (w - 0.02) / panes, x + (k + 1) * (w - 0.02) / panes
        for top, low in ((0.07, base - 0.46), (base - 0.44, base - 0.04)):
            if low - top < 0.03:
                continue
            sk.rect(a, top, b, low, sky)
            bright.rect(a, top, b, low, (1, 1, 1))
        sk.rect(a, base - 0.16, b, base - 0.04, sky * 0.86)
        if rng.random() < 0.4:
            _passer(sk, rng, (a + b) / 2, base - 0.05, 0.3)
        sk.rect(b - 0.035, base - 0.28, b - 0.028, base - 0.17, (0.3, 0.3, 0.3))


def _reflect(image, shine, base, height, floor, gain):
    """Bright panes mirrored and smeared in a polished floor."""
    row = round(base * height)
    depth = min(row, image.shape[1] - row)
    mirror = np.zeros_like(shine)
    mirror[row : row + depth] = shine[row - depth : row][::-1]
    wide = Image.fromarray(mirror).resize(
        (mirror.shape[1], max(2, mirror.shape[0] // 8)), Image.Resampling.BOX
    )
    soft = np.asarray(wide.resize(mirror.shape[::-1], Image.Resampling.BILINEAR))
    fade = np.linspace(1.2, 0.3, image.shape[1] - row, dtype=np.float32)
    soft = soft.copy()
    soft[row:] *= fade[:, None]
    image += gain * floor * soft


def _night(rng, height):
    base, horizon = rng.uniform(0.50, 0.60), rng.uniform(-0.05, 0.1)
    sk = Sketch(height, fill=(0.1, 0.12, 0.2))
    lamp_colour = (1.0, 0.82, 0.5)
    _facades(sk, rng, base, np.array(_STONE) * 0.5, (0.10, 0.12, 0.16), lit=lamp_colour)
    sk.rect(0, base, LONG, TALL, (0.30, 0.31, 0.34))
    sk.rect(0, base + 0.2, LONG, base + 0.22, (0.42, 0.42, 0.45))
    for _ in range(3):
        _passer(sk, rng, rng.uniform(0, LONG), base + 0.04, 0.42, 0.4)
    cars = []
    x = rng.uniform(-0.5, 0.4)
    while x < LONG:
        if rng.random() < 0.6:
            _car(sk, rng, x, base + 0.15, 0.92, rng.choice(_CARS) * 0.55, dark=0.6)
            cars.append(x + 0.92)
        x += rng.uniform(1.05, 1.5)
    image = sk.planes()
    x, y = _grids(sk.shape, height)
    across, away = _ground(x, y, horizon)
    floor = (y > base).astype(np.float32)
    image *= 1 + 0.08 * cloud(rng, sk.shape, 40, 2)
    wet = np.clip((image.mean(0) - 0.42) * 2.2, 0, 1) * (y < base)
    _reflect(image, wet, base, height, floor, 0.5)
    light = np.ones_like(image) * 0.85
    for cx in [*cars[:2], *rng.uniform(0.2, LONG - 0.2, 2)]:
        spot = glow(x, y, cx, base + 0.05, 0.07, 0.05) * 1.4 + 0.5 * glow(x, y, cx, base + 0.25, 0.4, 0.3)
        light += spot * np.array((1.0, 0.9, 0.7), np.float32)[:, None, None]
    return Scene(
        image, light.astype(np.float32), (_post(rng, height, (0.2, 0.2, 0.22)), _hood(rng, height, 0.5)), None
    )


def _lamplight(rng, height):
    base, horizon = rng.uniform(0.55, 0.68), rng.uniform(-0.05, 0.1)
    wall = _vary(rng, (0.60, 0.55, 0.50), 0.15)
    sk = Sketch(height, fill=wall)
    x = rng.uniform(-0.3, 0.2)
    while x < LONG:
        kind, w = rng.integers(4), rng.uniform(0.35, 0.6)
        if kind == 0:  # roller shutter
            sk.rect(x, base - 0.5, x + w, base, np.multiply(wall, 0.8))
            for y in np.arange(base - 0.49, base, 0.022):
                sk.rect(x, y, x + w, y + 0.008, np.multiply(wall, 0.6))
        elif kind == 1:
            _door(sk, rng, x + 0.1, base, 0.2, 0.44, _vary(rng, (0.3, 0.33, 0.3), 0.4))
        elif kind == 2:
            for k in range(3):  # posters
                c = _muted(rng) + 0.15
                sk.rect(x + k * 0.14, base - 0.4, x + k * 0.14 + 0.12, base - 0.22, c)
                sk.rect(x + k * 0.14 + 0.02, base - 0.37, x + k * 0.14 + 0.1, base - 0.31, 1 - c)
        else:
            sk.line(((x, 0), (x, base)), 0.02, np.multiply(wall, 0.6))
            sk.rect(x + 0.1, base - 0.09, x + 0.3, base, (0.25, 0.3, 0.27))
        x += w + rng.uniform(0.05, 0.3)
    sk.rect(0, base, LONG, TALL, (0.50, 0.48, 0.46))
    sk.rect(0, base - 0.02, LONG, base, np.multiply(wall, 0.5))
    image = sk.planes()
    x, y = _grids(sk.shape, height)
    across, away = _ground(x, y, horizon)
    floor = (y > base).astype(np.float32)
    row = np.floor(y * 26)
    brick = np.maximum(_lines(y * 26, 0.09), _lines(x * 11 + 0.5 * (row % 2), 0.05))
    image *= 1 - 0.16 * (1 - floor) * brick
    cobble = np.maximum(_lines(across * 5 + 0.5 * (np.floor(away * 7) % 2), 0.07), _lines(away * 7, 0.07))
    image *= 1 - 0.28 * floor * cobble
    image *= 1 + 0.07 * cloud(rng, sk.shape, 6) + 0.05 * cloud(rng, sk.shape, 45, 2)
    light = np.full(image.shape, 0.42, np.float32)
    for cx in np.arange(rng.uniform(0.1, 0.5), LONG, rng.uniform(0.75, 0.95)):
        light += 0.95 * glow(x, y, cx, 0.55, 0.30, 0.75) + 0.7 * glow(x, y, cx, 0.1, 0.1, 0.12)
    return Scene(
        image,
        light,
        (_post(rng, height, (0.26, 0.24, 0.22)), _fence(rng, height, (0.2, 0.2, 0.2), 0.4)),
        None,
    )


def _park(rng, height):
    base = rng.uniform(0.36, 0.48)
    sk = Sketch(height, fill=(0.72, 0.79, 0.80))
    far = ((0.16, 0.24, 0.13), (0.22, 0.33, 0.16), (0.31, 0.44, 0.2), (0.42, 0.54, 0.27))
    sk.rect(0, 0.1, LONG, base, (0.2, 0.29, 0.15))
    for x in np.arange(0, LONG, 0.16):
        _leaves(sk, rng, x, rng.uniform(0.02, 0.25), 0.16, 0.18, far, 60)
    sk.rect(0, base, LONG, TALL, (0.35, 0.47, 0.22))
    for x in np.arange(rng.uniform(0, 0.3), LONG, 0.14):
        _leaves(sk, rng, x, base, 0.08, rng.uniform(0.03, 0.07), far[:3], 22)
    for x in rng.uniform(0, LONG, 4):
        _trunk(
            sk, rng, x, base + rng.uniform(0.04, 0.2), rng.uniform(0.05, 0.1), _vary(rng, (0.28, 0.22, 0.17))
        )
    for x in rng.uniform(0, LONG, 2):
        _bench(sk, x, base + 0.2)
    for _ in range(3):
        _passer(sk, rng, rng.uniform(0, LONG), base + 0.1, 0.36, 0.8)
    image = sk.planes()
    x, y = _grids(sk.shape, height)
    grass = np.clip((y - base) * 20, 0, 1)
    image *= 1 + grass * (0.10 * cloud(rng, sk.shape, 60, 1, 0.4) + 0.10 * cloud(rng, sk.shape, 5, 2, 2))
    edge = (
        rng.uniform(0.80, 0.90)
        + 0.03 * np.sin(x * 4 + rng.uniform(0, 6))
        + 0.012 * cloud(rng, sk.shape, 14, 1)
    )
    path = np.clip((y - edge) * 30, 0, 1)
    gravel = 1 + 0.06 * cloud(rng, sk.shape, 70, 1) + 0.05 * cloud(rng, sk.shape, 6)
    image += path * (np.array((0.66, 0.60, 0.50), np.float32)[:, None, None] * gravel - image)
    dapple = np.clip(cloud(rng, sk.shape, 6, 2, 1.6) * 1.2 + 0.4, 0, 1)
    light = (0.72 + 0.36 * dapple)[None] * np.array((0.98, 1.0, 0.9), np.float32)[:, None, None]
    bush = _bank(rng, height, (0.2, 0.32, 0.14), leaves=far)
    return Scene(image, light.astype(np.float32), (bush, _post(rng, height, (0.27, 0.21, 0.16), 0.11)), None)


def _bench(sk, x, base):
    wood = (0.42, 0.28, 0.16)
    for y in (0.2, 0.165, 0.1):
        sk.rect(x, base - y, x + 0.4, base - y + 0.022, wood)
    for k in (0.04, 0.34):
        sk.rect(x + k, base - 0.2, x + k + 0.018, base, (0.15, 0.15, 0.15))


# ---- things in front of the person ------------------------------------------------------------------------
def _clear(height):
    return Sketch(height, "RGBA", (0, 0, 0, 0))


def _post(rng, height, colour, width=0.06):
    """Poles, trunks or pillars, one in most windows."""
    sk = _clear(height)
    for x in np.arange(rng.uniform(0, 0.3), LONG, 0.62):
        w = width * rng.uniform(0.8, 1.2)
        for k in range(8):  # round: darker to one side
            dim = 1.15 - 0.75 * k / 7
            sk.rect(x + k * w / 8, 0, x + (k + 1) * w / 8, TALL, (*np.multiply(colour, dim), 1.0))
    return sk.planes()


def _fence(rng, height, colour, tall):
    """Rails: a hand rail with bars, people show through."""
    sk = _clear(height)
    top = 1.12 - tall
    for x in np.arange(0, LONG, 0.11):
        sk.rect(x, top, x + 0.014, TALL, (*np.multiply(colour, 0.85), 1.0))
    for y in (top, top + tall * 0.85):
        sk.rect(0, y, LONG, y + 0.022, (*colour, 1.0))
        sk.rect(0, y, LONG, y + 0.007, (*np.add(colour, 0.12), 1.0))
    return sk.planes()


def _hood(rng, height, dim=1.0):
    """Parked cars close to the camera hide the legs."""
    sk = _clear(height)
    x = 0.0
    while x < LONG:
        c, w = rng.choice(_CARS) * dim, rng.uniform(0.5, 0.8)
        top = rng.uniform(0.84, 0.92)
        sk.poly(
            (
                (x, TALL),
                (x, top + 0.08),
                (x + 0.1, top),
                (x + w - 0.1, top),
                (x + w, top + 0.08),
                (x + w, TALL),
            ),
            (*c, 1.0),
        )
        sk.poly(
            ((x + 0.03, top + 0.05), (x + 0.1, top), (x + w - 0.1, top), (x + w - 0.03, top + 0.05)),
            (*(c + 0.12), 1.0),
        )
        sk.rect(x, top + 0.16, x + w, top + 0.175, (*(c * 0.5), 1.0))
        x += w + rng.uniform(0.2, 0.5)
    return sk.planes()


def _bank(rng, height, colour, leaves=None):
    """A heap of snow or a hedge, knee high."""
    sk = _clear(height)
    xs = np.arange(-0.1, LONG + 0.1, 0.08)
    tops = 0.95 + 0.05 * np.sin(xs * 5 + rng.uniform(0, 6)) + rng.uniform(-0.02, 0.02, len(xs))
    sk.poly([(-0.1, TALL), *zip(xs, tops, strict=True), (LONG + 0.1, TALL)], (*colour, 1.0))
    for x, y in zip(xs, tops, strict=True):
        if leaves is None:
            sk.oval(x, y + 0.06, 0.07, 0.03, (*np.multiply(colour, rng.uniform(0.93, 1.05)), 1.0))
        else:
            for _ in range(26):
                c = _vary(rng, leaves[int(rng.integers(len(leaves)))], 0.15)
                px, py = x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.015, 0.3)
                sk.oval(px, py, *rng.uniform(0.01, 0.026, 2), (*c, 1.0))
    return sk.planes()


def lone_post(rng, height):
    """One pole between camera and person, f32[4,TALL*H,0.12*H] premultiplied."""
    colour = _vary(rng, (0.32, 0.33, 0.33), 0.3)
    post = _post(rng, height, colour, rng.uniform(0.06, 0.1))
    inside = np.flatnonzero(post[3, 0] > 0)
    start = inside[np.flatnonzero(np.diff(inside, prepend=-9) > 1)[1]]  # the second one is whole
    return post[:, :, start - 1 : start + round(0.12 * height)].copy()


def lone_car(rng, height, size, base, dim=1.0):
    """A car f32[4,TALL*H,LONG*H] premultiplied: side view from x = 0.1, `size` long, wheels at y = base."""
    sk = _clear(height)
    _car(sk, rng, 0.1, base, size, rng.choice(_CARS) * dim, dark=dim)
    return sk.planes()


PLACES = dict(street=_street, snow=_snow, indoor=_indoor, night=_night, lamp=_lamplight, park=_park)


def build(name, rng, height):
    """The Scene `name` (a key of PLACES), drawn with `rng` for pictures of `height` pixels."""
    scene = PLACES[name](rng, height)
    return Scene(np.clip(scene.picture, 0, 1.2), scene.light, scene.fronts, scene.air)
