"""What stands in the synthetic places, and between camera and person."""

from math import cos, pi, sin

import numpy as np

from reid_jax.data.synthetic.sketch import (
    LONG,
    TALL,
    Sketch,
    muted,
    vary,
)

CARS = np.array(
    (
        (0.72, 0.73, 0.75),
        (0.12, 0.12, 0.14),
        (0.5, 0.1, 0.1),
        (0.15, 0.22, 0.38),
        (0.82, 0.82, 0.8),
        (0.35, 0.37, 0.38),
    )
)


def windows(sk, rng, x0, x1, y0, y1, glass, frame, pitch=0.16, lit=None):
    w, h = pitch * 0.55, pitch * 0.8
    for y in np.arange(y0 + 0.02, y1 - h, pitch * 1.15):
        for x in np.arange(x0 + 0.03, x1 - w, pitch):
            sk.rect(x - 0.008, y - 0.008, x + w + 0.008, y + h + 0.012, frame)
            bright = lit is not None and rng.random() < 0.4
            sk.rect(x, y, x + w, y + h, vary(rng, lit if bright else glass, 0.12))
            sk.line(((x + w / 2, y), (x + w / 2, y + h)), 0.006, frame)
            if not bright:
                sk.poly(
                    ((x, y + h * 0.6), (x + w * 0.6, y), (x + w, y), (x, y + h)),
                    vary(rng, np.add(glass, 0.07)),
                )


def door(sk, rng, x, base, w, h, colour):
    sk.rect(x - 0.012, base - h - 0.012, x + w + 0.012, base, np.multiply(colour, 0.55))
    sk.rect(x, base - h, x + w, base, colour)
    sk.rect(x + w * 0.15, base - h * 0.9, x + w * 0.85, base - h * 0.55, np.multiply(colour, 0.6))
    sk.oval(x + w * 0.86, base - h * 0.45, 0.006, 0.006, (0.8, 0.75, 0.5))


def facades(sk, rng, base, colours, glass, lit=None, snow=False):
    """A row of houses whose walls end on the ground at y = base."""
    x = -rng.uniform(0, 0.3)
    while x < LONG:
        w = rng.uniform(0.4, 0.85)
        wall = vary(rng, colours[int(rng.integers(len(colours)))], 0.08)
        sk.rect(x, 0, x + w, base, wall)
        shop = rng.random() < 0.55
        top = base - rng.uniform(0.34, 0.42)
        windows(sk, rng, x, x + w, -0.1, top - 0.04, glass, np.multiply(wall, 1.2), lit=lit)
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
            goods(sk, rng, x + 0.06, x + w - 0.06, top + 0.12, base - 0.05, pane)
        else:
            door(sk, rng, x + w * rng.uniform(0.1, 0.6), base, 0.14, 0.3, vary(rng, (0.35, 0.22, 0.14), 0.5))
            windows(sk, rng, x + 0.02, x + w, top + 0.05, base - 0.07, glass, np.multiply(wall, 1.2), lit=lit)
        if snow:
            sk.rect(x, top - 0.045, x + w, top - 0.025, (0.93, 0.95, 0.97))
        sk.rect(x, base - 0.035, x + w, base, np.multiply(wall, 0.6))
        x += w


def goods(sk, rng, x0, x1, y0, y1, pane):
    for x in np.arange(x0, x1, 0.055):
        h = rng.uniform(0.3, 0.95) * (y1 - y0) * 0.7
        sk.rect(
            x,
            y1 - h,
            x + rng.uniform(0.02, 0.05),
            y1,
            np.multiply(pane, 0.4) + rng.uniform(0, 0.3, 3) * np.mean(pane),
        )


def car(sk, rng, x, base, size, colour, dark=1.0, snow=False):
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


def branch(sk, rng, x, y, angle, length, width, colour, depth):
    ex, ey = x + length * cos(angle), y - length * sin(angle)
    sk.line(((x, y), (ex, ey)), width, colour)
    if depth:
        for _ in range(int(rng.integers(2, 4))):
            turn = angle + rng.uniform(-0.7, 0.7)
            branch(sk, rng, ex, ey, turn, length * rng.uniform(0.6, 0.8), width * 0.6, colour, depth - 1)


def trunk(sk, rng, x, base, width, colour):
    sk.poly(((x - width * 0.8, base), (x - width / 2, base - 0.1), (x - width / 2, 0), (x + width / 2, 0),
             (x + width / 2, base - 0.1), (x + width * 0.8, base)), colour)  # fmt: skip
    sk.rect(x + width * 0.1, 0, x + width / 2, base - 0.05, np.multiply(colour, 0.7))


def leaves(sk, rng, x, y, rx, ry, colours, count):
    for i in range(count):
        a, r = rng.uniform(0, 2 * pi), rng.uniform(0, 1) ** 0.6
        shade = colours[min(len(colours) - 1, int(i / count * len(colours)))]
        px, py = x + rx * r * cos(a), y + ry * r * sin(a)
        sk.oval(px, py, *rng.uniform(0.012, 0.045, 2), vary(rng, shade, 0.15))


def lamp(sk, x, base, colour, glass):
    sk.rect(x - 0.012, base - 0.03, x + 0.012, base, colour)
    sk.line(((x, base), (x, 0.06), (x + 0.06, 0.03), (x + 0.1, 0.03)), 0.012, colour)
    sk.oval(x + 0.11, 0.035, 0.03, 0.014, glass)


def passer(sk, rng, x, base, size, dark=1.0):
    """A small figure far away."""
    top, low = (np.multiply(muted(rng), dark) for _ in range(2))
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


def glass_door(sk, bright, rng, x, base, w):
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
            passer(sk, rng, (a + b) / 2, base - 0.05, 0.3)
        sk.rect(b - 0.035, base - 0.28, b - 0.028, base - 0.17, (0.3, 0.3, 0.3))


def bench(sk, x, base):
    wood = (0.42, 0.28, 0.16)
    for y in (0.2, 0.165, 0.1):
        sk.rect(x, base - y, x + 0.4, base - y + 0.022, wood)
    for k in (0.04, 0.34):
        sk.rect(x + k, base - 0.2, x + k + 0.018, base, (0.15, 0.15, 0.15))


# ---- things in front of the person ------------------------------------------------------------------------
def clear(height):
    return Sketch(height, "RGBA", (0, 0, 0, 0))


def post(rng, height, colour, width=0.06):
    """Poles, trunks or pillars, one in most windows."""
    sk = clear(height)
    for x in np.arange(rng.uniform(0, 0.3), LONG, 0.62):
        w = width * rng.uniform(0.8, 1.2)
        for k in range(8):  # round: darker to one side
            dim = 1.15 - 0.75 * k / 7
            sk.rect(x + k * w / 8, 0, x + (k + 1) * w / 8, TALL, (*np.multiply(colour, dim), 1.0))
    return sk.planes()


def fence(rng, height, colour, tall):
    """Rails: a hand rail with bars, people show through."""
    sk = clear(height)
    top = 1.12 - tall
    for x in np.arange(0, LONG, 0.11):
        sk.rect(x, top, x + 0.014, TALL, (*np.multiply(colour, 0.85), 1.0))
    for y in (top, top + tall * 0.85):
        sk.rect(0, y, LONG, y + 0.022, (*colour, 1.0))
        sk.rect(0, y, LONG, y + 0.007, (*np.add(colour, 0.12), 1.0))
    return sk.planes()


def hood(rng, height, dim=1.0):
    """Parked cars close to the camera hide the legs."""
    sk = clear(height)
    x = 0.0
    while x < LONG:
        c, w = rng.choice(CARS) * dim, rng.uniform(0.5, 0.8)
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


def bank(rng, height, colour, leaves=None):
    """A heap of snow or a hedge, knee high."""
    sk = clear(height)
    xs = np.arange(-0.1, LONG + 0.1, 0.08)
    tops = 0.95 + 0.05 * np.sin(xs * 5 + rng.uniform(0, 6)) + rng.uniform(-0.02, 0.02, len(xs))
    sk.poly([(-0.1, TALL), *zip(xs, tops, strict=True), (LONG + 0.1, TALL)], (*colour, 1.0))
    for x, y in zip(xs, tops, strict=True):
        if leaves is None:
            sk.oval(x, y + 0.06, 0.07, 0.03, (*np.multiply(colour, rng.uniform(0.93, 1.05)), 1.0))
        else:
            for _ in range(26):
                c = vary(rng, leaves[int(rng.integers(len(leaves)))], 0.15)
                px, py = x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.015, 0.3)
                sk.oval(px, py, *rng.uniform(0.01, 0.026, 2), (*c, 1.0))
    return sk.planes()


def lone_post(rng, height):
    """One pole between camera and person, f32[4,TALL*H,0.12*H] premultiplied."""
    colour = vary(rng, (0.32, 0.33, 0.33), 0.3)
    pole = post(rng, height, colour, rng.uniform(0.06, 0.1))
    inside = np.flatnonzero(pole[3, 0] > 0)
    start = inside[np.flatnonzero(np.diff(inside, prepend=-9) > 1)[1]]  # the second one is whole
    return pole[:, :, start - 1 : start + round(0.12 * height)].copy()


def lone_car(rng, height, size, base, dim=1.0):
    """A car f32[4,TALL*H,LONG*H] premultiplied: side view from x = 0.1, `size` long, wheels at y = base."""
    sk = clear(height)
    car(sk, rng, 0.1, base, size, rng.choice(CARS) * dim, dark=dim)
    return sk.planes()
