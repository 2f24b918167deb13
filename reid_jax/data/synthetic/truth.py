"""What the generator knows of its pictures without drawing them: body points, and attributes of people."""

import os
from math import cos, sin

import numpy as np

from reid_jax.data.synthetic import kinds, occluded, write
from reid_jax.data.synthetic.camera import camera_of
from reid_jax.data.synthetic.figure import habits
from reid_jax.data.synthetic.painter import Painter
from reid_jax.data.synthetic.person import PALETTE, person_of
from reid_jax.data.synthetic.picture import view_of, window_of
from reid_jax.data.synthetic.pose import skeleton
from reid_jax.errors import ConfigError

KINDS = ("image", "occluded")  # whose truth is known
SEEN, HIDDEN = 0.9, 0.1  # confidence of a point in the picture, of one that something or the body covers
COLOURS = tuple(PALETTE)
# Columns of `attributes`: name, classes.
ATTRIBUTES = (
    *(("upper", 6), ("sleeve", 2), ("lower", 3), ("hair", 2), ("hat", 3), ("bag", 4), ("scarf", 2)),
    *(("up colour", len(COLOURS)), ("down colour", len(COLOURS))),
)
_UPPER = ("tee", "shirt", "jacket", "hoodie", "coat", "dress")
_LONG_HAIR = ("bob", "long", "ponytail", "bun")


def points(folder):
    """{path relative to folder: f32[18,3]} of a synthetic set of pictures: x, y in pixels and confidence.

    In OpenPose's order of 18 points. A point outside of the picture has confidence 0; one behind what stands
    in front, or on the far side of the head, HIDDEN. All 0 where nobody is. ConfigError for other sets.
    """
    settings = settings_of(folder)
    jobs = (job for group in kinds.KINDS["image"].groups(settings) for job in group)
    return {job.path: of_shot(job, settings) for job in jobs}


def settings_of(folder):
    """Settings that a set of pictures was generated with; ConfigError for other sets."""
    stamp = write.read_stamp(folder)
    if stamp is None or stamp["settings"].get("kind", "image") not in KINDS:
        kinds = " or ".join(KINDS)
        raise ConfigError(f"{folder} is no synthetic set of kind {kinds}, of which alone the truth is known")
    return stamp["settings"]


def of_shot(job, settings):
    """f32[18,3] of one picture, see `points`."""
    shared = [settings[k] for k in ("seed", "height", "width", "strength")]
    camera = camera_of(job.cam, *shared, settings.get("style", 0))
    person = person_of(settings["seed"], job.pid, job.n)
    if person is None:
        return np.zeros((18, 3), np.float32)
    shot = kinds.shot_of(job, settings, camera)
    painter = Painter(camera.height, camera.width, view_of(camera, shot, person.height), person.height, None)
    s = skeleton(person, shot.phase, shot.stride, shot.lean, shot.turn, habits(person))
    face, centre = head(s, shot)
    limbs = [s.neck, s.shoulders, s.elbows, s.wrists, s.hips, s.knees, s.ankles]
    right, left = ([part[side] for part in limbs[1:]] for side in (0, 1))
    ordered = [face[0], s.neck, *right[:3], *left[:3], *right[3:], *left[3:], *face[1:]]
    keypoints = np.array([painter.project(p) for p in ordered], np.float32)
    behind = keypoints[:, 2] < painter.project(centre)[2] - 0.01
    behind[1:14] = False  # the body's own points count as seen from both sides
    if settings.get("kind") == "occluded" and (board := occluded.hidden(job, settings)):
        left, top, right, bottom = board[1]
        x, y = keypoints[:, 0], keypoints[:, 1]
        behind |= (left <= x) & (x < right) & (top <= y) & (y < bottom)
    return np.stack([keypoints[:, 0], keypoints[:, 1], confidence(keypoints, behind, camera, shot)], 1)


def head(s, shot):
    """((nose, right eye, left eye, right ear, left ear), centre of the head), body points."""
    turn = shot.head_turn + 0.4 * s.chest_turn
    middle = [0.5 * (a + b) for a, b in zip(s.neck, s.crown, strict=True)]
    middle[1] += 0.012

    def at(sideways, up, forward):
        x, z = sideways * cos(turn) + forward * sin(turn), forward * cos(turn) - sideways * sin(turn)
        return middle[0] + x, middle[1] + up, middle[2] + z

    face = [
        (0, -0.005, 0.05),
        (-0.02, 0.014, 0.042),
        (0.02, 0.014, 0.042),
        (-0.043, 0.005, 0),
        (0.043, 0.005, 0),
    ]
    return [at(*p) for p in face], tuple(middle)


def confidence(keypoints, behind, camera, shot):
    """f32[18] of points f32[18,3] (x, y, depth); behind: bool[18], covered by the head."""
    x, y = np.floor(keypoints[:, 0]).astype(int), np.floor(keypoints[:, 1]).astype(int)
    inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    covered = behind.copy()
    if shot.front >= 0:
        front = window_of(camera.fronts[shot.front], camera, shot)[3]
        covered[inside] |= front[y[inside], x[inside]] > 0.5
    return np.where(inside, np.where(covered, HIDDEN, SEEN), 0).astype(np.float32)


def attributes(folder, pids):
    """i32[P,A] of people of a synthetic set of pictures, the columns ATTRIBUTES; pids as in file names."""
    seed = settings_of(folder)["seed"]
    return np.array([of_person(person_of(seed, int(pid))) for pid in pids], np.int32)


def of_person(p):
    """A row of `attributes`."""
    classes = (
        _UPPER.index(p.upper),
        p.sleeve >= 0.5,
        ("trousers", "shorts", "skirt").index(p.lower),
        p.hair_style in _LONG_HAIR,
        ("none", "peaked", "beanie").index(p.hat),
        ("none", "backpack", "shoulder", "hand").index(p.bag),
        p.scarf is not None,
        nearest(p.upper_colour),
        nearest(p.lower_colour),
    )
    return [int(c) for c in classes]


def nearest(colour):
    """Number of the garment colour that a tint was made of."""
    return int(np.argmin(np.square(np.array(list(PALETTE.values())) - np.array(colour)).sum(1)))


def relative(path, folder):
    """Path of a picture as `points` names it."""
    return os.path.relpath(path, folder).replace(os.sep, "/")
