"""Training images that show nobody, made by a generator, behind the real ones."""

import dataclasses
import os

from reid_jax.data.loaders import walk
from reid_jax.data.records import Record
from reid_jax.errors import DataError


def add(dataset, folder):
    """The Dataset with all images below a folder behind its training rows, without identity (pid -1).

    They have the first camera and domain, which nothing reads. DataError where the folder has none, or the
    rows are tracklets or have rows without identity among them already.
    """
    if any(r.pid < 0 for r in dataset.train):
        raise DataError(
            "config.data.generated needs training rows that all have identities (no config.data.target); "
            "leave it empty"
        )
    if any(r.frames for r in dataset.train):
        raise DataError("config.data.generated adds single images, not tracklets; leave it empty")
    if not os.path.isdir(folder):
        raise DataError(f"config.data.generated={folder} is no folder")
    paths = [os.path.abspath(path) for path, _ in walk.pictures(folder)]
    if not paths:
        raise DataError(f"config.data.generated={folder} has no images")
    camera = min((r.camid for r in dataset.train), default=0)
    drawn = (Record(path, -1, camera, labels=dataset.train[0].labels) for path in paths)
    return dataclasses.replace(dataset, train=(*dataset.train, *drawn))
