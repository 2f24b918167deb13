"""Walking tracklets in the layout of MARS.

The camera hangs still: the person walks across its panorama, nearer or farther, and a detection box follows
with lag, jitter and drift; what a frame shows is the box's part of the panorama. Poles, other people and
cars pass between camera and person in some tracklets. A tracklet is a pure function of seed, pid, camera
and its number; a frame is a pure function of the tracklet.
"""

import io
from dataclasses import dataclass, replace
from math import ceil, floor, pi
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

from reid_jax.data.synthetic import sketch, things
from reid_jax.data.synthetic.camera import BODY, MIDDLE, Camera, camera_of, draw_shot
from reid_jax.data.synthetic.figure import Pose, draw_figure
from reid_jax.data.synthetic.person import draw_person, person_of
from reid_jax.data.synthetic.picture import add_front, add_person, expose, look
from reid_jax.data.synthetic.walks import HORIZON, Walk, follow, gait_of, walk_past, wander

FOLDER = "MARS"
TRAIN, TEST = "bbox_train", "bbox_test"
_GAIT, _TRACK, _LENGTH = 5, 6, 7  # names of random streams
_OBSTRUCTED = 0.33  # share of the tracklets
_ROADS = ("street", "snow", "night", "lamp")  # where cars pass


class Frame(NamedTuple):
    """One picture: `pid` as in the file name, 0-based `cam`, `tracklet` from 1 within them, `n` from 0."""

    split: str
    pid: int
    cam: int
    tracklet: int
    n: int

    @property
    def path(self):
        """bbox_train/0001/0001C1T0001F001.jpg."""
        who = "00-1" if self.pid < 0 else f"{self.pid:04d}"
        return f"{self.split}/{who}/{who}C{self.cam + 1}T{self.tracklet:04d}F{self.n + 1:03d}.jpg"


# ---- which tracklets ------------------------------------------------------------------------------------
def tracklets(s):
    """Lists of Frames, one list a tracklet, for the settings `s`: of one split, they follow each other."""
    groups = []
    for pid in range(1, 1 + s["train_ids"] + s["test_ids"]):
        split = TRAIN if pid <= s["train_ids"] else TEST
        for cam in range(s["cameras"]):
            groups += [_frames(s, split, pid, cam, k + 1) for k in range(s["tracklets"])]
    for pid, count in ((0, s["distractors"]), (-1, s["junk"])):
        for n in range(count):
            cam, earlier = n % s["cameras"], n // s["cameras"]
            groups.append(_frames(s, TEST, pid, cam, earlier + 1))
    return groups


def _frames(s, split, pid, cam, number):
    low, high = s["frames"]
    rng = np.random.default_rng([s["seed"], _LENGTH, pid + 1, cam, number])
    return [Frame(split, pid, cam, number, n) for n in range(int(rng.integers(low, high + 1)))]


def metadata(s):
    """{path: bytes} of info/: the name lists and the MATLAB tables with their 1-based rows."""
    groups = sorted(tracklets(s))  # by split, then pid
    files, tables = {}, {}
    for split, name in ((TRAIN, "train"), (TEST, "test")):
        in_split = [g for g in groups if g[0].split == split]
        names = [frame.path.rpartition("/")[2] for g in in_split for frame in g]
        files[f"info/{name}_name.txt"] = ("\n".join(names) + "\n").encode()
        last = np.cumsum([len(g) for g in in_split])
        rows = [
            (end - len(g) + 1, end, g[0].pid, g[0].cam + 1) for g, end in zip(in_split, last, strict=True)
        ]
        tables[name] = np.array(rows, np.int32)
        files[f"info/tracks_{name}_info.mat"] = _mat(f"track_{name}_info", tables[name])
    test = [g[0] for g in groups if g[0].split == TEST]
    queries = [row + 1 for row, first in enumerate(test) if first.pid > 0 and first.tracklet == 1]
    files["info/query_IDX.mat"] = _mat("query_IDX", np.array([queries], np.int32))
    return files


def _mat(name, table):
    buffer = io.BytesIO()
    savemat(buffer, {name: table})
    head = b"MATLAB 5.0 MAT-file, synthetic".ljust(116)  # instead of a text with the date
    return head + buffer.getvalue()[116:]


# ---- a tracklet -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Passer:
    """Somebody else whose way crosses; in front of the person or behind."""

    walk: Walk
    front: bool


@dataclass(frozen=True)
class Track:
    """Everything about a tracklet of n frames."""

    camera: Camera
    walk: Walk
    empty: bool  # nobody is there, the box is wrong
    boxes: np.ndarray  # f64[n,3]: centre x, y and height of the detection box, panorama heights
    passers: tuple
    front: np.ndarray | None  # pole or car, premultiplied f32[4,TALL*H,W]
    front_x: np.ndarray  # f64[n]: where its left edge is, panorama heights
    gain: np.ndarray  # f64[n]: exposure
    tint: tuple
    grain: np.ndarray  # i64[n,2]: window of the noise


def track(frame, s):
    """The Track of the tracklet that a Frame belongs to, for the settings `s`."""
    seed, pid, cam = s["seed"], frame.pid, frame.cam
    n = len(_frames(s, *frame[:4]))
    camera = camera_of(cam, seed, s["height"], s["width"], s["strength"])
    rng = np.random.default_rng([seed, _TRACK, pid + 1, cam, frame.tracklet])
    number = (frame.tracklet - 1) * s["cameras"] + cam  # of the stranger
    person = person_of(seed, pid, number)
    walker = person or draw_person(rng)
    gait = gait_of(np.random.default_rng([seed, _GAIT, pid]) if pid > 0 else rng)
    shot = draw_shot(rng, camera, cropped=pid < 0)
    if shot.stride < 0.5:  # somebody who waits and shifts from foot to foot
        gait = 0.25 * gait[0], shot.stride
    size = BODY * camera.settings["size"]
    yaw = shot.yaw + rng.normal(0, 0.02) * np.arange(n)
    middle = n // 2, 0.0, shot.window[1] + 0.5 + MIDDLE * size
    walk = walk_past(rng, walker, gait, yaw, middle, size, n)
    walk = replace(walk, x=walk.x + _place(rng, walk.x))
    boxes = follow(rng, walk, size, cropped=pid < 0)
    passers, front, front_x = _obstacles(rng, camera, walk)
    return Track(
        camera=camera,
        walk=walk,
        empty=person is None,
        boxes=boxes,
        passers=passers,
        front=front,
        front_x=front_x,
        gain=shot.gain * np.exp(wander(rng, n, 0.012, 3)),
        tint=shot.tint,
        grain=rng.integers(1 << 20, size=(n, 2)),
    )


def _place(rng, x):
    """Shift that puts a way `x` into the panorama; a longer way is centred."""
    low, high = 0.35 - x.min(), sketch.LONG - 0.35 - x.max()
    return float(rng.uniform(low, high)) if low < high else (low + high) / 2


def _obstacles(rng, camera, walk):
    """(passers, front, x of front): what crosses the way of the person, in a third of the tracklets."""
    n, at = len(walk.x), int(rng.integers(len(walk.x)))
    kinds = ["person"]
    if np.ptp(walk.x) > 0.3:  # else it would stay before the person
        kinds.append("pole")
    if camera.name in _ROADS:
        kinds.append("car")
    kind, nowhere = str(rng.choice(kinds)), np.zeros(n)
    if rng.random() > _OBSTRUCTED:
        return (), None, nowhere
    if kind == "person":
        return (_passer(rng, walk, at),), None, nowhere
    if kind == "pole":
        return (), things.lone_post(rng, camera.height), nowhere + walk.x[at] - 0.06
    length = rng.uniform(1.4, 1.9)
    base = min(walk.y[at] + rng.uniform(0.04, 0.09), sketch.TALL - 0.01)
    car = things.lone_car(rng, camera.height, length, base, 0.7 if camera.name == "night" else 1.0)
    speed = rng.choice((-1, 1)) * rng.uniform(0.08, 0.2)
    end = rng.choice((0.1, 0.1 + length))  # its front or its rear is at the person in frame `at`
    return (), car, walk.x[at] - end + speed * (np.arange(n) - at)


def _passer(rng, walk, at):
    """Somebody who meets or overtakes the person in frame `at`."""
    person, gait, n = draw_person(rng), gait_of(rng), len(walk.x)
    yaw, heading = walk.yaw[at], rng.normal(0, 0.3)
    front = rng.random() < 0.7
    if abs(np.sin(yaw)) > 0.5:
        heading += yaw + pi
    else:
        heading += rng.choice((-1, 1)) * pi / 2
    near = rng.uniform(1.03, 1.08) if front else rng.uniform(0.88, 0.95)
    scale = near * walk.scale[at]
    y = HORIZON + (walk.y[at] - HORIZON) * near
    meet = at, walk.x[at] + rng.normal(0, 0.05), y
    return Passer(walk_past(rng, person, gait, np.full(n, heading), meet, scale, n), front)


# ---- a frame --------------------------------------------------------------------------------------------
def cut(panorama, box, height, width):
    """The part of panorama f32[C,h,w] in box (left, top, right, bottom; float pixels) as f32[C,height,width].

    Beyond its edges the panorama is mirrored.
    """
    left, top, right, bottom = box
    x0, y0, x1, y1 = floor(left) - 2, floor(top) - 2, ceil(right) + 2, ceil(bottom) + 2
    tall, wide = panorama.shape[1:]
    if x0 >= 0 and y0 >= 0 and x1 <= wide and y1 <= tall:
        part = panorama[:, y0:y1, x0:x1]
    else:
        rows, columns = _mirrored(y0, y1, tall), _mirrored(x0, x1, wide)
        part = panorama[:, rows[:, None], columns]
    inner = left - x0, top - y0, right - x0, bottom - y0
    planes = [
        np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BILINEAR, inner)) for p in part
    ]
    return np.stack(planes)


def _mirrored(start, stop, size):
    """Indices start..stop-1 folded back into 0..size-1 at both ends."""
    at = np.arange(start, stop) % (2 * size)
    return np.minimum(at, 2 * size - 1 - at)


def _overlay(track, k, box):
    """The pole or car of frame k as premultiplied f32[4,H,W]; None when it is not in the box."""
    h, w = track.camera.height, track.camera.width
    left, top, right, bottom = box
    start = track.front_x[k] * h
    wide = track.front.shape[2]
    if right <= start or left >= start + wide:
        return None
    margin = ceil(right - left) + 4
    padded = np.pad(track.front, ((0, 0), (0, 0), (margin, margin)))
    return cut(padded, (left - start + margin, top, right - start + margin, bottom), h, w)


def _placed(walk, camera, k, box):
    """(View, Pose, cloth) of somebody in frame k, None when the box misses them."""
    h, w = camera.height, camera.width
    left, top, right, bottom = box
    zoom = h / (bottom - top)
    x, y = (walk.x[k] * h - left) * zoom, (walk.y[k] * h - top) * zoom
    size = walk.scale[k] * h * zoom
    if not -0.5 * size < x < w + 0.5 * size:
        return None
    view = look(camera, float(walk.yaw[k]), float(size), (float(x), float(y)))
    pose = Pose(float(walk.phase[k]), walk.stride, walk.lean, walk.turn, float(walk.head_turn[k]), walk.nod)
    # The folds go with the body, not with the box.
    oy = h + walk.cloth[0] % h - min(max(round(y), 0), h)
    ox = w // 2 + walk.cloth[1] % w - min(max(round(x - w / 2), -w // 2), w // 2)
    return view, pose, (camera.cloth, oy, ox)


def _add_walk(image, light, walk, camera, k, box):
    placed = _placed(walk, camera, k, box)
    if placed:
        add_person(image, light, walk.person, camera, *placed)


def _shape(walk, camera, k, box):
    """f32[H,W]: how much of each pixel somebody covers."""
    h, w = camera.height, camera.width
    placed = _placed(walk, camera, k, box)
    if not placed:
        return np.zeros((h, w), np.float32)
    view, pose, cloth = placed
    return draw_figure(walk.person, pose, view, h, w, cloth=cloth)[0][3].copy()


def box_of(track, k):
    """(left, top, right, bottom) of frame k's detection box, in pixels of the panorama."""
    h, w = track.camera.height, track.camera.width
    x, y, tall = (float(v) * h for v in track.boxes[k])
    wide = tall * w / h
    return x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2


def body(track, k):
    """f32[H,W]: how much of each pixel of frame k the tracked body covers, less what is before it."""
    box, camera = box_of(track, k), track.camera
    seen = _shape(track.walk, camera, k, box)
    for passer in track.passers:
        if passer.front:
            seen *= 1 - _shape(passer.walk, camera, k, box)
    front = None if track.front is None else _overlay(track, k, box)
    return seen if front is None else seen * (1 - front[3])


def render_frame(track, k):
    """Frame k of a tracklet: u8[H,W,3]."""
    camera = track.camera
    h, w = camera.height, camera.width
    box = box_of(track, k)
    image, light = cut(camera.picture, box, h, w), cut(camera.light, box, h, w)
    walks = [p.walk for p in track.passers if not p.front]
    walks += [] if track.empty else [track.walk]
    walks += [p.walk for p in track.passers if p.front]
    for walk in walks:
        _add_walk(image, light, walk, camera, k, box)
    if track.front is not None:
        front = _overlay(track, k, box)
        if front is not None:
            add_front(image, front, camera)
    if camera.halo is not None:
        image += cut(camera.halo, box, h, w)
    return expose(image, camera, float(track.gain[k]), track.tint, track.grain[k].tolist())
