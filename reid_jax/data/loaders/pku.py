"""PKU-Reid: PPP/CC_D.png, a folder for each person, camera 01 or 02, directions 1 to 8; drawn halves."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, draw_half, image_names, listing, of_ids
from reid_jax.data.records import Record

NAME = re.compile(r"(\d{2})_(\d)\.")
_FOLDER = re.compile(r"\d{3,4}")


def read(root, options):
    """Half of the people, drawn by the split's number, trains; every picture of the others is a query."""
    records, strange = [], []
    for folder in listing(root):
        if not (_FOLDER.fullmatch(folder) and os.path.isdir(os.path.join(root, folder))):
            continue
        for name in image_names(os.path.join(root, folder)):
            match, path = NAME.match(name), os.path.join(root, folder, name)
            if match:
                records.append(Record(path, int(folder), int(match[1])))
            else:
                strange.append(path)
    ids = {r.pid for r in records}
    train, test = draw_half(ids, len(ids) // 2, options)
    tested = of_ids(records, test)
    splits = {"train": of_ids(records, train), "query": tested, "gallery": tested}
    return Reading(splits, strange, {"train_ids": train})


LAYOUTS = {
    "pku_reid": Layout(
        "PKU-Reid",
        read,
        ("pku_reid_74", "PKU-Reid", "PKUv1a_128x48"),
        (("001",), ("0001",)),
        "PKU-Reid/\n    001/01_1.png",
        "Its page: https://github.com/charliememory/PKU-Reid-Dataset",
        {},
        terms="CC BY-NC-SA 4.0 (Ma and others, arXiv 1605.02464)",
        num_splits=20,
    ),
}
