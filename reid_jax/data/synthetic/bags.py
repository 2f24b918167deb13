"""Bags of a drawn person: on the back, at the hip, in the hand."""

from math import cos, sin

from reid_jax.data.synthetic.painter import darker, lerp, shift


def backpack(paint, p, s):
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


def slung(paint, p, s):
    hip = shift(s.pelvis, p.side * (0.105 * p.hips * (0.5 + 0.5 * p.build)), 0.05, 0.01)
    end = shift(hip, p.side * 0.008, -0.085, 0.0)
    r = float(paint.girth(0.035, 0.07))
    paint.tube(paint.project(hip), paint.project(end), (r, r * 1.06), p.bag_colour, flat=4, ao=0.5, fold=0.3)


def carried(paint, p, s):
    hand = s.wrists[0 if p.side < 0 else 1]
    a = paint.project(shift(hand, y=-0.035))
    for side in (-0.03, 0.03):
        b = paint.project(shift(hand, y=-0.09, z=side))
        paint.tube(a, b, (0.005, 0.005), darker(p.bag_colour, 0.7), ao=0, fold=0)
    top, end = shift(hand, y=-0.095), shift(hand, y=-0.175)
    r = float(paint.girth(0.026, 0.068))
    paint.tube(paint.project(top), paint.project(end), (r, r * 1.1), p.bag_colour, flat=5, ao=0.4, fold=0.3)
