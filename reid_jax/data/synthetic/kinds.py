"""What the kinds of synthetic sets are made of: their pictures one by one, and what lies beside them."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reid_jax.data.synthetic import degrade, infrared, occluded, video
from reid_jax.data.synthetic.camera import camera_of, draw_shot, environment
from reid_jax.data.synthetic.person import person_of
from reid_jax.data.synthetic.picture import render

FOLDER = "Market-1501-v15.09.15"
_SPLITS = ("bounding_box_train", "query", "bounding_box_test")
_SHOT = 3  # name of a random stream


class Job(NamedTuple):
    """One picture: `pid` as in the file name, 0-based `cam`, number `n` within pid and camera."""

    split: str
    pid: int
    cam: int
    n: int

    @property
    def name(self):
        """File name as in Market-1501: 0002_c1s1_000451_03.jpg."""
        frame = 25 * self.n + (self.pid if self.pid > 0 else 0)
        pid = "-1" if self.pid < 0 else f"{self.pid:04d}"
        return f"{pid}_c{self.cam + 1}s1_{frame:06d}_{self.n % 99 + 1:02d}.jpg"

    @property
    def path(self):
        """Below the set's folder."""
        return f"{self.split}/{self.name}"


def camera_names(cameras, style=0):
    """Readable names of the cameras: tuple of str such as 'c1 street'."""
    return tuple(f"c{i + 1} {environment(i, style)[0]}" for i in range(cameras))


def layout_of(kind):
    """Name of the loader that reads sets of a kind: market1501 | mars | mlr_viper | caviar | sysu_mm01."""
    return KINDS[kind].layout


# ---- pictures
def _jobs(s):
    """Lists of Jobs; those of one list share a person."""
    first = s["train_ids"] + 1
    groups = []
    for pid in range(1, first + s["test_ids"]):
        train = pid < first
        group = []
        for cam in range(s["cameras"]):
            for n in range(s["images"]):
                split = _SPLITS[0] if train else _SPLITS[1] if n == 0 else _SPLITS[2]
                group.append(Job(split, pid, cam, n))
        groups.append(group)
    extra = [(0, n) for n in range(s["distractors"])] + [(-1, n) for n in range(s["junk"])]
    return groups + [[Job(_SPLITS[2], pid, n % s["cameras"], n)] for pid, n in extra]


def draw(job, settings, person=None):
    """(picture u8[H,W,3], JPEG quality) of one job; the person may be handed in to save time."""
    shared = [settings[k] for k in ("seed", "height", "width", "strength")]
    camera = camera_of(job.cam, *shared, settings.get("style", 0))
    person = person or _person(job, settings)
    shot = shot_of(job, settings, camera)
    return render(person, camera, shot), camera.settings["quality"]


def shot_of(job, settings, camera):
    """The Shot of a job; nothing stands in front of people of kind occluded but what is put there."""
    shot = draw_shot(stream(job, settings), camera, cropped=job.pid < 0)
    return dataclasses.replace(shot, front=-1) if settings.get("kind") == "occluded" else shot


def stream(job, settings):
    """The numpy Generator that the shot of a job is drawn from."""
    return np.random.default_rng([settings["seed"], _SHOT, job.pid + 1, job.cam, job.n])


# ---- kinds
class Kind(NamedTuple):
    """What a kind of set is made of; s: the settings that it uses."""

    folder: str
    layout: str  # the loader that reads it
    version: int  # raise it whenever the same settings give other files
    fields: tuple
    groups: Callable  # s -> lists of jobs with split and path; those of a list share what `start` makes
    start: Callable  # (a job of the list, s) -> what they share
    picture: Callable  # (job, s, shared) -> (u8[H,W,3], options of the JPEG writer)
    metadata: Callable  # s -> {path: bytes} of the other files
    camera_names: Callable  # s -> tuple of str


def _person(job, settings):
    return person_of(settings["seed"], job.pid, job.n)


def _still(job, settings, person):
    picture, quality = draw(job, settings, person)
    return picture, dict(quality=quality)


def _degraded(job, settings, person):
    picture, _ = draw(job, settings, person)
    return degrade.degrade(picture, job, settings), degrade.jpeg(job, settings)


def _occluded(job, settings, person):
    picture, quality = draw(job, settings, person)
    return occluded.covered(picture, job, settings), dict(quality=quality)


def _occlusions(settings):
    jobs = (job for group in _jobs(settings) for job in group)
    return {occluded.TABLE: occluded.table(jobs, settings)}


def _infrared(job, settings, person):
    picture, quality = draw(job, settings, person)
    return infrared.seen(picture, job, settings), dict(quality=quality)


def _frame(job, settings, track):
    return video.render_frame(track, job.n), dict(quality=track.camera.settings["quality"])


def _nothing(settings):
    return {}


def _names(settings):
    return camera_names(settings["cameras"], settings.get("style", 0))


_SHARED = ("train_ids", "test_ids", "cameras", "height", "width", "strength", "seed")
_IMAGE = (*_SHARED, "images", "distractors", "junk", "style")  # no "kind": the sets of version 1 had none
_VIDEO = (*_SHARED, "tracklets", "frames", "distractors", "junk", "kind")
_LOW = (*_SHARED, "images", "kind")
_OCCLUDED = (*_SHARED, "images", "distractors", "junk", "kind")
_LOW_PARTS = (degrade.shots, _person, _degraded, degrade.metadata, degrade.camera_names)
_INFRARED_PARTS = (infrared.shots, _person, _infrared, infrared.metadata, infrared.camera_names)
KINDS = {
    "image": Kind(FOLDER, "market1501", 1, _IMAGE, _jobs, _person, _still, _nothing, _names),
    "video": Kind(
        video.FOLDER, "mars", 1, _VIDEO, video.tracklets, video.track, _frame, video.metadata, _names
    ),
    "lowres": Kind("MLR-VIPeR", "mlr_viper", 1, _LOW, *_LOW_PARTS),
    "caviar": Kind("CAVIAR", "caviar", 1, _LOW, *_LOW_PARTS),
    "infrared": Kind("SYSU-MM01", "sysu_mm01", 1, _LOW, *_INFRARED_PARTS),
    "occluded": Kind("Occluded", "market1501", 1, _OCCLUDED, _jobs, _person, _occluded, _occlusions, _names),
    "lowlight": Kind("low-light", "mlr_viper", 1, _LOW, *_LOW_PARTS),
}


def of(settings):
    """The Kind of a set's settings."""
    return KINDS[settings.get("kind", "image")]
