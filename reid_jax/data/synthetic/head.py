"""Head of a drawn person: face, hair, hat and scarf."""

from math import cos, sin

import numpy as np

from reid_jax.data.synthetic.painter import band, darker, mix, shift, soft

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


def head(paint, p, s, pose):
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
