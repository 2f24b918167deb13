"""iLIDS-VID: one tracklet of each person and camera, and ten published half-half splits."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, image_names, listing
from reid_jax.data.loaders.mars import read_integers
from reid_jax.data.records import Record
from reid_jax.errors import DataError

SPLITS = "train-test people splits/train_test_splits_ilidsvid.mat"
CAMERAS = ("cam1", "cam2")
NAME = re.compile(r"cam(\d)_person(\d+)_")


def read(root, options):
    """The first half of a split's row is for testing: query camera 1, gallery camera 2.

    Its numbers are places (from 1) in the sorted list of person folders, whose own numbers have gaps.
    """
    nested = os.path.join(root, "i-LIDS-VID")
    sequences = os.path.join(nested if os.path.isdir(nested) else root, "sequences")
    first, second = ({n for n in listing(os.path.join(sequences, c)) if person(n)} for c in CAMERAS)
    if first != second:
        odd = sorted(first ^ second)
        raise DataError(
            f"{sequences}: {len(odd)} person folders are in one camera only, first {odd[0]}: the copy is "
            "incomplete, and the splits count folders; unpack the archive again"
        )
    folders = sorted(first)
    test, train = split_rows(os.path.join(root, SPLITS), options.split, len(folders))
    a, b = ([tracklet(os.path.join(sequences, c), name) for name in folders] for c in CAMERAS)
    return Reading(
        {
            "train": [r for i in sorted(train) for r in (a[i], b[i])],
            "query": [a[i] for i in sorted(test)],
            "gallery": [b[i] for i in sorted(test)],
        },
        [],
    )


def person(name):
    """Number of person003, None for another name."""
    match = re.fullmatch(r"person(\d+)", name)
    return int(match[1]) if match else None


def split_rows(path, split, count):
    """(test, train) places from 0 of one split of `count` persons."""
    rows = read_integers(path, "ls_set")
    if rows.ndim != 2 or split >= len(rows):
        raise DataError(f"{path}: ls_set has the shape {rows.shape}, and no row {split + 1}")
    places = rows[split] - 1
    if sorted(places.tolist()) != list(range(count)):
        raise DataError(
            f"{path}: row {split + 1} is no arrangement of 1 to {count}, the number of person folders: the "
            "copy is incomplete; unpack the archive again"
        )
    return places[: count // 2].tolist(), places[count // 2 :].tolist()


def tracklet(camera, name):
    """Record of one person folder of a camera folder."""
    folder = os.path.join(camera, name)
    names = image_names(folder)
    if not names:
        raise DataError(f"{folder} holds no image: unpack the archive again")
    ids = (int(os.path.basename(camera)[3:]), person(name))
    for n in names:
        match = NAME.match(n)
        if not match or (int(match[1]), int(match[2])) != ids:
            raise DataError(f"{os.path.join(folder, n)} is no frame of camera {ids[0]}, person {ids[1]}")
    frames = tuple(os.path.join(folder, n) for n in names)
    return Record(frames[0], ids[1], ids[0], frames)


LAYOUTS = {
    "ilids_vid": Layout(
        "iLIDS-VID",
        read,
        ("iLIDS-VID", "ilids-vid", "ilids_vid"),
        tuple((*(f"{where}sequences/{c}" for c in CAMERAS), SPLITS) for where in ("i-LIDS-VID/", "")),
        "iLIDS-VID/\n    i-LIDS-VID/sequences/cam1/person001/cam1_person001_00317.png\n"
        "    i-LIDS-VID/sequences/cam2/person001/cam2_person001_00317.png\n"
        f"    {SPLITS}",
        "Ask its authors for a copy (Wang et al., Person re-identification by video ranking, ECCV 2014).",
        {
            "train ids": 150,
            "train images": 300,
            "query images": 150,
            "gallery images": 150,
            "cameras": 2,
        },
        terms="not stated; ask its authors",
        kind="video",
        protocol="single-gallery",
        num_splits=10,
    ),
}
