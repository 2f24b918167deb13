"""Body points of pictures from a pose network: AlphaPose's and OpenPose's JSON, one for all or for each.

A person is 18 points (x, y, confidence) in OpenPose's order: nose, neck, right arm, left arm, right leg, left
leg, eyes, ears. Of several people in a picture the one with the most sure points counts.
"""

import json
import logging
import os

import numpy as np
from PIL import Image

from reid_jax import places
from reid_jax.data.decode import ORIENTATION
from reid_jax.data.records import with_labels
from reid_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)
SURE = 0.2  # confidence above which a point counts
COUNT = 18
_COCO = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # of 17 points and the neck
_BODY_25 = (*range(8), *range(9, 19))
_PERSON = ("pose_keypoints_2d", "pose_keypoints", "joints", "keypoints")


def attach(dataset, data):
    """The Dataset whose records have labels points f32[18,3], in pixels of the picture, and size f32[2].

    data: a config's section; data.points: a file or folder of JSON, or "true", those of a synthetic set. size
    is the picture's height and width. All 0 for pictures without a file, or without a sure point: a pose is
    not known there. Errors: ConfigError for sets without points, DataError for files that cannot be used.
    """
    if dataset.kind == "video" or data.source != "folder":
        raise ConfigError(
            f"config.data.points is {data.points!r}; points are for pictures of config.data.source=folder"
        )
    find = true_points(dataset) if data.points == "true" else Files(data.points).of
    dataset = with_labels(dataset, lambda record: labels(record.path, find, data.exif))
    for split in ("train", "query", "gallery"):
        records = getattr(dataset, split)
        known = sum(r.labels["points"].any() for r in records)
        log.info("%s: body points of %d of %d pictures of %s", dataset.name, known, len(records), split)
    if not any(r.labels["points"].any() for r in dataset.train):
        raise DataError(
            f"config.data.points: {data.points} has points of no training picture of {dataset.name}; "
            "files are called as the pictures (NAME.json or NAME_keypoints.json), or name them"
        )
    return dataset


def true_points(dataset):
    """path -> f32[18,3] or None of a synthetic set; ConfigError for another."""
    from reid_jax.data.synthetic import truth

    if not dataset.name.startswith("synthetic") or dataset.roots:
        raise ConfigError(
            f"config.data.points is 'true', but {dataset.name} is no synthetic set: name a file or folder"
        )
    known = truth.points(dataset.root)
    return lambda path: known.get(truth.relative(path, dataset.root))


def labels(path, find, exif=True):
    """{"points": f32[18,3], "size": f32[2]} of a picture."""
    points = find(path)
    if points is None or not (points[:, 2] > np.float32(SURE)).any():
        return {"points": np.zeros((COUNT, 3), np.float32), "size": np.ones(2, np.float32)}
    return {"points": points, "size": size_of(path, exif)}


def size_of(path, exif=True):
    """f32[2] height and width of a picture file as it is seen, by its header; ones for one that has none."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = exif and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # what a damaged file leads to; whoever reads the picture says so
        return np.ones(2, np.float32)
    return np.array((width, height) if turned else (height, width), np.float32)


class Files:
    """Points of pictures from a file or from all .json files of a folder and below."""

    def __init__(self, path):
        self.path = places.local(path, "config.data.points")
        self.known = {}  # name without folders and suffix: [(folders, points)]
        for file, inside in json_files(self.path):
            for name, people in people_of(load(file), inside, file):
                *above, last = stem(name).split("/")
                self.known.setdefault(last, []).append((above, person(people)))

    def of(self, path):
        """f32[18,3] of a picture, None where there is none; DataError where two files could be meant."""
        *above, last = stem(path.replace(os.sep, "/")).split("/")
        matches = self.known.get(last, ())
        if len(matches) > 1:
            score = [common(above, folders) for folders, _ in matches]
            matches = [f for f, s in zip(matches, score, strict=True) if s == max(score)]
        if any(not same(points, matches[0][1]) for _, points in matches[1:]):
            raise DataError(
                f"{self.path} has several points for {path}: keep them in folders called as the pictures'"
            )
        return matches[0][1] if matches else None


def same(a, b):
    """Whether two points, or None, are alike."""
    return np.array_equal(np.zeros(0) if a is None else a, np.zeros(0) if b is None else b)


def common(a, b):
    """How many last entries two lists share."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def stem(name):
    """A picture's or a point file's name without suffix."""
    return os.path.splitext(name)[0].removesuffix("_keypoints")


def json_files(path):
    """[(file, its name below the folder)]; DataError when there is none."""
    if os.path.isfile(path):
        return [(path, os.path.basename(path))]
    files = [
        (os.path.join(folder, name), os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/"))
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(".json")
    ]
    if not files:
        raise DataError(f"config.data.points: {path} is neither a .json file nor a folder with such files")
    return sorted(files)


def load(file):
    """What a JSON file holds; DataError when it cannot be read."""
    try:
        with open(file, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{file} cannot be read as JSON ({e}): make it again, or remove it") from e


def people_of(tree, name, file):
    """[(picture's name, [f32[18,3] of each person])] of a file; name: its own, of files of one picture.

    Known are OpenPose's {"people": ..}, AlphaPose's {NAME: {"people": ..}} and {NAME: {"bodies": ..}}, and
    COCO's [{"image_id": NAME, "keypoints": ..}]. DataError for anything else.
    """
    try:
        if isinstance(tree, list):
            by_name = {}
            for entry in tree:
                by_name.setdefault(str(entry["image_id"]), []).append(entry)
        else:
            single = "people" in tree or "bodies" in tree
            by_name = {
                n: t.get("people", t.get("bodies")) for n, t in ({name: tree} if single else tree).items()
            }
        return [(n, [points_of(entry) for entry in entries]) for n, entries in by_name.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"{file} holds no points of AlphaPose or OpenPose ({e!r}): see data/README.md") from e


def points_of(entry):
    """f32[18,3] of a person; ValueError unless there are 17 (COCO), 18 or 25 (BODY_25) points."""
    numbers = np.asarray(next(entry[key] for key in _PERSON if key in entry), np.float32)
    if numbers.size % 3 or not np.isfinite(numbers).all():
        raise ValueError(f"{numbers.size} numbers, or some that are not finite")
    points = numbers.reshape(-1, 3)
    if len(points) == 17:  # the neck is the middle of the shoulders, as AlphaPose writes it
        return np.vstack([points, points[5:7].mean(0)])[list(_COCO)]
    if len(points) == 25:
        return points[list(_BODY_25)]
    if len(points) != COUNT:
        raise ValueError(f"{len(points)} points of a person; 17, 18 and 25 are known")
    return points


def person(people, threshold=SURE, last=False):
    """The one of [f32[18,3]] with the most points above the threshold; None where nobody has any.

    On a tie the first, or the last.
    """
    counts = [int((points[:, 2].astype(np.float32) > np.float32(threshold)).sum()) for points in people]
    if not any(counts):
        return None
    return people[len(counts) - 1 - int(np.argmax(counts[::-1])) if last else int(np.argmax(counts))]
