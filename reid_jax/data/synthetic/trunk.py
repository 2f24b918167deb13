"""Trunk of a drawn person: clothes with their patterns and straps, skirts and coat tails."""

import numpy as np

from reid_jax.data.synthetic.painter import band, darker, lerp, mix, shift, soft

_WIDE = np.array((0.040, 0.091, 0.108, 0.106, 0.095, 0.087, 0.084, 0.087, 0.092))
_WIDE_W = np.array((0.038, 0.085, 0.102, 0.100, 0.089, 0.077, 0.075, 0.084, 0.095))
_DEEP = np.array((0.036, 0.054, 0.064, 0.070, 0.068, 0.064, 0.062, 0.066, 0.070))
_LONG = dict(coat=0.24, dress=0.20, jacket=0.015, hoodie=0.02, shirt=0.03, tee=0.015)


def trunk(paint, p, s):
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
