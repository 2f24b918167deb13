"""LS-VID: lists of file-name prefixes, one for each tracklet, and an HDF5 file naming the queries."""

import bisect
import os
import re

import numpy as np

from reid_jax.data.loaders.common import Layout, Reading, from_one, image_names, inside, read_lines
from reid_jax.data.records import Record
from reid_jax.errors import DataError

LISTS = ("list_sequence/list_seq_train.txt", "list_sequence/list_seq_test.txt")
QUERIES = "test/data/info_test.mat"


def read(root, options):
    """The gallery holds the queries too, as is customary. A copy whose test pids begin at 0 counts them from
    1, as 0 marks distractors. The validation tracklets are not used."""
    del options
    info = root if os.path.exists(os.path.join(root, LISTS[0])) else os.path.join(root, "info")
    folders = {}
    train, test = (read_list(root, os.path.join(info, name), folders) for name in LISTS)
    query = query_rows(os.path.join(info, QUERIES), len(test))
    tested = from_one({"query": [test[i] for i in query], "gallery": test})
    return Reading({"train": train, **tested}, [])


def read_list(root, path, folders):
    """Records of a list of "PREFIX PID" lines; the row numbers count, so a line that is wrong is an error.

    folders: {path: sorted image names}, listings made so far.
    """
    records = []
    for i, line in enumerate(read_lines(path), 1):
        prefix, _, pid = line.rpartition(" ")
        prefix = inside(root, prefix.strip().lstrip("/"), path) if prefix.strip() else ""
        if not prefix or not re.fullmatch(r"-?\d+", pid):
            raise DataError(f"{path}: line {i} is not a path and an identity: {line!r}")
        frames = with_prefix(prefix, path, folders)
        cameras = {camera(f, path) for f in frames}
        if len(cameras) > 1:
            raise DataError(f"{path}: line {i}, {prefix}*, mixes the cameras {sorted(cameras)}")
        records.append(Record(frames[0], int(pid), cameras.pop(), frames))
    return records


def with_prefix(prefix, source, folders):
    """Sorted paths of the images whose names begin with a prefix; one listing for each folder."""
    folder, start = os.path.split(prefix)
    if folder not in folders:
        folders[folder] = image_names(folder) if os.path.isdir(folder) else []
    names = folders[folder]
    first = end = bisect.bisect_left(names, start)
    while end < len(names) and names[end].startswith(start):
        end += 1
    if first == end:
        raise DataError(
            f"{source} lists {prefix}*, but there is no such image: the copy is incomplete; unpack the "
            "archive again"
        )
    return tuple(os.path.join(folder, name) for name in names[first:end])


def camera(path, source):
    """Camera of a frame: the third of at least four fields of its name."""
    fields = os.path.basename(path).split("_")
    if len(fields) < 4 or not fields[2].isdigit():
        raise DataError(f"{path}, listed in {source}, has no camera as the third field of its name")
    return int(fields[2])


def query_rows(path, count):
    """Rows of the test list that are queries, from 0."""
    try:
        import h5py
    except ImportError as e:
        raise DataError(
            f"{path} is an HDF5 file: install the extra `datasets` to read it "
            "(pip install 'reid_jax[datasets]')"
        ) from e
    try:
        with h5py.File(path, "r") as f:
            rows = np.asarray(f["query"]).astype(np.int64).ravel() - 1
    except KeyError as e:
        raise DataError(f"{path} holds no `query`") from e
    except (OSError, TypeError, ValueError) as e:
        raise DataError(f"{path} cannot be read as an HDF5 file: {e}; copy it again") from e
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise DataError(
            f"{path} names rows {rows.min() + 1} to {rows.max() + 1}; there are {count} test tracklets"
        )
    return rows.tolist()


PARTS = ("tracklet_train", "tracklet_test")
LAYOUTS = {
    "ls_vid": Layout(
        "LS-VID",
        read,
        ("LS-VID", "LS_VID", "ls_vid", "ls-vid", "lsvid"),
        ((*PARTS, *LISTS, QUERIES), (*PARTS, *(f"info/{p}" for p in (*LISTS, QUERIES)))),
        "LS-VID/  (list_sequence/ and test/ may lie in info/)\n"
        "    tracklet_train/...  tracklet_val/...  tracklet_test/...\n"
        "    list_sequence/list_seq_train.txt  list_sequence/list_seq_test.txt\n"
        "    test/data/info_test.mat",
        "Ask its authors for a copy (Li et al., Global-local temporal representations, ICCV 2019).",
        {
            "train ids": 842,
            "train images": 2831,
            "query images": 3504,
            "gallery ids": 2730,
            "gallery images": 11333,
            "cameras": 15,
        },
        terms="not stated; ask its authors",
        kind="video",
    ),
}
