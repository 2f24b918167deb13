"""ME-ReID: {train,query,gallery}/PID/CAMID/NAME.png, any integers, names without meaning."""

import os

from reid_jax.data.loaders.common import Layout, Reading, from_one, image_names, integer_folders
from reid_jax.data.records import Record

SPLITS = ("train", "query", "gallery")


def read(root, options):
    """A copy that counts persons from 0 has its pids moved up by one, as 0 marks distractors."""
    del options
    splits, strange = {}, []
    for split in SPLITS:
        splits[split], odd = read_nested(os.path.join(root, split))
        strange += odd
    return Reading(from_one(splits), strange)


def read_nested(folder):
    """(records, strange paths) of FOLDER/PID/CAMID/*.png."""
    records, strange = [], []
    for pid, person in integer_folders(folder, strange):
        for camid, view in integer_folders(person, strange):
            records += [Record(os.path.join(view, n), pid, camid) for n in image_names(view)]
    return records, strange


LAYOUTS = {
    "me_reid": Layout(
        "ME-ReID",
        read,
        ("ME-ReID", "ME-ReID-dataset", "me_reid", "me-reid"),
        (SPLITS,),
        "ME-ReID/\n    train/PID/CAMID/NAME.png\n    query/PID/CAMID/NAME.png\n"
        "    gallery/PID/CAMID/NAME.png",
        "Ask its authors for a copy: https://github.com/liuyf21/ME-ReID-dataset",
        {"images": 5908, "cameras": 30},
        terms="not stated; ask its authors",
    ),
}
