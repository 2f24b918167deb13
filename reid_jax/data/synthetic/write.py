"""Writes the synthetic sets as JPEG files: pictures in the layout of Market-1501, and the other kinds.

A set is drawn in a hidden folder beside its final place and moved there when the last file, synthetic.json,
is written: what has the final name is complete.
"""

import functools
import io
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from PIL import Image
from tqdm import tqdm

from reid_jax import places
from reid_jax.data.synthetic import infrared, kinds
from reid_jax.data.synthetic.kinds import KINDS
from reid_jax.errors import DataError

_STAMP = "synthetic.json"
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
    wanted = {**settings, "generator": kinds.of(settings).version}
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
    wanted = {**settings, "generator": kinds.of(settings).version}
    try:
        with open(stamp, encoding="utf-8") as f:
            same = json.load(f) == wanted
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial, exist_ok=True)
        _write(stamp, json.dumps(wanted).encode())
    for folder in {os.path.dirname(job.path) for jobs in kinds.of(settings).groups(settings) for job in jobs}:
        os.makedirs(os.path.join(partial, folder), exist_ok=True)


def _finish(partial, final, settings, started):
    for folder, _, names in os.walk(partial):
        for name in names:  # what killed runs left half written
            path = os.path.join(folder, name)
            if ".tmp-" in name and os.path.getmtime(path) < started:
                os.remove(path)
    kind = kinds.of(settings)
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
def _draw_all(partial, settings, workers, progress):
    groups = kinds.of(settings).groups(settings)
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


def _draw_group(partial, settings, group):
    kind = kinds.of(settings)
    missing = [job for job in group if not os.path.exists(os.path.join(partial, job.path))]
    shared = kind.start(missing[0], settings) if missing else None
    for job in missing:
        picture, jpeg = kind.picture(job, settings, shared)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", **jpeg)
        _write(os.path.join(partial, job.path), buffer.getvalue())
    return len(group)
