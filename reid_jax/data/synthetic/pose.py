"""Skeleton and walk: joint positions of a person as a continuous function of the walk phase.

Body frame: x to the person's left, y up from the ground, z forward; unit = average body height.
"""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from scipy.interpolate import CubicSpline

# Joint angles in degrees over one cycle of one leg; 0 = heel strike (after clinical gait curves).
_HIP = ((0, 27), (0.12, 23), (0.3, 4), (0.5, -13), (0.6, -8), (0.75, 18), (0.88, 29), (1, 27))
_KNEE = (
    (0, 4), (0.13, 16), (0.3, 7), (0.45, 6), (0.55, 22), (0.63, 42), (0.73, 60), (0.86, 28), (0.95, 5),
    (1, 4),
)  # fmt: skip
_FOOT = ((0, 14), (0.1, 1), (0.38, -2), (0.5, -16), (0.62, -42), (0.76, -18), (0.9, 9), (1, 14))
_STEPS = np.linspace(0, 1, 257)


def _curve(points):
    at, value = zip(*points, strict=True)
    return np.radians(CubicSpline(at, value, bc_type="periodic")(_STEPS))


_CURVES = tuple(_curve(points) for points in (_HIP, _KNEE, _FOOT))


def leg_angles(phase, stride):
    """Hip, knee and foot angle (radians, forward / bent / toe up positive) at `phase` (any float)."""
    at = (phase % 1.0) * 256
    i, f = int(at), at % 1.0
    hip, knee, foot = (float(c[i] + f * (c[i + 1] - c[i])) for c in _CURVES)
    swing = min(1.0, stride)
    return hip * stride, knee * (0.15 + 0.85 * swing), foot * swing


@dataclass(frozen=True)
class Skeleton:
    """Joints (x, y, z) of a grounded body: its lowest sole is at y = 0. Pairs are (right, left)."""

    pelvis: tuple
    neck: tuple
    crown: tuple
    hips: tuple
    knees: tuple
    ankles: tuple
    toes: tuple
    shoulders: tuple
    elbows: tuple
    wrists: tuple
    pelvis_turn: float  # rotation about the vertical, radians
    chest_turn: float


def _turn(point, angle):
    x, y, z = point
    c, s = cos(angle), sin(angle)
    return x * c + z * s, y, z * c - x * s


def _add(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _down(length, angle, spread):
    """A bone hanging from its joint: `angle` forward, `spread` sideways (signed)."""
    return length * sin(spread), -length * cos(angle) * cos(spread), length * sin(angle) * cos(spread)


def _leg(hip, side, phase, stride, scale):
    angle, knee, foot = leg_angles(phase, stride)
    spread = side * (0.035 + 0.02 * (1 - min(1.0, stride)))
    k = _add(hip, _down(0.245 * scale, angle, spread))
    a = _add(k, _down(0.232 * scale, angle - knee, -0.3 * spread))
    out = side * 0.14  # toes point a little outwards
    toe = (0.1 * sin(out), 0.1 * sin(foot) - 0.022, 0.1 * cos(foot) * cos(out))
    return k, a, _add(a, toe)


def _arm(shoulder, side, phase, stride, habit, turn):
    swing = -0.36 * cos(2 * pi * phase) * stride + 0.04
    bend = 0.24 + 0.22 * max(0.0, swing) / 0.36 + 0.1 * stride
    spread = side * 0.12
    if habit == "pocket":
        swing, bend, spread = -0.22, 0.62, side * 0.26
    elif habit == "phone":
        swing, bend = 0.18, 1.95
    elif habit == "carry":
        swing, bend = swing * 0.3, 0.1
    elif habit == "strap":
        swing, bend, spread = 0.1, 2.35, side * 0.3
    e = _add(shoulder, _turn(_down(0.165, swing, spread), turn))
    inward = -0.4 * spread if habit not in ("pocket", "phone") else -2.2 * spread
    return e, _add(e, _turn(_down(0.145, swing + bend, inward), turn))


def skeleton(person, phase, stride, lean=0.0, turn=0.0, habits=("swing", "swing")):
    """Pose of `person` at walk `phase` (cycles); `stride` 0 stands, 1 walks normally.

    lean: sideways, in body heights at the neck; turn: extra rotation of the chest, radians;
    habits: what the right and the left arm do (swing, pocket, phone, carry, strap).
    """
    stride *= person.stride
    wave = cos(2 * pi * phase)  # +1 at heel strike of the right leg
    roll = sin(2 * pi * phase)
    p_turn, c_turn = 0.13 * wave * stride, -0.15 * wave * stride + turn
    leg = person.legs
    pelvis = (0.014 * -roll * stride, 0.5 * leg, 0.0)  # over the standing leg
    hips, knees, ankles, toes = [], [], [], []
    for side, shift in ((-1, 0.0), (1, 0.5)):
        drop = -side * 0.006 * roll * stride
        hip = _add(pelvis, _turn((side * 0.048 * person.hips, drop, 0.0), p_turn))
        k, a, t = _leg(hip, side, phase + shift, stride, leg)
        for store, value in zip((hips, knees, ankles, toes), (hip, k, a, t), strict=True):
            store.append(value)
    top = 0.325 * (2 - leg)
    bend = person.bend + 0.03 * stride
    neck = _add(pelvis, (lean - 0.5 * pelvis[0], top * cos(bend), top * sin(bend)))
    crown = _add(neck, (0.3 * lean, 0.155, 0.012 + 0.3 * bend * 0.16))
    shoulders, elbows, wrists = [], [], []
    for side, shift, habit in zip((-1, 1), (0.0, 0.5), habits, strict=True):
        lift = -0.064 + side * 0.005 * roll * stride
        s = _add(neck, _turn((side * 0.094 * person.shoulders, lift, -0.005), c_turn))
        e, w = _arm(s, side, phase + shift, stride, habit, c_turn)
        for store, value in zip((shoulders, elbows, wrists), (s, e, w), strict=True):
            store.append(value)
    low = min(min(a[1] - 0.046 for a in ankles), min(t[1] - 0.02 for t in toes))
    joints = [pelvis, neck, crown, hips, knees, ankles, toes, shoulders, elbows, wrists]
    moved = [_lower(j, low) for j in joints]
    return Skeleton(*moved, p_turn, c_turn)


def _lower(joint, by):
    if isinstance(joint, list):
        return tuple(_lower(j, by) for j in joint)
    return joint[0], joint[1] - by, joint[2]
