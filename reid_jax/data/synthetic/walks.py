"""How people walk through a panorama, and the box that a detector and a tracker put around them."""

from dataclasses import dataclass
from math import pi

import numpy as np

from reid_jax.data.synthetic.camera import MIDDLE
from reid_jax.data.synthetic.person import Person
from reid_jax.data.synthetic.pose import skeleton

HORIZON = 0.05  # panorama heights from the top: where walkers would vanish
_FAR = 10.0  # body heights between camera and walker, at least
_HOLD = 0.45  # share of its error that the box keeps from one frame to the next


# ---- walking --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Walk:
    """Somebody on the move, f64[n] over the frames; places in panorama heights."""

    person: Person
    phase: np.ndarray  # walk cycles
    stride: float
    yaw: np.ndarray
    x: np.ndarray  # of the ground point below the pelvis
    y: np.ndarray
    scale: np.ndarray  # of the average body height
    head_turn: np.ndarray
    turn: float
    lean: float
    nod: float
    cloth: tuple  # window of the fold texture


def wander(rng, n, deviation, memory):
    """A stationary random walk f64[n] of this deviation that forgets within `memory` frames."""
    keep = np.exp(-1 / memory)
    value, out = rng.normal(0, deviation), np.empty(n)
    for k, step in enumerate(rng.normal(0, deviation * (1 - keep**2) ** 0.5, n)):
        out[k] = value
        value = keep * value + step
    return out


def gait_of(rng):
    """(cycles a frame, stride) that a person keeps: about 12 frames a second."""
    return float(rng.uniform(0.060, 0.088)), float(rng.uniform(0.88, 1.1))


def cycle_length(person, stride):
    """Way of one walk cycle in average body heights: twice the distance of the feet at heel strike."""
    feet = skeleton(person, 0.0, stride).ankles
    return 2 * abs(feet[0][2] - feet[1][2]) * person.height


def walk_past(rng, person, gait, yaw, meet, size, n):
    """A Walk of n frames that is at `meet` (frame, x, y in panorama heights) and heads for `yaw` (f64[n]).

    size: average body height there, panorama heights.
    """
    pace, stride = gait
    at, x, y = meet
    phase = rng.random() + pace * np.arange(n)
    step = pace * cycle_length(person, stride)
    across, nearer = (np.cumsum(step * f(yaw)) for f in (np.sin, np.cos))
    across, nearer = across - across[at], nearer - nearer[at]
    far = max(_FAR, 7 * float(np.ptp(nearer)))
    scale = size * far / (far - nearer)
    return Walk(
        person=person,
        phase=phase,
        stride=stride,
        yaw=yaw,
        x=x + across * scale,
        y=HORIZON + (y - HORIZON) * scale / size,
        scale=scale,
        head_turn=rng.normal(0, 0.15) + wander(rng, n, 0.18, 8),
        turn=float(rng.normal(0, 0.06)),
        lean=float(rng.normal(0, 0.006)),
        nod=float(abs(rng.normal(0, 0.012))),
        cloth=tuple(int(v) for v in rng.integers(1 << 20, size=2)),
    )


# ---- the box --------------------------------------------------------------------------------------------
def follow(rng, walk, size, *, cropped=False):
    """Boxes f64[n,3] (centre x, y, height in panorama heights) of a detector and tracker on a walk.

    They lag behind, tremble and drift; now and then they slip off for some frames. size: average body height
    of a person whose box has height 1. cropped: junk, the box never fits.
    """
    n = len(walk.x)
    true = np.stack([walk.x, walk.y - MIDDLE * walk.scale * walk.person.height, walk.scale / size], 1)
    boxes = np.empty_like(true)
    speed = true[min(1, n - 1)] - true[0]
    error = -speed * _HOLD / (1 - _HOLD)  # as after many frames at this speed
    for k in range(n):
        if k:
            error = _HOLD * (error - (true[k] - true[k - 1]))
        boxes[k] = true[k] + error
    height = boxes[:, 2].copy()
    slip = _slip(rng, n)
    scale = rng.normal(0, 0.03) + wander(rng, n, 0.04, 10) + rng.normal(0, 0.006, n) + slip[:, 2]
    for axis, drift in ((0, 0.028), (1, 0.02)):
        offset = wander(rng, n, drift, 9) + rng.normal(0, 0.005, n) + slip[:, axis]
        boxes[:, axis] += height * offset
    if cropped:
        tight = rng.random() < 0.6
        scale += np.log(rng.uniform(0.5, 0.8) if tight else rng.uniform(1.3, 1.7))
        boxes[:, :2] += height[:, None] * rng.uniform((-0.28, -0.4), (0.28, 0.4))
    boxes[:, 2] = height * np.exp(scale)
    return boxes


def _slip(rng, n):
    """Offsets (x, y in box heights) and log scale f64[n,3] of a bad stretch of frames; mostly none."""
    if rng.random() < 0.7:
        return np.zeros((n, 3))
    about, half = rng.uniform(0, n), rng.uniform(2, 6)
    bump = np.cos(np.clip((np.arange(n) - about) / half, -1, 1) * pi / 2) ** 2
    side = rng.choice((-1, 1))
    peak = (side * rng.uniform(0.06, 0.18), rng.normal(0, 0.07), rng.uniform(-0.3, 0.25))
    return bump[:, None] * peak
