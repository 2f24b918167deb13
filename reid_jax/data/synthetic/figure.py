"""Draws a posed person of body parts, far parts first.

Every part is a tube between two projected joints with a radius profile (painter.py). A tube knows its surface
normal (for shading) and the azimuth of each pixel around the body, so that faces, open jackets, prints and
straps sit where they belong at any angle of view.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin

import numpy as np
from PIL import Image

from reid_jax.data.synthetic.painter import Painter, band, darker, lerp, mix, shift, soft
from reid_jax.data.synthetic.pose import skeleton


@dataclass(frozen=True)
class Pose:
    """Input of `skeleton` besides the person, and the turn of the head."""

    phase: float
    stride: float
    lean: float
    turn: float
    head_turn: float
    nod: float


# ---- legs -----------------------------------------------------------------------------------------------
def _bare(p):
    return p.lower in ("shorts", "skirt") or p.upper == "dress"


def _shoe(paint, p, ankle, toe, dim):
    back = lerp(ankle, toe, -0.26)
    heel = (back[0], ankle[1] - 0.022 + 0.3 * (ankle[1] - 0.022 - toe[1]), back[2])
    h, t = paint.project(heel), paint.project(toe)
    drop = 0.009 * paint.size
    sole = (0.022, 0.02)
    paint.tube(
        (h[0], h[1] + drop), (t[0], t[1] + drop * 0.6), sole, p.sole_colour, ao=0, fold=0, dim=0.8 * dim
    )
    paint.tube(h, t, (0.027, 0.025, 0.018), p.shoe_colour, ao=0.2, fold=0.2, dim=dim)


def _leg(paint, p, s, i, dim):
    hip, knee, ankle, toe = s.hips[i], s.knees[i], s.ankles[i], s.toes[i]
    _shoe(paint, p, ankle, toe, dim)
    h, k, a = paint.project(hip), paint.project(knee), paint.project(ankle)
    if _bare(p):
        g = 0.92 * p.build
        low = (0.036 * g, 0.042 * g, 0.034 * g, 0.024)
        paint.tube(k, a, low, p.skin, ao=0.25, fold=0.15, dim=dim)
        paint.tube(h, k, (0.06 * g, 0.037 * g), p.skin, ao=0.1, fold=0.15, dim=dim)
        if p.lower == "shorts" and p.upper != "dress":
            end = paint.project(lerp(hip, knee, 0.86))
            wide = 0.048 * (0.5 + 0.5 * p.build) * p.lower_width
            paint.tube(h, end, (0.062 * p.build, wide + 0.008), p.lower_colour, flat=4, ao=0.4, dim=dim)
        return
    g = 0.5 + 0.5 * p.build
    hem = paint.project(lerp(ankle, knee, -0.06))
    wide = 0.037 * p.lower_width * g
    paint.tube(k, hem, (0.042 * g, 0.041 * g, wide), p.lower_colour, flat=3, ao=0.4, dim=dim)
    paint.tube(h, k, (0.064 * p.build, 0.054 * g, 0.043 * g), p.lower_colour, ao=0.12, dim=dim)


# ---- arms -----------------------------------------------------------------------------------------------
def _sleeve_colour(p):
    if p.pattern == "sleeves":
        return p.second_colour
    return p.upper_colour


def _arm(paint, p, s, i, dim):
    sh, el, wr = s.shoulders[i], s.elbows[i], s.wrists[i]
    hand = lerp(el, wr, 1.2)
    a, e, w, h = (paint.project(q) for q in (sh, el, wr, hand))
    thick = (0.5 + 0.5 * p.build) * (1.16 if p.upper in ("jacket", "hoodie", "coat") else 1.0)
    colour = _sleeve_colour(p)
    paint.tube(w, h, (0.018, 0.02, 0.014), p.skin, ao=0.3, fold=0, dim=dim)
    covered = p.sleeve >= 0.95
    upper, fore = (0.029 * thick, 0.033 * thick, 0.030 * thick), (0.030 * thick, 0.023 * thick)
    if covered:
        striped = _sleeve_texture(p) if p.pattern in ("stripes", "checks") else None
        paint.tube(a, e, upper, colour, ao=0.5, dim=dim, texture=striped)
        paint.tube(e, w, fore, colour, flat=2, ao=0.15, dim=dim, texture=striped)
        return
    thin = 0.82
    paint.tube(a, e, (upper[0] * thin, upper[2] * thin), p.skin, ao=0.4, fold=0.1, dim=dim)
    paint.tube(e, w, (fore[0] * thin, fore[1] * 0.72), p.skin, ao=0.1, fold=0.1, dim=dim)
    if p.sleeve < 0.5:
        end = paint.project(lerp(sh, el, 2 * p.sleeve))
        paint.tube(a, end, (upper[0], upper[1] * 1.02, upper[1] * 1.04), colour, flat=3, ao=0.4, dim=dim)
    else:
        end = paint.project(lerp(el, wr, max(0.1, 2 * p.sleeve - 1)))
        paint.tube(a, e, upper, colour, ao=0.4, dim=dim)
        paint.tube(e, end, fore, colour, flat=3, ao=0.1, dim=dim)


def _sleeve_texture(p):
    def texture(albedo, azimuth, v):
        mask = soft(np.sin(v * 14.0), 1.5)
        mix(albedo, mask * (0.5 if p.pattern == "checks" else 1.0), p.second_colour)

    return texture


# ---- trunk ----------------------------------------------------------------------------------------------
_WIDE = np.array((0.040, 0.091, 0.108, 0.106, 0.095, 0.087, 0.084, 0.087, 0.092))
_WIDE_W = np.array((0.038, 0.085, 0.102, 0.100, 0.089, 0.077, 0.075, 0.084, 0.095))
_DEEP = np.array((0.036, 0.054, 0.064, 0.070, 0.068, 0.064, 0.062, 0.066, 0.070))
_LONG = dict(coat=0.24, dress=0.20, jacket=0.015, hoodie=0.02, shirt=0.03, tee=0.015)


def _trunk(paint, p, s):
    top = paint.project(shift(s.neck, y=0.012))
    extra = {"jacket": 0.008, "coat": 0.011, "hoodie": 0.011}.get(p.upper, 0.0)
    shape = _WIDE_W if p.hips > 1.0 else _WIDE
    wide = shape * (0.4 + 0.6 * p.build)
    wide[1:4] *= p.shoulders
    wide[6:] *= p.hips
    radii = paint.girth(wide + extra, _DEEP * (0.1 + 0.9 * p.build) + extra, s.chest_turn)
    if p.lower != "skirt" and p.upper not in ("coat", "dress"):
        _seat(paint, p, s)
    if p.lower == "skirt" and p.upper not in ("coat", "dress"):
        _skirt(paint, p, s, p.lower_colour, 0.2, None)
    if p.upper in ("coat", "dress"):
        _skirt(paint, p, s, p.upper_colour, _LONG[p.upper], _trunk_texture(p, below=True), extra)
        end = paint.project(shift(s.pelvis, y=-0.005))
    else:
        end = paint.project(shift(s.pelvis, y=-_LONG[p.upper]))
    texture = _trunk_texture(p)
    join = 0.0 if p.upper in ("coat", "dress") else 0.45
    paint.tube(top, end, radii, p.upper_colour, flat=3.2, ao=join, texture=texture, turn=s.chest_turn)


def _seat(paint, p, s):
    a, b = paint.project(shift(s.pelvis, y=0.05)), paint.project(shift(s.pelvis, y=-0.03))
    r = float(paint.girth(0.09 * p.hips * (0.4 + 0.6 * p.build), 0.066 * p.build, s.pelvis_turn))
    paint.tube(a, b, (r * 0.92, r), p.lower_colour, flat=1.6, ao=0.1)


def _skirt(paint, p, s, colour, length, texture, extra=0.0):
    """A skirt, coat tail or dress: hangs from the hips, spreads with the knees."""
    top = paint.project(shift(s.pelvis, y=0.06))
    knees = [paint.project(k) for k in s.knees]
    mid = lerp(s.knees[0], s.knees[1], 0.5)
    hem = paint.project((0.5 * mid[0] + 0.5 * s.pelvis[0], s.pelvis[1] - length, 0.6 * mid[2]))
    reach = min(1.0, length / 0.25)
    spread = 0.5 * abs(knees[0][0] - knees[1][0]) / paint.size * reach
    waist = float(paint.girth(0.08 * (0.4 + 0.6 * p.build) + extra, 0.06 * p.build + extra))
    hips = float(paint.girth(0.096 * p.hips * (0.4 + 0.6 * p.build) + extra, 0.072 * p.build + extra))
    end = max(hips * 1.02, 0.052 + 0.8 * spread + extra)
    radii = (waist, hips, 0.5 * (hips + end), end)
    paint.tube(top, hem, radii, colour, flat=6, ao=0.5, fold=0.8, texture=texture, turn=s.pelvis_turn)


def _pattern(p, albedo, azimuth, v, below):
    second = p.second_colour
    if p.pattern == "stripes":
        mix(albedo, soft(np.sin((v + below * 0.93) * 44.0), 2.5), second)
    elif p.pattern == "checks":
        mix(albedo, 0.55 * soft(np.sin((v + below * 0.93) * 40.0), 2), second)
        mix(albedo, 0.55 * soft(np.sin(azimuth * 9.0), 2), second)
    elif p.pattern == "print" and not below:
        mix(albedo, band(azimuth, 0, 0.42, 6) * band(v, 0.38, 0.1, 14), second)
    elif p.pattern == "block":
        mix(albedo, np.ones_like(v) if below else soft(v - 0.5, 20), second)
    elif p.pattern == "open":
        mix(albedo, band(azimuth, 0, 0.3, 9), p.lower_colour if below else second)


def _straps(p, albedo, azimuth, v):
    dark = darker(p.bag_colour, 0.8)
    if p.bag == "backpack":
        mix(albedo, band(np.abs(azimuth), 0.62, 0.1, 9) * soft(0.62 - v, 12), dark)
    elif p.bag == "shoulder":
        slope = 0.42 + p.side * 0.42 * np.sin(azimuth)
        mix(albedo, band(v, slope, 0.035, 22), dark)


def _trunk_texture(p, below=False):
    fastened = p.upper in ("jacket", "coat", "hoodie") and p.pattern != "open"
    strap = p.bag in ("backpack", "shoulder") and not below

    def texture(albedo, azimuth, v):
        _pattern(p, albedo, azimuth, v, below)
        if fastened:
            mix(albedo, 0.6 * band(azimuth, 0.03, 0.045, 14), darker(p.upper_colour, 0.35))
        if not below and p.upper in ("tee", "shirt", "dress"):
            neck = soft(0.1 - v - 0.3 * np.abs(azimuth), 20)
            mix(albedo, neck, p.skin)
        if strap:
            _straps(p, albedo, azimuth, v)
        if not below and p.upper in ("tee", "shirt", "hoodie"):
            albedo *= 1 - 0.25 * soft(v - 0.96, 20)

    return texture


# ---- head -----------------------------------------------------------------------------------------------
_HAIRLINES = dict(
    short=(0.40, 0.95), crop=(0.25, 0.85), bald=(-0.3, 0.0), bob=(0.95, 1.45), long=(1.0, 1.5),
    ponytail=(0.35, 0.95), bun=(0.3, 0.9),
)  # fmt: skip


def _head_texture(p):
    side, slope = _HAIRLINES[p.hair_style]

    def texture(albedo, azimuth, v):
        front = np.cos(azimuth)
        reach = np.abs(azimuth)
        eyes = np.exp(-(((reach - 0.42) / 0.16) ** 2) - ((v - 0.36) / 0.2) ** 2)
        albedo *= 1 - 0.72 * eyes - 0.3 * np.exp(-(((reach - 0.42) / 0.28) ** 2) - ((v - 0.02) / 0.13) ** 2)
        albedo *= 1 - 0.28 * np.exp(-((azimuth / 0.14) ** 2) - ((v - 0.92) / 0.13) ** 2)
        mix(albedo, 0.55 * np.exp(-((azimuth / 0.28) ** 2) - ((v - 1.22) / 0.13) ** 2), darker(p.skin, 0.45))
        if p.glasses:
            mix(albedo, 0.75 * band(v, 0.34, 0.2, 5) * soft(front - 0.2, 4), (0.06, 0.06, 0.07))
        if p.beard:
            mix(albedo, p.beard * soft(v - 0.95, 3) * soft(front + 0.1, 3), p.hair)
        mix(albedo, soft(side - slope * front - v, 3) * (0.7 if p.hair_style == "crop" else 1.0), p.hair)
        if p.hat != "none":
            mix(albedo, soft(-0.12 - 0.2 * front - v, 5), p.hat_colour)

    return texture


def _hair_behind(paint, p, s, centre, forward):
    """Hair that hangs off the back of the head; drawn before or after the head by its depth."""
    back = (centre[0] - forward[0] * 0.03, centre[1], centre[2] - forward[2] * 0.03)
    if p.hair_style in ("long", "bob"):
        end = shift(back, -forward[0] * 0.02, -0.15 if p.hair_style == "long" else -0.06, -forward[2] * 0.02)
        paint.tube(paint.project(back), paint.project(end), (0.05, 0.055, 0.04), p.hair, ao=0.3, flat=1.5)
    elif p.hair_style == "ponytail":
        start = shift(back, -forward[0] * 0.025, 0.015, -forward[2] * 0.025)
        end = shift(start, -forward[0] * 0.03, -0.12, -forward[2] * 0.03)
        paint.tube(paint.project(start), paint.project(end), (0.018, 0.024, 0.012), p.hair, ao=0.35)
    elif p.hair_style == "bun":
        knob = paint.project(shift(back, -forward[0] * 0.03, 0.035, -forward[2] * 0.03))
        paint.tube(knob, knob, (0.026, 0.026), p.hair, ao=0.3)


def _head(paint, p, s, pose):
    turn = pose.head_turn + 0.4 * s.chest_turn
    forward = (sin(turn), 0.0, cos(turn))
    neck = paint.project(shift(s.neck, y=0.005))
    throat = paint.project(shift(s.neck, y=0.05))
    size = p.head
    top = shift(s.crown, 0.006 * forward[0], -0.052, 0.006 * forward[2])
    nod = pose.nod
    chin = shift(s.neck, (0.016 + nod) * forward[0], 0.062, (0.016 + nod) * forward[2])
    away = cos(paint.view.yaw + turn) > 0  # the back of the head is the far side
    if away:
        _hair_behind(paint, p, s, top, forward)
    paint.tube(neck, throat, (0.027, 0.025), p.skin, ao=0.2, fold=0.1, dim=0.8)
    grow = 1.05 if p.hat == "beanie" or p.hair_style in ("bob", "long") else 1.0
    upper = float(paint.girth(0.046, 0.053, turn)) * size * grow
    lower = float(paint.girth(0.035, 0.04, turn)) * size
    a, b = paint.project(top), paint.project(chin)
    radii = (upper, upper * 0.99, 0.5 * (upper + lower) * 1.03, lower)
    paint.tube(a, b, radii, p.skin, ao=0.35, fold=0.12, texture=_head_texture(p), turn=turn)
    if p.hat == "peaked":
        brim = shift(top, 0.085 * forward[0], 0.012, 0.085 * forward[2])
        start = shift(top, 0.04 * forward[0], 0.014, 0.04 * forward[2])
        wide = 0.012 + 0.018 * abs(cos(paint.view.yaw + turn))
        if away or abs(sin(paint.view.yaw + turn)) > 0.5:
            paint.tube(
                paint.project(start), paint.project(brim), (wide, wide * 0.7), p.hat_colour, dim=0.8, flat=2
            )
    if not away:
        _hair_behind(paint, p, s, top, forward)
    if p.scarf:
        _scarf(paint, p, s)


def _scarf(paint, p, s):
    a, b = paint.project(shift(s.neck, y=0.022)), paint.project(shift(s.neck, y=-0.008))
    paint.tube(a, b, (0.042, 0.05), p.scarf, ao=0.3, flat=2)
    if paint.cy > -0.2:
        end = paint.project(shift(s.neck, x=0.02 * p.side, y=-0.12, z=0.075))
        start = paint.project(shift(s.neck, x=0.02 * p.side, y=0.0, z=0.05))
        paint.tube(start, end, (0.018, 0.022), p.scarf, ao=0.3, flat=4)


# ---- bags -----------------------------------------------------------------------------------------------
def _backpack(paint, p, s):
    c, k = cos(s.chest_turn), sin(s.chest_turn)
    back = 0.085 + 0.04 * (p.build - 1)
    top = shift(s.neck, -back * k, -0.06, -back * c)
    end = shift(top, -0.02 * k, -0.16, -0.02 * c)
    r = float(paint.girth(0.078, 0.045, s.chest_turn))
    a, b = paint.project(top), paint.project(end)
    paint.tube(a, b, (r * 0.85, r, r * 1.02), p.bag_colour, flat=2.0, ao=0.5, fold=0.4)
    if paint.cy < 0:
        pocket = lerp(top, end, 0.62)
        at, to = paint.project(pocket), paint.project(lerp(pocket, end, 0.9))
        paint.tube(at, to, (r * 0.62, r * 0.66), darker(p.bag_colour, 0.9), flat=3, ao=0.35, fold=0.3)


def _slung(paint, p, s):
    hip = shift(s.pelvis, p.side * (0.105 * p.hips * (0.5 + 0.5 * p.build)), 0.05, 0.01)
    end = shift(hip, p.side * 0.008, -0.085, 0.0)
    r = float(paint.girth(0.035, 0.07))
    paint.tube(paint.project(hip), paint.project(end), (r, r * 1.06), p.bag_colour, flat=4, ao=0.5, fold=0.3)


def _carried(paint, p, s):
    hand = s.wrists[0 if p.side < 0 else 1]
    a = paint.project(shift(hand, y=-0.035))
    for side in (-0.03, 0.03):
        b = paint.project(shift(hand, y=-0.09, z=side))
        paint.tube(a, b, (0.005, 0.005), darker(p.bag_colour, 0.7), ao=0, fold=0)
    top, end = shift(hand, y=-0.095), shift(hand, y=-0.175)
    r = float(paint.girth(0.026, 0.068))
    paint.tube(paint.project(top), paint.project(end), (r, r * 1.1), p.bag_colour, flat=5, ao=0.4, fold=0.3)


# ---- the whole ------------------------------------------------------------------------------------------
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
    parts = [(0.0, _trunk, ())]
    legs = [paint.project(s.knees[i])[2] + paint.project(s.hips[i])[2] for i in (0, 1)]
    far = 0 if legs[0] < legs[1] else 1
    parts += [(-2.0, _leg, (far, 0.84)), (-1.9, _leg, (1 - far, 1.0))]
    for i in (0, 1):
        e, w = paint.project(s.elbows[i]), paint.project(s.wrists[i])
        depth = 0.6 * e[2] + 0.4 * w[2] + 0.03
        parts.append((depth, _arm, (i, 0.86 if depth < 0 else 1.0)))
    parts.append((0.5, _head, (pose,)))
    if p.bag == "backpack":
        parts.append((-0.35 * paint.cy - 0.02, _backpack, ()))
    elif p.bag == "shoulder":
        parts.append((-0.3 * p.side * paint.sy + 0.02, _slung, ()))
    elif p.bag == "hand":
        hand = paint.project(s.wrists[0 if p.side < 0 else 1])
        parts.append((hand[2] - 0.01, _carried, ()))
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
