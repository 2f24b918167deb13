"""Writes the synthetic set as JPEG files in the layout of Market-1501.

The set is drawn in a hidden folder beside its final place and moved there when the last file, synthetic.json,
is written: what has the final name is complete.
"""

import functools
import io
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from reid_jax.data.synthetic.camera import ENVIRONMENTS, draw_shot, make_camera, render
from reid_jax.data.synthetic.person import draw_person
from reid_jax.errors import DataError

FOLDER = "Market-1501-v15.09.15"
VERSION = 1  # raise it whenever the same settings give other pictures
_STAMP = "synthetic.json"
_SPLITS = ("bounding_box_train", "query", "bounding_box_test")
_PERSON, _SHOT, _STRANGER = 1, 3, 4  # names of random streams; cameras use 2
_MAX_CAMERAS = 9  # the file name holds one digit

# field: (lowest, highest) value
_LIMITS = dict(
    train_ids=(1, 9000),
    test_ids=(1, 9000),
    cameras=(2, _MAX_CAMERAS),
    images=(2, 100),
    height=(32, 512),
    width=(16, 512),
    strength=(0.0, 1.5),
    distractors=(0, 100000),
    junk=(0, 100000),
    seed=(0, 2**31 - 1),
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


def camera_names(cameras):
    """Readable names of the cameras: tuple of str such as 'c1 street'."""
    return tuple(f"c{i + 1} {ENVIRONMENTS[i % len(ENVIRONMENTS)]}" for i in range(cameras))


def stored_camera_names(folder):
    """Camera names of the synthetic set in `folder`; () when it holds another kind of set."""
    stamp = _read_stamp(folder)
    return tuple(stamp["camera_names"]) if stamp else ()


def generate(
    root,
    *,
    train_ids=100,
    test_ids=100,
    cameras=6,
    images=2,
    height=128,
    width=64,
    strength=1.0,
    distractors=40,
    junk=20,
    seed=0,
    workers=1,
    progress=True,
):
    """Make the set below `root` unless it is there, and return its folder (the one with bounding_box_train).

    images: per identity and camera; of a test identity the first is the query, the others the gallery.
    height, width: pixels, width at most twice the height. strength: 0 makes the cameras nearly alike, 1 is
    the usual difficulty, up to 1.5. distractors (pid 0) and junk (pid -1) join bounding_box_test. workers > 1
    uses processes, so a script that calls this needs the usual `if __name__ == "__main__"` guard.
    An interrupted run goes on where it stopped when called again.
    Raises DataError: a value out of range, or another set is in the way.
    """
    settings = dict(
        train_ids=train_ids,
        test_ids=test_ids,
        cameras=cameras,
        images=images,
        height=height,
        width=width,
        strength=float(strength),
        distractors=distractors,
        junk=junk,
        seed=seed,
    )
    _check(settings)
    final = os.path.join(os.path.abspath(root), FOLDER)
    if _complete(final, settings):
        return final
    partial = os.path.join(os.path.dirname(final), ".partial-" + FOLDER)
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
    for field, (low, high) in _LIMITS.items():
        value = settings[field]
        whole = field != "strength"
        if isinstance(value, bool) or (whole and not isinstance(value, int)) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            hint = "; with one image the gallery would be empty" if field == "images" and value == 1 else ""
            raise DataError(f"synthetic data: {field} = {value!r} must be {kind} from {low} to {high}{hint}")
    if settings["train_ids"] + settings["test_ids"] > 9999:
        raise DataError(
            "synthetic data: train_ids + test_ids must be at most 9999, file names have four digits; "
            "use fewer identities"
        )
    if settings["width"] > 2 * settings["height"]:
        raise DataError(f"synthetic data: width = {settings['width']} is more than twice the height")


# ---- the folder -----------------------------------------------------------------------------------------
def _read_stamp(folder):
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
    stamp = _read_stamp(folder)
    if stamp is None:
        raise DataError(
            f"{folder}: holds a data set that the generator did not make (no {_STAMP}); choose another --root"
        )
    found = {**stamp.get("settings", {}), "generator": stamp.get("generator")}
    wanted = {**settings, "generator": VERSION}
    other = [f"{k} = {found.get(k)!r} (asked: {v!r})" for k, v in wanted.items() if found.get(k) != v]
    if other:
        raise DataError(
            f"{folder}: holds a synthetic set with other settings: {', '.join(other)}; "
            "choose another --root, use its settings, or remove the folder"
        )
    return True


def _prepare(partial, settings):
    """Make the hidden folder; what an earlier run with other settings left there is removed."""
    stamp = os.path.join(partial, "settings.json")
    wanted = {**settings, "generator": VERSION}
    try:
        with open(stamp, encoding="utf-8") as f:
            same = json.load(f) == wanted
    except (OSError, ValueError):
        same = False
    for split in _SPLITS:
        folder = os.path.join(partial, split)
        os.makedirs(folder, exist_ok=True)
        if not same:
            for name in os.listdir(folder):
                os.remove(os.path.join(folder, name))
    if not same:
        _write(stamp, json.dumps(wanted).encode())


def _finish(partial, final, settings, started):
    for folder, _, names in os.walk(partial):
        for name in names:  # what killed runs left half written
            path = os.path.join(folder, name)
            if ".tmp-" in name and os.path.getmtime(path) < started:
                os.remove(path)
    counts = {split: len(os.listdir(os.path.join(partial, split))) for split in _SPLITS}
    names = camera_names(settings["cameras"])
    stamp = dict(generator=VERSION, settings=settings, camera_names=names, counts=counts)
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
    groups = _jobs(settings)
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


@functools.lru_cache(maxsize=2 * _MAX_CAMERAS)
def _camera(index, seed, height, width, strength):
    return make_camera(index, seed=seed, height=height, width=width, strength=strength)


def _person(job, seed):
    """The Person of a job; None for the distractors that are no person."""
    if job.pid > 0:
        return draw_person(np.random.default_rng([seed, _PERSON, job.pid]))
    if job.pid == 0 and job.n % 3 == 2:
        return None
    return draw_person(np.random.default_rng([seed, _STRANGER, 1 - job.pid, job.n]))


def draw(job, settings, person=None):
    """(picture u8[H,W,3], JPEG quality) of one job; the person may be handed in to save time."""
    seed = settings["seed"]
    keys = [settings[k] for k in ("seed", "height", "width", "strength")]
    camera = _camera(job.cam, *keys)
    person = person or _person(job, seed)
    rng = np.random.default_rng([seed, _SHOT, job.pid + 1, job.cam, job.n])
    shot = draw_shot(rng, camera, cropped=job.pid < 0)
    return render(person, camera, shot), camera.settings["quality"]


def _draw_group(partial, settings, group):
    person = _person(group[0], settings["seed"])
    for job in group:
        path = os.path.join(partial, job.split, job.name)
        if os.path.exists(path):
            continue
        picture, quality = draw(job, settings, person)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        _write(path, buffer.getvalue())
    return len(group)
