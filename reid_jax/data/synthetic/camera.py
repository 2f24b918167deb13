"""Cameras: where they hang, what light they see, what their sensor does, and what differs from shot to shot.

`make_camera` fixes what all pictures of a camera share, `draw_shot` draws what differs from one picture to
the next. A walking tracklet is the same shot with its phase and its window moving on: see `Shot.walk`.
"""

import functools
from dataclasses import dataclass, replace
from math import pi, radians

import numpy as np
from PIL import Image

from reid_jax.data.synthetic import scene as scenes
from reid_jax.data.synthetic import sketch

ENVIRONMENTS = tuple(scenes.PLACES)

# Of each environment. size: of people, 1 fills the box; pitch: the camera looks down, degrees; light: where
# from (right, down, near), with ambient and diffuse strength; cast: (r, g, b); figure: exposure of people
# against their place; lift: of black; blur: pixels at height 128; noise: levels of 255; halo: spill of bright
# places; contact, shadow: strength of the contact shadow, (shear, length) of the cast one, a negative length
# falls towards the camera; heading: of the path that people follow, degrees.
_NEUTRAL = dict(
    size=0.92, pitch=10, light=(-0.3, -0.7, 0.6), ambient=0.60, diffuse=0.55,
    cast=(1, 1, 1), exposure=1.0, figure=1.0, contrast=1.0, lift=0.0, blur=0.4, resolution=1.0,
    noise=2.0, quality=88, halo=0.0, contact=0.5, shadow=None, heading=0,
)  # fmt: skip
_TABLE = dict(
    street=dict(
        size=0.98, pitch=9, light=(-0.6, -0.7, 0.5), ambient=0.54, diffuse=0.68, cast=(1.06, 1.0, 0.93),
        exposure=1.06, figure=1.04, contrast=1.1, blur=0.35, noise=1.5, contact=0.62, shadow=(0.8, 0.4),
        heading=90,
    ),
    snow=dict(
        size=0.84, pitch=13, light=(0.2, -0.9, 0.5), ambient=0.72, diffuse=0.38, cast=(0.95, 1.0, 1.08),
        exposure=1.02, figure=0.88, contrast=0.84, lift=0.08, blur=0.45, resolution=0.88, noise=2.5,
        quality=80, contact=0.34, heading=20,
    ),
    indoor=dict(
        size=1.04, pitch=6, light=(0.1, -0.5, -0.9), ambient=0.68, diffuse=0.42, cast=(1.05, 0.99, 0.94),
        figure=0.58, contrast=1.05, lift=0.02, blur=0.45, noise=3.5, quality=85, halo=0.2,
        shadow=(0.1, -0.3),
    ),
    night=dict(
        size=0.94, pitch=11, light=(0.7, -0.5, 0.4), ambient=0.56, diffuse=0.6, cast=(0.82, 0.94, 1.2),
        exposure=0.64, figure=0.97, contrast=1.05, lift=0.02, blur=0.5, resolution=0.92, noise=8.0,
        quality=76, halo=0.12, heading=250,
    ),
    lamp=dict(
        size=0.91, pitch=16, light=(0.15, -0.95, 0.25), ambient=0.52, diffuse=0.7, cast=(1.25, 0.86, 0.64),
        exposure=0.9, contrast=1.08, blur=0.5, resolution=0.95, noise=5.0, quality=80, halo=0.12, contact=0.6,
        shadow=(-0.2, -0.2), heading=180,
    ),
    park=dict(
        size=0.81, pitch=8, light=(-0.3, -0.85, 0.4), ambient=0.62, diffuse=0.5, cast=(0.92, 1.06, 0.84),
        exposure=0.88, figure=0.95, contrast=0.98, lift=0.02, blur=0.3, resolution=0.72, noise=3.0,
        quality=80, contact=0.45, shadow=(-0.5, 0.25), heading=315,
    ),
)  # fmt: skip
# Lamps of other colours for cameras after the first round of environments.
_LAMPS = ((0.62, 0.95, 1.12), (1.25, 0.68, 1.05), (0.80, 1.15, 0.66))
BODY = 0.87  # average body height of a person of size 1, in picture heights
MIDDLE = 0.485  # of a person above the feet, in body heights: the middle of a good box
_GREY = 0.45  # mean level that the panoramas approach as strength goes to 0


@dataclass(frozen=True)
class Camera:
    """Everything that the pictures of one camera share; images are planar f32 in 0..1."""

    index: int
    name: str
    height: int
    width: int
    settings: dict  # the columns of _TABLE after strength and jitter
    picture: np.ndarray  # f32[3,TALL*H,LONG*H]
    light: np.ndarray
    halo: np.ndarray | None  # light that spills over people, f32[3,TALL*H,LONG*H]
    fronts: tuple
    air: np.ndarray | None
    noise: np.ndarray  # f32[3,2H,4W] in levels of 0..255
    curve: np.ndarray  # exposure and cast, f32[3,1,1]
    cloth: int
    strength: float


@dataclass(frozen=True)
class Shot:
    """What differs between the pictures of a camera. Angles in radians, offsets in picture heights."""

    phase: float  # walk cycles
    stride: float
    yaw: float
    lean: float
    turn: float
    head_turn: float
    nod: float
    zoom: float
    shift: tuple  # (x, y) of the person in the picture
    window: tuple  # (x, y) of the picture in the panorama
    gain: float
    tint: tuple
    front: int  # occluder, -1 = none
    grain: tuple  # two integers: window of noise, flakes and folds

    def walk(self, cycles, metres=0.0):
        """This shot `cycles` of walking later; the panorama moved by `metres` picture heights."""
        return replace(self, phase=self.phase + cycles, window=(self.window[0] + metres, self.window[1]))


def _blend(name, rng, strength, variant):
    """Settings of environment `name`: between neutral and its own, jittered."""
    setting = {**_NEUTRAL, **_TABLE[name]}
    if name == "lamp" and variant:
        setting["cast"] = _LAMPS[(variant - 1) % len(_LAMPS)]
    spread = 0.10 if variant else 0.03
    out = {}
    for key, neutral in _NEUTRAL.items():
        value = setting[key]
        if key in ("shadow", "heading"):
            out[key] = value
        elif key in ("cast", "exposure", "figure", "contrast", "resolution", "size"):
            value = np.asarray(value) * (1 + spread * rng.uniform(-1, 1, np.shape(value)))
            out[key] = np.asarray(neutral) * (value / np.asarray(neutral)) ** strength
        else:
            value = np.asarray(neutral) + strength * (np.asarray(value, float) - np.asarray(neutral))
            out[key] = value * (1 + spread * strength * rng.uniform(-1, 1))
    if variant:
        out["heading"] = float(rng.uniform(0, 360))
    out["noise"], out["blur"] = max(0.0, float(out["noise"])), max(0.0, float(out["blur"]))
    out["lift"], out["halo"] = float(np.clip(out["lift"], 0, 0.3)), max(0.0, float(out["halo"]))
    out["resolution"] = float(np.clip(out["resolution"], 0.3, 1.0))
    out["size"] = float(np.clip(out["size"], 0.6, 1.1))
    out["quality"] = int(np.clip(out["quality"], 40, 95))
    # Python floats: numpy's float64 scalars would turn float32 pictures into float64 ones.
    return {k: np.asarray(v).tolist() if k not in ("shadow", "heading") else v for k, v in out.items()}


def _level(picture, strength):
    """Pull the colours of a panorama towards a common grey when strength is below 1."""
    keep = min(1.0, strength)
    mean = picture.mean((1, 2), keepdims=True)
    return (picture - mean) * (0.4 + 0.6 * keep) + mean * keep + _GREY * (1 - keep)


def _halo(picture, gain):
    """Light that spills over from what is almost white."""
    shape = picture.shape
    small = []
    for plane in np.clip(picture - 0.72, 0, 1) / 0.28:
        image = Image.fromarray(plane).resize((shape[2] // 10, shape[1] // 10), Image.Resampling.BOX)
        small.append(np.asarray(image.resize((shape[2], shape[1]), Image.Resampling.BICUBIC)))
    return (gain * np.clip(np.stack(small), 0, 1)).astype(np.float32)


def environment(index, style=0):
    """(name, variant) of a camera's environment: each its own, or, of a set with a style, that of the style.

    Variants above 0 differ more from the environment's settings.
    """
    if style:
        turn, place = divmod(style - 1, len(ENVIRONMENTS))
        return ENVIRONMENTS[place], 1 + index + turn
    return ENVIRONMENTS[index % len(ENVIRONMENTS)], index // len(ENVIRONMENTS)


def make_camera(index, *, seed, height, width, strength, style=0):
    """Camera number `index` (0-based); costs some hundredths of a second, so make each one once."""
    rng = np.random.default_rng([seed, 2, index])
    name, variant = environment(index, style)
    settings = _blend(name, rng, strength, variant)
    place = scenes.build(name, rng, height)
    picture = _level(place.picture * place.light, strength)
    noise = rng.standard_normal((3, 2 * height, 4 * width), np.float32)
    noise = 0.6 * noise + 0.8 * rng.standard_normal((1, 2 * height, 4 * width), np.float32)
    noise[:, 1:] += 0.45 * noise[:, :-1]  # grain of a picture that was scaled after the sensor
    curve = np.asarray(settings["cast"], np.float32)[:, None, None] * settings["exposure"]
    return Camera(
        index=index,
        name=name,
        height=height,
        width=width,
        settings=settings,
        picture=np.ascontiguousarray(picture, np.float32),
        light=(1 + min(1.0, strength) * (place.light - 1)).astype(np.float32),
        halo=_halo(picture, settings["halo"]) if settings["halo"] > 0.02 else None,
        fronts=place.fronts,
        air=None if place.air is None else min(1.0, strength) * place.air,
        noise=noise * settings["noise"],
        curve=curve,
        cloth=int(seed),
        strength=strength,
    )


@functools.lru_cache(maxsize=18)
def camera_of(index, seed, height, width, strength, style=0):
    """`make_camera` that remembers the cameras of the last sets."""
    return make_camera(index, seed=seed, height=height, width=width, strength=strength, style=style)


def _heading(rng, settings, strength):
    """People follow the path that a camera looks along: out, back, or anywhere."""
    draw, jitter = rng.random(), rng.normal(0, 0.3)
    main = radians(settings["heading"])
    yaw = main + jitter if draw < 0.22 else main + pi + jitter if draw < 0.44 else rng.uniform(0, 2 * pi)
    free = rng.uniform(0, 2 * pi)
    return yaw if rng.random() < strength else free


def draw_shot(rng, camera, *, cropped=False):
    """A random Shot for `camera`; cropped: a bad detection box that cuts or misses the person."""
    standing = rng.random() < 0.1
    slack = sketch.LONG - camera.width / camera.height
    zoom, dx, dy = rng.normal(1, 0.035), rng.normal(0, 0.022), rng.normal(0, 0.014)
    if cropped:
        zoom = rng.uniform(1.2, 1.9) if rng.random() < 0.6 else rng.uniform(0.3, 0.55)
        dx, dy = rng.uniform(-0.28, 0.28), rng.uniform(-0.5, 0.5)
    count = len(camera.fronts)
    return Shot(
        phase=float(rng.random()),
        stride=float(rng.uniform(0.05, 0.2) if standing else rng.uniform(0.75, 1.1)),
        yaw=float(_heading(rng, camera.settings, camera.strength)),
        lean=float(rng.normal(0, 0.008)),
        turn=float(rng.normal(0, 0.08)),
        head_turn=float(rng.normal(0, 0.3)),
        nod=float(abs(rng.normal(0, 0.012))),
        zoom=float(np.clip(zoom, 0.3, 2)),
        shift=(float(dx), float(dy)),
        window=(float(rng.uniform(0, slack)), float(rng.uniform(0.05, sketch.TALL - 1.02))),
        gain=float(np.exp(rng.normal(0, 0.07))),
        tint=tuple(float(v) for v in np.exp(rng.normal(0, 0.025, 3))),
        front=int(rng.integers(count)) if rng.random() < 0.12 else -1,
        grain=(int(rng.integers(1 << 20)), int(rng.integers(1 << 20))),
    )
