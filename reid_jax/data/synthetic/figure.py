"""Draws a posed person of body parts, far parts first.

Every part is a tube between two projected joints with a radius profile (painter.py). A tube knows its surface
normal (for shading) and the azimuth of each pixel around the body, so that faces, open jackets, prints and
straps sit where they belong at any angle of view.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from reid_jax.data.synthetic.bags import backpack, carried, slung
from reid_jax.data.synthetic.head import head
from reid_jax.data.synthetic.limbs import arm, leg
from reid_jax.data.synthetic.painter import Painter
from reid_jax.data.synthetic.pose import skeleton
from reid_jax.data.synthetic.trunk import trunk


@dataclass(frozen=True)
class Pose:
    """Input of `skeleton` besides the person, and the turn of the head."""

    phase: float
    stride: float
    lean: float
    turn: float
    head_turn: float
    nod: float


@lru_cache(maxsize=8)
def _cloth_field(seed, height, width, size):
    """Folds f32: drawn-out noise of zero mean, larger than the canvas so that shots cut another window."""
    rng = np.random.default_rng([seed, 77])
    total = np.zeros((height, width), np.float32)
    for lengthy, across, gain in ((0.10, 0.03, 0.5), (0.05, 0.016, 0.4), (0.02, 0.02, 0.25)):
        h, w = max(2, round(height / (lengthy * size))), max(2, round(width / (across * size)))
        coarse = Image.fromarray(rng.standard_normal((h, w), np.float32))
        total += gain * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return 0.17 * total / total.std()


def habits(p):
    """What the right and the left arm do; the phone is in the hand without the bag."""
    habits = [p.arms if p.arms != "phone" or p.side != side else "swing" for side in (-1, 1)]
    if p.bag == "hand":
        habits[0 if p.side < 0 else 1] = "carry"
    return tuple(habits)


def draw_figure(person, pose, view, height, width, *, cloth=(0, 0, 0)):
    """Paint one person.

    person: Person; pose: Pose; view: View; cloth: (seed, y, x) of the window of the fold texture.
    Returns (rgba f32[4,H,W] premultiplied, 0..1; contacts: per foot (x, y, half length, lift) of its
    shadow on the ground in pixels, lift in body heights).
    """
    s = skeleton(person, pose.phase, pose.stride, pose.lean, pose.turn, habits(person))
    field = _cloth_field(cloth[0], 3 * height, 3 * width, height)
    oy, ox = cloth[1] % (2 * height), cloth[2] % (2 * width)
    paint = Painter(height, width, view, person.height, field[oy : oy + height, ox : ox + width])
    parts = _parts(paint, person, s, pose)
    for _, part, args in sorted(parts, key=lambda item: item[0]):
        part(paint, person, s, *args)
    return paint.rgba, _contacts(paint, s)


def _parts(paint, p, s, pose):
    """(depth, function, its arguments) of each body part; far ones have the smaller depth."""
    parts = [(0.0, trunk, ())]
    legs = [paint.project(s.knees[i])[2] + paint.project(s.hips[i])[2] for i in (0, 1)]
    far = 0 if legs[0] < legs[1] else 1
    parts += [(-2.0, leg, (far, 0.84)), (-1.9, leg, (1 - far, 1.0))]
    for i in (0, 1):
        e, w = paint.project(s.elbows[i]), paint.project(s.wrists[i])
        depth = 0.6 * e[2] + 0.4 * w[2] + 0.03
        parts.append((depth, arm, (i, 0.86 if depth < 0 else 1.0)))
    parts.append((0.5, head, (pose,)))
    if p.bag == "backpack":
        parts.append((-0.35 * paint.cy - 0.02, backpack, ()))
    elif p.bag == "shoulder":
        parts.append((-0.3 * p.side * paint.sy + 0.02, slung, ()))
    elif p.bag == "hand":
        hand = paint.project(s.wrists[0 if p.side < 0 else 1])
        parts.append((hand[2] - 0.01, carried, ()))
    return parts


def _contacts(paint, s):
    contacts = []
    for ankle, toe in zip(s.ankles, s.toes, strict=True):
        lift = max(0.0, min(ankle[1] - 0.046, toe[1] - 0.02))
        mid = paint.project((0.5 * (ankle[0] + toe[0]), 0.0, 0.5 * (ankle[2] + toe[2])))
        ends = [paint.project((q[0], 0.0, q[2])) for q in (ankle, toe)]
        half = 0.5 * abs(ends[0][0] - ends[1][0]) + 0.034 * paint.size
        contacts.append((mid[0], mid[1], half, lift))
    return contacts
