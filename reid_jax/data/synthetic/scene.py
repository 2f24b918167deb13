"""Places: a wide panorama per camera, its light, and what stands between camera and person.

Lengths as in `sketch`. People stand at y of about 1.05; what is farther away ends higher up and is smaller.
"""

from dataclasses import dataclass
from math import pi

import numpy as np
from PIL import Image

from reid_jax.data.synthetic import things
from reid_jax.data.synthetic.sketch import (
    LONG,
    TALL,
    Sketch,
    cloud,
    glow,
    grids,
    ground,
    lines,
    muted,
    tone,
    vary,
)


@dataclass(frozen=True)
class Scene:
    """Panoramas of TALL * H x LONG * H pixels: picture and its light f32[3,..] (picture not yet lit), fronts:
    premultiplied f32[4,..] of what hides people, air: flakes f32[..] or None."""

    picture: np.ndarray
    light: np.ndarray
    fronts: tuple
    air: np.ndarray | None


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
    things.facades(sk, rng, base, _STONE, (0.24, 0.29, 0.35))
    sk.rect(0, base, LONG, TALL, (0.57, 0.55, 0.52))
    sk.rect(0, base + 0.03, LONG, base + 0.21, (0.34, 0.34, 0.36))
    sk.rect(0, base + 0.205, LONG, base + 0.23, (0.70, 0.69, 0.66))
    for _ in range(4):
        things.passer(sk, rng, rng.uniform(0, LONG), base + 0.04, 0.42)
    x = rng.uniform(-0.5, 0.2)
    while x < LONG:
        if rng.random() < 0.75:
            things.car(sk, rng, x, base + 0.15, 0.92, rng.choice(things.CARS))
        x += rng.uniform(1.0, 1.5)
    for x in rng.uniform(0, LONG, 2):
        things.lamp(sk, x, base + 0.22, (0.22, 0.24, 0.25), (0.8, 0.8, 0.75))
    x = rng.uniform(0.2, LONG - 0.2)
    things.trunk(sk, rng, x, base + 0.23, 0.07, (0.30, 0.23, 0.17))
    things.leaves(
        sk, rng, x, 0.06, 0.36, 0.18, ((0.13, 0.22, 0.09), (0.2, 0.34, 0.13), (0.33, 0.47, 0.2)), 260
    )
    image = sk.planes()
    x, y = grids(sk.shape, height)
    across, away = ground(x, y, horizon)
    floor = np.clip((y - base - 0.225) * 40, 0, 1)
    joints = np.maximum(lines(across * 1.6, 0.03), lines(away * 2.2, 0.03))
    image *= 1 - 0.22 * floor * joints
    image *= 1 + 0.05 * cloud(rng, sk.shape, 5) * floor + 0.035 * cloud(rng, sk.shape, 40, 2)
    light = np.ones_like(image)
    sun = np.clip(cloud(rng, sk.shape, 1.3, 1, 0.7) * 1.5 + 0.9, 0, 1)
    light *= 0.80 + 0.28 * sun
    rails = things.fence(rng, height, (0.25, 0.27, 0.28), 0.3)
    return Scene(
        image, light, (things.hood(rng, height), things.post(rng, height, (0.35, 0.36, 0.37)), rails), None
    )


def _snow(rng, height):
    base, horizon = rng.uniform(0.42, 0.55), rng.uniform(-0.05, 0.15)
    sk = Sketch(height, fill=(0.80, 0.83, 0.87))
    things.facades(sk, rng, base, np.array(_STONE) * 0.5 + 0.33, (0.38, 0.43, 0.49), snow=True)
    sk.rect(0, base, LONG, TALL, (0.87, 0.89, 0.93))
    ridge = [(x, base + 0.02 - rng.uniform(0, 0.07)) for x in np.arange(0, LONG, 0.12)]
    sk.poly([(0, base + 0.02), *ridge, (LONG, base + 0.02)], (0.93, 0.94, 0.97))
    x = rng.uniform(-0.3, 0.6)
    while x < LONG:
        if rng.random() < 0.6:
            things.car(sk, rng, x, base + 0.12, 0.86, rng.choice(things.CARS) * 0.7 + 0.2, snow=True)
        x += rng.uniform(1.0, 1.6)
    for x in rng.uniform(0.1, LONG, 4):
        bark = (0.27, 0.24, 0.23)
        things.branch(sk, rng, x, base + 0.16, pi / 2 + rng.uniform(-0.1, 0.1), 0.24, 0.035, bark, 5)
    for _ in range(3):
        things.passer(sk, rng, rng.uniform(0, LONG), base + 0.07, 0.4)
    image = sk.planes()
    x, y = grids(sk.shape, height)
    across, away = ground(x, y, horizon)
    floor = np.clip((y - base - 0.15) * 12, 0, 1)
    bumps = cloud(rng, sk.shape, 9, 3, 2.5)
    image *= 1 + floor * (0.05 * bumps - 0.06)
    for _ in range(3):  # trodden paths: rows of dents
        lane = rng.uniform(-2.5, 2.5) + 0.15 * np.sin(away * 3)
        step = (np.sin(away * 26 + np.sign(across - lane) * 1.5) > 0.2) * (
            np.abs(np.abs(across - lane) - 0.06) < 0.04
        )
        image *= 1 - 0.16 * floor * step
    tone(image, floor * np.clip(bumps - 0.6, 0, 1), (0.72, 0.78, 0.88), 0.4)
    flakes = Sketch(height, "RGB")
    for _ in range(420):
        fx, fy, r = rng.uniform(0, LONG), rng.uniform(0, TALL), rng.uniform(0.003, 0.011)
        flakes.oval(fx, fy, r, r * rng.uniform(1, 1.8), (rng.uniform(0.5, 1),) * 3)
    air = flakes.planes()[0]
    bank = things.bank(rng, height, (0.90, 0.92, 0.95))
    return Scene(image, np.ones_like(image), (bank, things.post(rng, height, (0.33, 0.31, 0.30))), air)


def _indoor(rng, height):
    base, horizon = rng.uniform(0.60, 0.70), rng.uniform(0.0, 0.15)
    wall = vary(rng, (0.40, 0.36, 0.31), 0.12)
    sk = Sketch(height, fill=wall)
    bright = Sketch(height)  # where daylight comes through
    sk.rect(0, 0, LONG, 0.05, (0.24, 0.22, 0.2))
    x = rng.uniform(-0.1, 0.15)
    while x < LONG:
        w = rng.uniform(0.5, 0.8)
        things.glass_door(sk, bright, rng, x, base, w)
        x += w
        gap = rng.uniform(0.2, 0.34)
        sk.rect(x, 0, x + gap, base, vary(rng, wall, 0.06))
        if rng.random() < 0.6:
            sk.rect(x + 0.05, base - 0.42, x + gap - 0.05, base - 0.2, vary(rng, (0.5, 0.4, 0.3), 0.5))
        else:
            sk.rect(x + 0.07, base - 0.1, x + 0.17, base, (0.3, 0.18, 0.12))
            things.leaves(
                sk, rng, x + 0.12, base - 0.18, 0.07, 0.1, ((0.07, 0.14, 0.06), (0.12, 0.24, 0.1)), 40
            )
        x += gap
    sk.rect(0, base, LONG, TALL, (0.33, 0.31, 0.29))
    sk.rect(0, base - 0.025, LONG, base, (0.17, 0.15, 0.14))
    image, shine = sk.planes(), bright.planes()[0]
    x, y = grids(sk.shape, height)
    across, away = ground(x, y, horizon)
    floor = (y > base).astype(np.float32)
    joints = np.maximum(lines(across * 1.3, 0.02), lines(away * 1.8, 0.02))
    image *= 1 - 0.3 * floor * joints
    image *= 1 + 0.035 * cloud(rng, sk.shape, 30, 2)
    _reflect(image, shine, base, height, floor, 0.62)
    light = 0.9 + 0.35 * np.exp(-np.abs(y - base) / 0.4) * np.ones_like(image)
    return Scene(
        image,
        light.astype(np.float32),
        (things.post(rng, height, wall, 0.2), things.fence(rng, height, (0.5, 0.5, 0.52), 0.36)),
        None,
    )


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
    things.facades(sk, rng, base, np.array(_STONE) * 0.5, (0.10, 0.12, 0.16), lit=lamp_colour)
    sk.rect(0, base, LONG, TALL, (0.30, 0.31, 0.34))
    sk.rect(0, base + 0.2, LONG, base + 0.22, (0.42, 0.42, 0.45))
    for _ in range(3):
        things.passer(sk, rng, rng.uniform(0, LONG), base + 0.04, 0.42, 0.4)
    cars = []
    x = rng.uniform(-0.5, 0.4)
    while x < LONG:
        if rng.random() < 0.6:
            things.car(sk, rng, x, base + 0.15, 0.92, rng.choice(things.CARS) * 0.55, dark=0.6)
            cars.append(x + 0.92)
        x += rng.uniform(1.05, 1.5)
    image = sk.planes()
    x, y = grids(sk.shape, height)
    across, away = ground(x, y, horizon)
    floor = (y > base).astype(np.float32)
    image *= 1 + 0.08 * cloud(rng, sk.shape, 40, 2)
    wet = np.clip((image.mean(0) - 0.42) * 2.2, 0, 1) * (y < base)
    _reflect(image, wet, base, height, floor, 0.5)
    light = np.ones_like(image) * 0.85
    for cx in [*cars[:2], *rng.uniform(0.2, LONG - 0.2, 2)]:
        spot = glow(x, y, cx, base + 0.05, 0.07, 0.05) * 1.4 + 0.5 * glow(x, y, cx, base + 0.25, 0.4, 0.3)
        light += spot * np.array((1.0, 0.9, 0.7), np.float32)[:, None, None]
    return Scene(
        image,
        light.astype(np.float32),
        (things.post(rng, height, (0.2, 0.2, 0.22)), things.hood(rng, height, 0.5)),
        None,
    )


def _lamplight(rng, height):
    base, horizon = rng.uniform(0.55, 0.68), rng.uniform(-0.05, 0.1)
    wall = vary(rng, (0.60, 0.55, 0.50), 0.15)
    sk = Sketch(height, fill=wall)
    x = rng.uniform(-0.3, 0.2)
    while x < LONG:
        kind, w = rng.integers(4), rng.uniform(0.35, 0.6)
        if kind == 0:  # roller shutter
            sk.rect(x, base - 0.5, x + w, base, np.multiply(wall, 0.8))
            for y in np.arange(base - 0.49, base, 0.022):
                sk.rect(x, y, x + w, y + 0.008, np.multiply(wall, 0.6))
        elif kind == 1:
            things.door(sk, rng, x + 0.1, base, 0.2, 0.44, vary(rng, (0.3, 0.33, 0.3), 0.4))
        elif kind == 2:
            for k in range(3):  # posters
                c = muted(rng) + 0.15
                sk.rect(x + k * 0.14, base - 0.4, x + k * 0.14 + 0.12, base - 0.22, c)
                sk.rect(x + k * 0.14 + 0.02, base - 0.37, x + k * 0.14 + 0.1, base - 0.31, 1 - c)
        else:
            sk.line(((x, 0), (x, base)), 0.02, np.multiply(wall, 0.6))
            sk.rect(x + 0.1, base - 0.09, x + 0.3, base, (0.25, 0.3, 0.27))
        x += w + rng.uniform(0.05, 0.3)
    sk.rect(0, base, LONG, TALL, (0.50, 0.48, 0.46))
    sk.rect(0, base - 0.02, LONG, base, np.multiply(wall, 0.5))
    image = sk.planes()
    x, y = grids(sk.shape, height)
    across, away = ground(x, y, horizon)
    floor = (y > base).astype(np.float32)
    row = np.floor(y * 26)
    brick = np.maximum(lines(y * 26, 0.09), lines(x * 11 + 0.5 * (row % 2), 0.05))
    image *= 1 - 0.16 * (1 - floor) * brick
    cobble = np.maximum(lines(across * 5 + 0.5 * (np.floor(away * 7) % 2), 0.07), lines(away * 7, 0.07))
    image *= 1 - 0.28 * floor * cobble
    image *= 1 + 0.07 * cloud(rng, sk.shape, 6) + 0.05 * cloud(rng, sk.shape, 45, 2)
    light = np.full(image.shape, 0.42, np.float32)
    for cx in np.arange(rng.uniform(0.1, 0.5), LONG, rng.uniform(0.75, 0.95)):
        light += 0.95 * glow(x, y, cx, 0.55, 0.30, 0.75) + 0.7 * glow(x, y, cx, 0.1, 0.1, 0.12)
    return Scene(
        image,
        light,
        (things.post(rng, height, (0.26, 0.24, 0.22)), things.fence(rng, height, (0.2, 0.2, 0.2), 0.4)),
        None,
    )


def _park(rng, height):
    base = rng.uniform(0.36, 0.48)
    sk = Sketch(height, fill=(0.72, 0.79, 0.80))
    far = ((0.16, 0.24, 0.13), (0.22, 0.33, 0.16), (0.31, 0.44, 0.2), (0.42, 0.54, 0.27))
    sk.rect(0, 0.1, LONG, base, (0.2, 0.29, 0.15))
    for x in np.arange(0, LONG, 0.16):
        things.leaves(sk, rng, x, rng.uniform(0.02, 0.25), 0.16, 0.18, far, 60)
    sk.rect(0, base, LONG, TALL, (0.35, 0.47, 0.22))
    for x in np.arange(rng.uniform(0, 0.3), LONG, 0.14):
        things.leaves(sk, rng, x, base, 0.08, rng.uniform(0.03, 0.07), far[:3], 22)
    for x in rng.uniform(0, LONG, 4):
        things.trunk(
            sk, rng, x, base + rng.uniform(0.04, 0.2), rng.uniform(0.05, 0.1), vary(rng, (0.28, 0.22, 0.17))
        )
    for x in rng.uniform(0, LONG, 2):
        things.bench(sk, x, base + 0.2)
    for _ in range(3):
        things.passer(sk, rng, rng.uniform(0, LONG), base + 0.1, 0.36, 0.8)
    image = sk.planes()
    x, y = grids(sk.shape, height)
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
    bush = things.bank(rng, height, (0.2, 0.32, 0.14), leaves=far)
    return Scene(
        image, light.astype(np.float32), (bush, things.post(rng, height, (0.27, 0.21, 0.16), 0.11)), None
    )


PLACES = dict(street=_street, snow=_snow, indoor=_indoor, night=_night, lamp=_lamplight, park=_park)


def build(name, rng, height):
    """The Scene `name` (a key of PLACES), drawn with `rng` for pictures of `height` pixels."""
    scene = PLACES[name](rng, height)
    return Scene(np.clip(scene.picture, 0, 1.2), scene.light, scene.fronts, scene.air)
