"""Sets of people partly hidden, most of them for tests alone: hidden pictures search among whole ones.

Occluded-REID, Partial-REID, Partial-iLIDS, P-DukeMTMC-reID and P-ETHZ. Cameras are 0 for the hidden and 1 for
the whole pictures where the names tell none.
"""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, from_one, image_names, integer_folders, read_flat
from reid_jax.data.records import Record

WHOLE, OCCLUDED, PARTIAL = (f"{part}_body_images" for part in ("whole", "occluded", "partial"))
_PID = re.compile(r"(\d+)(?:_\d+)?\.")  # the second number counts pictures and is no camera
_CAMERA = re.compile(r".*?c(\d)")


def read_folders(root, camera, strange, pattern=None):
    """Records of PID/*.jpg below a folder; pattern: of names with a camera, else all are of `camera`."""
    records = []
    for pid, folder in integer_folders(root, strange):
        for name in image_names(folder):
            path, match = os.path.join(folder, name), pattern and pattern.match(name)
            if pattern and not match:
                strange.append(path)
            else:
                records.append(Record(path, pid, int(match[1]) if match else camera))
    return records


def by_person(root, options):
    """Occluded-REID: a folder for each person in each of the two folders."""
    strange = []
    query, gallery = (
        read_folders(os.path.join(root, f), c, strange) for c, f in enumerate((OCCLUDED, WHOLE))
    )
    return Reading(from_one({"train": [], "query": query, "gallery": gallery}), strange)


def flat(root, folders):
    """Query and gallery from two flat folders."""
    (query, odd), (gallery, more) = (
        read_flat(os.path.join(root, f), _PID, camera) for camera, f in enumerate(folders)
    )
    return Reading(from_one({"train": [], "query": query, "gallery": gallery}), odd + more)


def partial_reid(root, options):
    """Variant partial or occluded: the pictures that search."""
    return flat(root, (f"{options.variant}_body_images", WHOLE))


def partial_ilids(root, options):
    """The first pair of folders that is there."""
    return flat(root, next(f for f in ILIDS_FOLDERS if all(os.path.isdir(os.path.join(root, x)) for x in f)))


ILIDS_FOLDERS = (("query", "gallery"), ("Probe", "Gallery"))


def trained(root, pattern=None):
    """P-DukeMTMC-reID and P-ETHZ: both folders of train train; in test the hidden search among the whole."""
    strange, splits = [], {"train": [], "query": [], "gallery": []}
    for part, camera, folder, split in (
        ("train", 0, OCCLUDED, "train"),
        ("train", 1, WHOLE, "train"),
        ("test", 0, OCCLUDED, "query"),
        ("test", 1, WHOLE, "gallery"),
    ):
        splits[split] += read_folders(os.path.join(root, part, folder), camera, strange, pattern)
    return Reading(from_one(splits), strange)


_TRAINED = ("train", "test")
_TREE = "\n".join(f"    {part}/{folder}/0001/{{0}}" for part in _TRAINED for folder in (WHOLE, OCCLUDED))
_ASK = "Ask its authors for a copy"

LAYOUTS = {
    "occluded_reid": Layout(
        "Occluded-REID",
        by_person,
        ("Occluded_REID", "Occluded-REID", "occluded_reid", "OccludedREID"),
        ((OCCLUDED, WHOLE),),
        f"Occluded_REID/\n    {OCCLUDED}/001/001_01.tif\n    {WHOLE}/001/001_01.tif",
        f"{_ASK} (Zhuo et al., Occluded Person Re-identification, ICME 2018).",
        {"query ids": 200, "query images": 1000, "gallery ids": 200, "gallery images": 1000},
        terms="academic research only",
        trains=False,
    ),
    "partial_reid": Layout(
        "Partial-REID",
        partial_reid,
        ("Partial-REID_Dataset", "Partial_REID", "Partial-REID", "partial_reid"),
        ((PARTIAL, WHOLE),),
        "Partial-REID_Dataset/" + "".join(f"\n    {f}/001_001.jpg" for f in (PARTIAL, OCCLUDED, WHOLE)),
        f"{_ASK} (Zheng et al., Partial Person Re-identification, ICCV 2015).",
        {"query ids": 60, "query images": 300, "gallery ids": 60, "gallery images": 300},
        terms="academic research only",
        protocol="all-pairs",
        variants=("partial", "occluded"),
        differs={"occluded": {"parts": ((OCCLUDED, WHOLE),)}},
        trains=False,
    ),
    "partial_ilids": Layout(
        "Partial-iLIDS",
        partial_ilids,
        ("PartialiLIDS", "Partial_iLIDS", "Partial-iLIDS", "partial_ilids"),
        ILIDS_FOLDERS,
        "PartialiLIDS/\n    query/001_1.jpg\n    gallery/001_1.jpg",
        f"{_ASK} (Zheng, Gong and Xiang, Person Re-identification by Probabilistic Relative Distance, 2011).",
        {"query ids": 119, "query images": 119, "gallery ids": 119, "gallery images": 119},
        terms="not stated; ask its authors",
        protocol="all-pairs",
        trains=False,
    ),
    "p_dukemtmc": Layout(
        "P-DukeMTMC-reID",
        lambda root, options: trained(root, _CAMERA),
        ("P-DukeMTMC-reID", "P-DukeMTMC-reid", "p_dukemtmc"),
        (_TRAINED,),
        "P-DukeMTMC-reID/\n" + _TREE.format("c2_f0046182.jpg"),
        f"{_ASK} (Zhuo et al., 2018). It is cut from DukeMTMC-reID, which its authors have withdrawn.",
        {"train ids": 665, "train images": 12927, "query ids": 634, "query images": 2163}
        | {"gallery ids": 634, "gallery images": 9053},
        terms="cut from a set that its authors have withdrawn",
    ),
    "p_ethz": Layout(
        "P-ETHZ",
        lambda root, options: trained(root),
        ("P-ETHZ", "p_ethz"),
        (_TRAINED,),
        "P-ETHZ/\n" + _TREE.format("01.png"),
        f"{_ASK} (Zhuo et al., 2018).",
        {"images": 3897},
        terms="academic research only",
    ),
}
