"""CAVIAR4REID under the cross-resolution protocol: low-resolution queries search the other camera.

Either the original flat folder, PPPPNNN.jpg with 4 digits identity and 3 digits picture number, or the
folders of DI-REID (see mlr).
"""

import os
import re

import numpy as np
from PIL import Image

from reid_jax.data.loaders import mlr
from reid_jax.data.loaders.common import Layout, Reading, draw_half, from_one, image_names, of_ids
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError, DataError

FLAT = "CAVIARa"
_NAME = re.compile(r"(\d{4})(\d{3})\.")


def read(root, options):
    """The reorganised folders as they are, or the flat one with half of its two-camera identities drawn."""
    if os.path.isdir(os.path.join(root, "train")):
        if options.split:
            raise ConfigError(f"config.data.split is {options.split}; {root} holds a single split, 0")
        return mlr.read(root, options)
    folder = os.path.join(root, FLAT)
    return read_flat(folder if os.path.isdir(folder) else root, options)


def read_flat(folder, options):
    """Persons seen by one camera are left out; cameras are 0, of the smaller pictures, and 1.

    Picture numbers run through the first camera, then through as many of the second: a person whose numbers
    stay in the lower half was seen by one camera.
    """
    numbered, strange = {}, []
    for name in image_names(folder):
        path, match = os.path.join(folder, name), _NAME.match(name)
        if match and int(match[2]):
            numbered.setdefault(int(match[1]), {})[path] = int(match[2])
        else:
            strange.append(path)
    half = max((n for files in numbered.values() for n in files.values()), default=0) // 2
    both = {p: files for p, files in numbered.items() if max(files.values()) > half >= min(files.values())}
    if len(both) < 2:
        raise DataError(f"{folder} holds {len(both)} persons seen by both cameras; at least two are needed")
    views = [], []
    for pid, files in both.items():
        for path, number in files.items():
            views[number > half].append(Record(path, pid, 0))
    low, high = sorted(views, key=median_area)
    high = [Record(r.path, r.pid, 1) for r in high]
    train, test = draw_half(both, len(both) // 2, options)
    splits = {
        "train": of_ids(low + high, train),
        "query": of_ids(low, test),
        "gallery": of_ids(high, test),
    }
    return Reading(from_one(splits), strange, {"train_ids": train}, mlr.CAMERAS)


def median_area(records):
    """Median picture size in pixels; files that are no picture are passed over, they tell when read."""
    areas = []
    for r in records:
        try:
            with Image.open(r.path) as image:
                areas.append(image.width * image.height)
        except Exception:  # PIL's plugins raise whatever a damaged byte leads to
            continue
    if not areas:
        raise DataError(
            f"no picture of a camera can be read, the first is {records[0].path}: copy them again"
        )
    return float(np.median(areas))


LAYOUTS = {
    "caviar": Layout(
        "CAVIAR4REID",
        read,
        ("CAVIAR4REID", "CAVIAR", FLAT, "caviar"),
        (mlr.SPLITS, (FLAT,), ("0001001.jpg",)),
        "CAVIAR4REID/\n    CAVIARa/0001001.jpg\n"
        "or  train/0020/00020_c0_00000.jpg  query/...  gallery/...  (c0 low resolution, c1 high)",
        "Its page: https://lorisbaz.github.io/caviar4reid.html",
        {
            "train ids": 25,
            "train images": 500,
            "query ids": 25,
            "query images": 250,
            "gallery ids": 25,
            "gallery images": 250,
            "cameras": 2,
        },
        terms="not stated; ask its authors (Cheng et al., 2011)",
        protocol="single-shot",
        num_splits=10,
    ),
}
