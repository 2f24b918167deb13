"""PRID2011, multi-shot: multi_shot/cam_{a,b}/person_0001/0001.png and ten half-half splits in a JSON file."""

import json
import logging
import os
import re

from reid_jax.data.loaders.common import Layout, Reading, draw_half, image_names, listing
from reid_jax.data.records import Record
from reid_jax.errors import DataError

log = logging.getLogger(__name__)

SPLITS = "splits_prid2011.json"
CAMERAS = ("cam_a", "cam_b")
LONGER_THAN = 21  # frames in both cameras, which leaves 178 of the 200 persons


def read(root, options):
    """Query camera a, gallery camera b, of the test persons.

    The JSON file (in the folder or its parent) is a download of its own; without it the split is drawn from
    the persons with more than 21 frames in both cameras.
    """
    folder = os.path.join(root, "multi_shot")
    paths = [p for p in (os.path.join(root, SPLITS), os.path.join(os.path.dirname(root), SPLITS))]
    path = next((p for p in paths if os.path.exists(p)), None)
    a, b = (tracklets(os.path.join(folder, c), i) for i, c in enumerate(CAMERAS, 1))
    if path:
        train, test = published(path, options.split)
        absent = [name for name in (*train, *test) if name not in a or name not in b]
        if absent:
            raise DataError(
                f"{path} names {absent[0]} and {len(absent) - 1} others that are not in both cameras of "
                f"{folder}: the copy is incomplete; unpack the archive again"
            )
        drawn = {}
    else:
        both = [n for n in a if n in b and min(len(a[n]), len(b[n])) > LONGER_THAN]
        train, test = draw_half(both, len(both) // 2, options)
        drawn = {"train": train, "test": test, "split": options.split, "seed": options.seed}
        log.warning(
            "%s has no %s: split %d is drawn from its %d persons with more than %d frames in both cameras",
            root,
            SPLITS,
            options.split,
            len(both),
            LONGER_THAN,
        )
    splits = {
        "train": [r for name in train for r in (a[name], b[name])],
        "query": [a[name] for name in test],
        "gallery": [b[name] for name in test],
    }
    return Reading(splits, [], drawn)


def tracklets(folder, camera):
    """{person folder's name: Record} of one camera."""
    records = {}
    for name in listing(folder):
        path = os.path.join(folder, name)
        if match := re.fullmatch(r"person_(\d+)", name):
            if frames := tuple(os.path.join(path, n) for n in image_names(path)):
                records[name] = Record(frames[0], int(match[1]), camera, frames)
    return records


def published(path, split):
    """(train, test) person folders of one split of the JSON file."""
    try:
        with open(path, encoding="utf-8") as f:
            chosen = json.load(f)[split]
        return list(chosen["train"]), list(chosen["test"])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise DataError(
            f"{path} has no split {split} with train and test ({type(e).__name__}: {e}): copy it again, or "
            "remove it to draw the splits"
        ) from e


LAYOUTS = {
    "prid_video": Layout(
        "PRID2011 (multi-shot)",
        read,
        ("prid_2011", "prid2011", "PRID2011", "prid2011/prid_2011"),
        (tuple(f"multi_shot/{c}" for c in CAMERAS),),
        "prid_2011/\n    multi_shot/cam_a/person_0001/0001.png\n    multi_shot/cam_b/person_0001/0001.png\n"
        f"    {SPLITS}  (or beside prid_2011/; without it splits are drawn)",
        "Ask its authors for a copy (Hirzer et al., SCIA 2011, TU Graz).",
        {
            "train ids": 89,
            "train images": 178,
            "query images": 89,
            "gallery images": 89,
            "cameras": 2,
        },
        terms="not stated; ask its authors",
        kind="video",
        protocol="single-gallery",
        num_splits=10,
    ),
}
