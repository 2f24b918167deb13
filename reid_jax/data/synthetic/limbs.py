"""Legs with shoes, and arms, of a drawn person."""

import numpy as np

from reid_jax.data.synthetic.painter import lerp, mix, soft


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


def leg(paint, p, s, i, dim):
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


def _sleeve_colour(p):
    if p.pattern == "sleeves":
        return p.second_colour
    return p.upper_colour


def arm(paint, p, s, i, dim):
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
