"""Rounded, shaded tubes on a canvas, with analytic anti-aliasing, and the mixing of their colours."""

from dataclasses import dataclass
from math import cos, hypot, pi, sin, sqrt

import numpy as np

_KNOTS = np.linspace(0, 1, 48)
_EVEN = tuple(np.linspace(0, 1, max(n, 2)) for n in range(12))


@dataclass(frozen=True)
class View:
    """How a camera sees a person: angles in radians, lengths in pixels."""

    yaw: float  # 0 = faces the camera, pi / 2 = walks to the right of the picture
    pitch: float  # the camera looks down by this angle
    size: float  # pixels of the average body height
    foot: tuple  # (x, y) of the ground point below the pelvis
    light: tuple  # direction to the light (right, down, to the camera), unit length
    ambient: float
    diffuse: float


class Painter:
    """A premultiplied RGBA canvas f32[4,H,W] and the projection of one person."""

    def __init__(self, height, width, view, scale, cloth):
        self.rgba = np.zeros((4, height, width), np.float32)
        self.x = np.arange(width, dtype=np.float32)[None] + 0.5
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.view, self.cloth = view, cloth
        self.size = view.size * scale
        self.cy, self.sy = cos(view.yaw), sin(view.yaw)
        self.cp, self.sp = cos(view.pitch), sin(view.pitch)

    def project(self, p):
        """Body point -> (x, y, depth): pixels and nearness to the camera in body heights."""
        x = p[0] * self.cy + p[2] * self.sy
        d = p[2] * self.cy - p[0] * self.sy
        fx, fy = self.view.foot
        return (
            fx + self.size * x,
            fy - self.size * (p[1] * self.cp - d * self.sp),
            d * self.cp + p[1] * self.sp * 0.2,
        )

    def girth(self, wide, deep, turn=0.0):
        """Half width seen of an elliptic section (half width, half depth; floats or arrays)."""
        c, s = cos(self.view.yaw + turn), sin(self.view.yaw + turn)
        return np.sqrt((wide * c) ** 2 + (deep * s) ** 2)

    def tube(self, a, b, radii, colour, *, flat=1.0, ao=0.4, fold=0.5, texture=None, turn=0.0, dim=1.0):
        """Paint from projected `a` to `b`; radii in body heights, even along it.

        flat: > 1 flattens the round ends; ao: darkening of what lies beneath the edge; texture: called
        with (albedo f32[3,h,w], azimuth, v along the axis) and paints into albedo.
        """
        box = self._window(a, b, max(radii) * self.size + 2.5)
        if box is None:
            return
        ys, xs = box
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = hypot(dx, dy)
        if length < 0.5:  # a joint seen along its bone, or a ball
            dx, dy, length = 0.0, 0.5, 0.5
        dx, dy = dx / length, dy / length
        px, py = self.x[:, xs] - a[0], self.y[ys] - a[1]
        along = px * dx + py * dy
        side = px * dy - py * dx
        t = np.minimum(np.maximum(along, 0), length)
        over = (along - t) * flat
        if len(radii) == 2:
            r = t * ((radii[1] - radii[0]) * self.size / length) + radii[0] * self.size
        else:
            table = np.interp(_KNOTS, _EVEN[len(radii)], radii) * self.size
            r = table.astype(np.float32)[(t * (47 / length)).astype(np.int32)]
        dist = np.sqrt(side * side + over * over)
        edge = r - dist
        alpha = np.minimum(np.maximum(edge + 0.5, 0), 1)
        u, e = side / r, over / r
        shade = self._shade(u, e, dx, dy, fold, ys, xs)
        if dim != 1.0:
            shade *= dim
        win = self.rgba[:, ys, xs]
        if ao:
            win[:3] *= 1 - ao * np.minimum(np.maximum(edge * (1 / (0.022 * self.size)) + 1, 0), 1)
        shade *= alpha
        if texture is None:
            paint = np.asarray(colour, np.float32)[:, None, None] * shade
        else:
            paint = np.empty((3, *shade.shape), np.float32)
            paint[:] = np.asarray(colour, np.float32)[:, None, None]
            azimuth = np.arcsin(np.minimum(np.maximum(u, -1), 1)) - (self.view.yaw + turn)
            texture(paint, (azimuth + pi) % (2 * pi) - pi, along * (1 / length))
            paint *= shade
        win *= 1 - alpha
        win[:3] += paint
        win[3] += alpha

    def _window(self, a, b, pad):
        h, w = self.rgba.shape[1:]
        x0, x1 = max(0, int(min(a[0], b[0]) - pad)), min(w, int(max(a[0], b[0]) + pad) + 1)
        y0, y1 = max(0, int(min(a[1], b[1]) - pad)), min(h, int(max(a[1], b[1]) + pad) + 1)
        return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None

    def _shade(self, u, e, dx, dy, fold, ys, xs):
        lx, ly, lz = self.view.light
        n = 1 - u * u - e * e
        s = (lx * dy - ly * dx) * u + lz * np.sqrt(np.maximum(n, 0)) + (lx * dx + ly * dy) * e
        s = np.maximum(s, 0) * self.view.diffuse + self.view.ambient
        if fold:
            s *= 1 + fold * self.cloth[ys, xs]
        return s


def mix(albedo, mask, colour):
    """Blend `colour` into albedo f32[3,h,w] where mask f32[h,w] is 1."""
    albedo += mask * (np.asarray(colour, np.float32)[:, None, None] - albedo)


def soft(value, sharp):
    return np.minimum(np.maximum(value * sharp + 0.5, 0), 1)


def band(value, centre, half, sharp):
    return soft(half - np.abs(value - centre), sharp)


def lerp(a, b, t):
    return tuple(p + (q - p) * t for p, q in zip(a, b, strict=True))


def shift(p, x=0.0, y=0.0, z=0.0):
    return p[0] + x, p[1] + y, p[2] + z


def darker(colour, by):
    return tuple(c * by for c in colour)


def unit(x, y, z):
    """The vector scaled to length 1."""
    n = sqrt(x * x + y * y + z * z)
    return x / n, y / n, z / n
