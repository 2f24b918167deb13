"""CUHK02: Dataset/P{1..5}/cam{1,2}/PID_*.png; identities count anew in each pair of cameras."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, from_one, image_names
from reid_jax.data.loaders.cuhk01 import SOURCE
from reid_jax.data.records import Record

TEST_PAIR = 5
_NAME = re.compile(r"(\d+)_")
_STRIDE = 100_000  # keeps the training identities of the pairs apart


def read(root, options):
    """Pairs 1 to 4 train; pair 5 tests, camera 1 against camera 2, under its own identity numbers."""
    del options
    root, strange = os.path.join(root, "Dataset"), []
    splits = {"train": []}
    for pair in range(1, TEST_PAIR):
        for view in (1, 2):
            splits["train"] += read_view(root, pair, view, pair * _STRIDE, strange)
    splits["query"] = read_view(root, TEST_PAIR, 1, 0, strange)
    splits["gallery"] = read_view(root, TEST_PAIR, 2, 0, strange)
    return Reading(from_one(splits), strange)


def read_view(root, pair, view, offset, strange):
    """Records of one camera, number 2 (pair - 1) + view, pids moved up by offset."""
    folder, records = os.path.join(root, f"P{pair}", f"cam{view}"), []
    for name in image_names(folder):
        path, match = os.path.join(folder, name), _NAME.match(name)
        if match:
            records.append(Record(path, int(match[1]) + offset, 2 * (pair - 1) + view))
        else:
            strange.append(path)
    return records


LAYOUTS = {
    "cuhk02": Layout(
        "CUHK02",
        read,
        ("CUHK02", "cuhk02"),
        (tuple(f"Dataset/P{pair}/cam{view}" for pair in range(1, 6) for view in (1, 2)),),
        "cuhk02/\n    Dataset/P1/cam1/001_1.png ... Dataset/P5/cam2/239_2.png",
        SOURCE,
        {
            "train ids": 1577,
            "train images": 6308,
            "query ids": 239,
            "query images": 478,
            "gallery ids": 239,
            "gallery images": 478,
            "cameras": 10,
        },
        terms="academic research only; ask its authors",
    ),
}
