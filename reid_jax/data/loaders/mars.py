"""MARS: bbox_{train,test}/PID/NAME.jpg; matrices in info/ say which lines of a list are a tracklet."""

import functools
import os

import numpy as np

from reid_jax.data.loaders.common import Layout, Reading, check_present, inside, read_lines, read_mat
from reid_jax.data.records import Record
from reid_jax.errors import DataError

FILES = (
    "info/train_name.txt",
    "info/test_name.txt",
    "info/tracks_train_info.mat",
    "info/tracks_test_info.mat",
    "info/query_IDX.mat",
)


def read(root, options):
    """The gallery holds the queries too, as the published evaluation uses all test tracklets: a query's own
    is left out by the camera rule, and 140 queries would have no match otherwise."""
    info = os.path.join(root, "info")
    of = functools.partial(tracklets, root, options)
    train = of("bbox_train", "train_name.txt", "tracks_train_info.mat", "track_train_info")
    test = of("bbox_test", "test_name.txt", "tracks_test_info.mat", "track_test_info")
    query = query_rows(os.path.join(info, "query_IDX.mat"), len(test))
    return Reading({"train": train, "query": [test[i] for i in query], "gallery": test}, [])


def tracklets(root, options, folder, names, matrix, key):
    """Records of one matrix [n,4]: first and last line (from 1, inclusive) of a name list, pid, camera."""
    folder = os.path.join(root, folder)
    source = os.path.join(root, "info", names)
    lines = read_lines(source)
    path = os.path.join(root, "info", matrix)
    rows = read_integers(path, key)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise DataError(f"{path}: {key} has the shape {rows.shape} instead of rows of four numbers")
    records = []
    for i, (first, last, pid, camera) in enumerate(rows.tolist(), 1):
        if not 1 <= first <= last <= len(lines):
            raise DataError(
                f"{path}: row {i} is lines {first} to {last}, but {source} has {len(lines)} lines: they are "
                "not of the same copy"
            )
        frame_names = lines[first - 1 : last]
        if len({(name[:4], name[5:6]) for name in frame_names}) > 1:
            raise DataError(
                f"{path}: row {i} mixes identities or cameras: lines {first} to {last} of {source} go from "
                f"{frame_names[0]} to {frame_names[-1]}; the two files are not of the same copy"
            )
        frames = tuple(frame_path(folder, name, source) for name in frame_names)
        records.append(Record(frames[0], pid, camera, frames))
    check_present([frame for r in records for frame in r.frames], folder, options)
    return records


def frame_path(folder, name, source):
    """FOLDER/PID/NAME; a million of them, so that only odd names get a closer look."""
    path = f"{name[:4]}/{name}"
    return inside(folder, path, source) if "/" in name else f"{folder}/{path}"


def read_integers(path, name):
    """i64 array of one variable of a MATLAB file: they are stored in 8 or 16 bits, which would overflow."""
    (values,) = read_mat(path, name)
    return np.asarray(values).astype(np.int64)


def query_rows(path, count):
    """Rows of the test matrix that are queries, from 0."""
    rows = read_integers(path, "query_IDX").ravel() - 1
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise DataError(
            f"{path} names rows {rows.min() + 1} to {rows.max() + 1}; there are {count} test tracklets"
        )
    return rows.tolist()


LAYOUTS = {
    "mars": Layout(
        "MARS",
        read,
        ("MARS", "mars"),
        (("bbox_train", "bbox_test", *FILES),),
        "MARS/\n    bbox_train/0001/0001C1T0001F001.jpg\n    bbox_test/0002/0002C1T0001F001.jpg\n"
        + "".join(f"    {name}\n" for name in FILES).rstrip(),
        "Ask its authors for a copy (Zheng et al., MARS, ECCV 2016); info/ is that of "
        "https://github.com/liangzheng06/MARS-evaluation",
        {
            "train ids": 625,
            "train images": 8298,
            "query ids": 626,
            "query images": 1980,
            "gallery images": 11310,
            "cameras": 6,
        },
        terms="not stated; ask its authors",
        kind="video",
        distractors=True,
    ),
}
