"""Writes the synthetic sets as JPEG files: pictures in the layout of Market-1501, and the other kinds.

A set is drawn in a hidden folder beside its final place and moved there when the last file, synthetic.json,
is written: what has the final name is complete.
"""

import dataclasses
import functools
import io
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from reid_jax import places
from reid_jax.data.synthetic import degrade, infrared, occluded, video
from reid_jax.data.synthetic.camera import camera_of, draw_shot, environment
from reid_jax.data.synthetic.person import person_of
from reid_jax.data.synthetic.picture import render
from reid_jax.errors import DataError

FOLDER = "Market-1501-v15.09.15"
_STAMP = "synthetic.json"
_SPLITS = ("bounding_box_train", "query", "bounding_box_test")
_SHOT = 3  # name of a random stream
_MAX_CAMERAS = 9  # the file name holds one digit
_MAX_FRAMES = 999  # three digits

# field: (lowest, highest) value
_LIMITS = dict(
    train_ids=(1, 9000),
    test_ids=(1, 9000),
    cameras=(2, _MAX_CAMERAS),
    images=(2, 100),
    tracklets=(2, 100),
    height=(32, 512),
    width=(16, 512),
    strength=(0.0, 1.5),
    distractors=(0, 100000),
    junk=(0, 100000),
    seed=(0, 2**31 - 1),
    style=(0, 100),
)


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


def stored_camera_names(folder):
    """Camera names of the synthetic set in `folder`; () when it holds another kind of set."""
    stamp = read_stamp(folder)
    return tuple(stamp["camera_names"]) if stamp else ()


def stored_kind(folder):
    """Kind of the synthetic set in `folder`, a key of KINDS; None when it holds another kind of set."""
    stamp = read_stamp(folder)
    return stamp and stamp["settings"].get("kind", "image")


def generate(
    root,
    *,
    kind="image",
    train_ids=100,
    test_ids=100,
    cameras=6,
    images=2,
    tracklets=2,
    frames=(8, 24),
    height=128,
    width=64,
    strength=1.0,
    distractors=40,
    junk=20,
    seed=0,
    style=0,
    workers=1,
    progress=True,
):
    """Make the set below `root` unless it is there, and return its folder.

    kind: image (Market-1501's layout), video (walking tracklets, MARS's layout), lowres, caviar or lowlight
    (DI-REID's layout, see `degrade`; camera 0 is the low one), infrared (SYSU-MM01's layout, see `infrared`;
    six cameras), or occluded (Market-1501's layout, half hidden queries, see `occluded`).
    images: per identity and camera; of a test identity the first is the query, the others the gallery
    (lowres, caviar: camera 0 is the query; infrared: the infrared cameras).
    tracklets: the same for video, with frames (shortest, longest) each. height, width: pixels, width at most
    twice the height. strength: 0 makes the cameras nearly alike, 1 is the usual difficulty, up to 1.5.
    style: 0: every camera has an environment of its own; from 1 on (kind image): all have the same one, so
    that sets of different styles are different domains.
    distractors (pid 0) and junk (pid -1) join the test folder, of kinds image and video. workers > 1 uses
    processes, so a script that calls this needs the usual `if __name__ == "__main__"` guard.
    An interrupted run goes on where it stopped when called again.
    Raises DataError: a value out of range, or another set is in the way.
    """
    settings = dict(
        train_ids=train_ids,
        test_ids=test_ids,
        cameras=cameras,
        images=images,
        tracklets=tracklets,
        frames=list(frames) if isinstance(frames, (tuple, list)) else frames,
        height=height,
        width=width,
        strength=float(strength),
        distractors=distractors,
        junk=junk,
        seed=seed,
        style=style,
        kind=kind,
    )
    settings = _of_kind(kind, settings)
    _check(settings)
    root = places.written(root, "the root of a synthetic set")
    return _made(os.path.join(os.path.abspath(root), KINDS[kind].folder), settings, workers, progress)


def _of_kind(kind, settings):
    """The settings that sets of this kind have; DataError for an unknown kind, or a style it cannot have."""
    if kind not in KINDS:
        raise DataError(f"synthetic data: kind = {kind!r} must be one of {', '.join(KINDS)}")
    if settings["style"] and "style" not in KINDS[kind].fields:
        raise DataError(f"synthetic data: style = {settings['style']!r} is for kind image; leave it at 0")
    settings = {field: value for field, value in settings.items() if field in KINDS[kind].fields}
    if settings.get("style") == 0:
        del settings["style"]  # sets of version 1 had none
    return settings


def _made(final, settings, workers, progress):
    """The folder `final` with the set of these settings, drawn unless it is there."""
    if _complete(final, settings):
        return final
    partial = os.path.join(os.path.dirname(final), ".partial-" + os.path.basename(final))
    started = time.time()
    _prepare(partial, settings)
    try:
        _draw_all(partial, settings, workers, progress)
        _finish(partial, final, settings, started)
    except OSError:
        if not _complete(final, settings):  # else another process was faster
            raise
    return final


def _check(settings):
    paired = settings.get("kind") in ("lowres", "caviar", "infrared")  # another camera is the gallery
    for field, (low, high) in _LIMITS.items():
        if field not in settings:
            continue
        value = settings[field]
        whole = field != "strength"
        low = 1 if field == "images" and paired else low
        if isinstance(value, bool) or (whole and not isinstance(value, int)) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            hint = f"; with one of the {field} the gallery would be empty"
            hint = hint if field in ("images", "tracklets") and value == 1 else ""
            raise DataError(f"synthetic data: {field} = {value!r} must be {kind} from {low} to {high}{hint}")
    if settings.get("kind") == "infrared" and settings["cameras"] != infrared.CAMERAS:
        raise DataError(
            f"synthetic data: cameras = {settings['cameras']!r} must be {infrared.CAMERAS} for kind "
            "infrared, as in SYSU-MM01"
        )
    if "frames" in settings:
        _check_frames(settings["frames"])
    if settings["train_ids"] + settings["test_ids"] > 9999:
        raise DataError(
            "synthetic data: train_ids + test_ids must be at most 9999, file names have four digits; "
            "use fewer identities"
        )
    if settings["width"] > 2 * settings["height"]:
        raise DataError(f"synthetic data: width = {settings['width']} is more than twice the height")


def _check_frames(frames):
    pair = isinstance(frames, list) and len(frames) == 2
    if not pair or any(type(n) is not int for n in frames) or not 2 <= frames[0] <= frames[1] <= _MAX_FRAMES:
        raise DataError(
            f"synthetic data: frames = {frames!r} must be two whole numbers, shortest and longest tracklet, "
            f"from 2 to {_MAX_FRAMES}"
        )


# ---- the folder -----------------------------------------------------------------------------------------
def read_stamp(folder):
    """What the generator wrote of its set in `folder`: {"settings", ...}; None when it holds another."""
    path = os.path.join(folder, _STAMP)
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove the folder and generate again") from error


def _complete(folder, settings):
    """Whether the set with these settings is there; DataError if another one is."""
    if not os.path.isdir(folder):
        return False
    stamp = read_stamp(folder)
    if stamp is None:
        raise DataError(
            f"{folder}: holds a data set that the generator did not make (no {_STAMP}); choose another --root"
        )
    stored = {**stamp.get("settings", {}), "generator": stamp.get("generator")}
    wanted = {**settings, "generator": _kind(settings).version}
    other = [f"{k} = {stored.get(k)!r} (asked: {v!r})" for k, v in wanted.items() if stored.get(k) != v]
    if other:
        raise DataError(
            f"{folder}: holds a synthetic set with other settings: {', '.join(other)}; "
            "choose another --root, use its settings, or remove the folder"
        )
    return True


def _prepare(partial, settings):
    """Make the hidden folder; what an earlier run with other settings left there is removed."""
    stamp = os.path.join(partial, "settings.json")
    wanted = {**settings, "generator": _kind(settings).version}
    try:
        with open(stamp, encoding="utf-8") as f:
            same = json.load(f) == wanted
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial, exist_ok=True)
        _write(stamp, json.dumps(wanted).encode())
    for folder in {os.path.dirname(job.path) for jobs in _kind(settings).groups(settings) for job in jobs}:
        os.makedirs(os.path.join(partial, folder), exist_ok=True)


def _finish(partial, final, settings, started):
    for folder, _, names in os.walk(partial):
        for name in names:  # what killed runs left half written
            path = os.path.join(folder, name)
            if ".tmp-" in name and os.path.getmtime(path) < started:
                os.remove(path)
    kind = _kind(settings)
    for name, data in kind.metadata(settings).items():
        path = os.path.join(partial, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, data)
    counts = dict(Counter(job.split for group in kind.groups(settings) for job in group))
    names = kind.camera_names(settings)
    stamp = dict(generator=kind.version, settings=settings, camera_names=names, counts=counts)
    _write(os.path.join(partial, _STAMP), (json.dumps(stamp, indent=1) + "\n").encode())
    os.remove(os.path.join(partial, "settings.json"))
    os.rename(partial, final)


def _write(path, data):
    """Write a whole file or none."""
    draft = f"{path}.tmp-{os.getpid()}"
    with open(draft, "wb") as f:
        f.write(data)
    os.replace(draft, path)


# ---- drawing --------------------------------------------------------------------------------------------
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


def _draw_all(partial, settings, workers, progress):
    groups = _kind(settings).groups(settings)
    total = sum(map(len, groups))
    draw = functools.partial(_draw_group, partial, settings)
    with tqdm(total=total, unit="img", desc="synthetic", disable=not progress) as bar:
        if workers <= 1:
            for group in groups:
                bar.update(draw(group))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                for done in pool.map(draw, groups, chunksize=4):
                    bar.update(done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


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


def _draw_group(partial, settings, group):
    kind = _kind(settings)
    missing = [job for job in group if not os.path.exists(os.path.join(partial, job.path))]
    shared = kind.start(missing[0], settings) if missing else None
    for job in missing:
        picture, jpeg = kind.picture(job, settings, shared)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", **jpeg)
        _write(os.path.join(partial, job.path), buffer.getvalue())
    return len(group)


# ---- kinds ----------------------------------------------------------------------------------------------
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


def _kind(settings):
    return KINDS[settings.get("kind", "image")]
