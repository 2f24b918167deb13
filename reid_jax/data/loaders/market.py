"""Market-1501 and DukeMTMC-reID: {bounding_box_train,query,bounding_box_test}/PID_cCAMERA*.jpg."""

import os

from reid_jax.data.loaders.common import (
    PID_CAMERA,
    Layout,
    Reading,
    check_present,
    image_names,
    inside,
    read_flat,
    read_lines,
)
from reid_jax.data.records import Record
from reid_jax.errors import DataError

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
TREE = """\
    bounding_box_train/{0}
    query/{0}
    bounding_box_test/{0}"""


def read(root, options):
    """The three folders; variant '500k' appends the pictures of images/ to the gallery as distractors."""
    splits, strange = {}, []
    for split, folder in FOLDERS.items():
        splits[split], odd = read_flat(os.path.join(root, folder))
        strange += odd
    if options.variant == "500k":
        splits["gallery"] = splits["gallery"] + extra_distractors(os.path.join(root, "images"))
    return Reading(splits, strange)


OCCLUDED = ("Occluded_Duke", "Occluded-DukeMTMC-reID", "Occluded-DukeMTMC", "occluded_duke")
LISTS = {"train": "train.list", "query": "query.list", "gallery": "gallery.list"}


def read_duke(root, options):
    """The three folders; variant 'occluded': those of Occluded-Duke, or its lists over DukeMTMC-reID's."""
    folder = lists_of(root) if options.variant == "occluded" else ""
    if not folder:
        if options.variant == "occluded" and os.path.basename(root) in DUKE:
            raise DataError(
                f"config.data.variant is 'occluded', but neither {root} nor a folder {OCCLUDED[0]} in or "
                f"beside it has {', '.join(LISTS.values())}, the lists of Occluded-Duke: put them there"
            )
        return read(root, options)
    return Reading({split: listed(root, folder, split, options) for split in LISTS}, [])


DUKE = ("DukeMTMC-reID", "dukemtmc-reid", "dukemtmc", "DukeMTMC")


def lists_of(root):
    """The folder with Occluded-Duke's name lists: root, or OCCLUDED in it or beside it; "" without."""
    places = [root, *(os.path.join(p, n) for p in (root, os.path.dirname(root)) for n in OCCLUDED)]
    complete = (p for p in places if all(os.path.isfile(os.path.join(p, n)) for n in LISTS.values()))
    return next(complete, "")


def listed(root, lists, split, options):
    """Records of a name list; a query lies in Duke's query or in its gallery."""
    source, folder = os.path.join(lists, LISTS[split]), os.path.join(root, FOLDERS[split])
    there = set(image_names(folder))
    records = []
    for name in read_lines(source):
        match = PID_CAMERA.match(name)
        if not match:
            raise DataError(f"{source} has a line {name!r}, which is no picture's name: copy the list again")
        moved = split == "query" and name not in there
        path = inside(os.path.join(root, FOLDERS["gallery"]) if moved else folder, name, source)
        records.append(Record(path, int(match[1]), int(match[2])))
    check_present([r.path for r in records], root, options)
    return records


def extra_distractors(folder):
    """Records of the 500k set: pid 0, camera 1 (they match nobody, so the camera does not count)."""
    if not os.path.isdir(folder):
        raise DataError(
            f"config.data.variant is '500k', but {folder} does not exist: put the 500k images there"
        )
    return [Record(os.path.join(folder, name), 0, 1) for name in image_names(folder)]


LAYOUTS = {
    "market1501": Layout(
        "Market-1501",
        read,
        ("Market-1501-v15.09.15", "Market-1501", "market1501", "Market1501"),
        (tuple(FOLDERS.values()),),
        "Market-1501-v15.09.15/\n" + TREE.format("0002_c1s1_000451_03.jpg"),
        "Ask its authors for a copy: https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
        {
            "train ids": 751,
            "train images": 12936,
            "query ids": 750,
            "query images": 3368,
            "gallery ids": 751,  # 750 and the distractors' 0
            "gallery images": 15913,
            "cameras": 6,
        },
        terms="academic research only",
        variants=("", "500k"),
        differs={"500k": {"counts": {"train images": 12936, "query images": 3368, "cameras": 6}}},
        distractors=True,
    ),
    "dukemtmc": Layout(
        "DukeMTMC-reID",
        read_duke,
        DUKE,
        (tuple(FOLDERS.values()),),
        "DukeMTMC-reID/\n" + TREE.format("0001_c2_f0046182.jpg"),
        "Its authors have withdrawn the data set and no longer hand it out: only a copy you already hold, "
        "and are allowed to use, can be loaded. Market-1501 and MSMT17 are the usual replacements.",
        {
            "train ids": 702,
            "train images": 16522,
            "query ids": 702,
            "query images": 2228,
            "gallery ids": 1110,
            "gallery images": 17661,
            "cameras": 8,
        },
        terms="withdrawn by its authors",
        variants=("", "occluded"),
        differs={
            "occluded": {
                "title": "Occluded-Duke",
                "names": (*OCCLUDED, *DUKE),
                "counts": {
                    **{"train ids": 702, "train images": 15618, "query ids": 519, "query images": 2210},
                    **{"gallery ids": 1110, "gallery images": 17661, "cameras": 8},
                },
            }
        },
        distractors=True,
    ),
}
