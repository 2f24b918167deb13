"""MSMT17 V1 ({train,test}) and V2 (mask_{train,test}_v2): the list_*.txt files are authoritative."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, check_present, inside, read_lines
from reid_jax.data.records import Record
from reid_jax.errors import DataError

VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")


def read(root, options):
    """train is list_train plus list_val, the customary 1041 identities and 32621 images.

    Variant "no-val": list_train alone, with the same identities; where everything trains, the others do too.
    Test pids restart at 0 in the lists; here they follow the training pids, so that none collides and none
    is 0.
    """
    train, test = folders(root)
    splits, strange = {"train": []}, []
    for part, split, folder in (
        ("train", "train", train),
        ("val", "train", train),
        ("query", "query", test),
        ("gallery", "gallery", test),
    ):
        if part == "val" and options.variant == "no-val" and not options.everything:
            continue
        records, odd = read_list(os.path.join(root, f"list_{part}.txt"), folder)
        splits[split] = splits.get(split, []) + records
        strange += odd
    check_present([r.path for r in splits["train"]], train, options)
    check_present([r.path for r in splits["query"] + splits["gallery"]], test, options)
    offset = 1 + max((r.pid for r in splits["train"]), default=0)
    for split in ("query", "gallery"):
        splits[split] = [Record(r.path, r.pid + offset, r.camid) for r in splits[split]]
    return Reading(splits, strange)


def folders(root):
    """(train, test) folders of whichever version lies in root."""
    for train, test in VERSIONS:
        if os.path.isdir(os.path.join(root, train)) and os.path.isdir(os.path.join(root, test)):
            return os.path.join(root, train), os.path.join(root, test)
    raise DataError(f"{root} has neither train/ and test/ nor mask_train_v2/ and mask_test_v2/")


def read_list(path, folder):
    """(records, strange lines) of one list: "0000/0000_000_01_0303morning_0015_0.jpg 0" a line."""
    records, strange = [], []
    for line in read_lines(path):
        name, _, pid = line.rpartition(" ")
        fields = os.path.basename(name).split("_")
        if len(fields) > 3 and fields[2].isdigit() and re.fullmatch(r"-?\d+", pid):
            records.append(Record(inside(folder, name.strip(), path), int(pid), int(fields[2])))
        else:
            strange.append(f"{path}: {line}")
    return records, strange


_COUNTS = {
    "train ids": 1041,
    "train images": 32621,
    "query ids": 3060,
    "query images": 11659,
    "gallery ids": 3060,
    "gallery images": 82161,
    "cameras": 15,
}
LAYOUTS = {
    "msmt17": Layout(
        "MSMT17",
        read,
        ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17"),
        tuple((*pair, *LISTS) for pair in VERSIONS),
        "MSMT17_V1/  (MSMT17_V2/: mask_train_v2/ and mask_test_v2/)\n"
        "    train/0000/0000_000_01_0303morning_0015_0.jpg\n"
        "    test/0000/0000_000_01_0303morning_0008_0.jpg\n"
        "    list_train.txt  list_val.txt  list_query.txt  list_gallery.txt",
        "Ask its authors for a copy (a signed agreement is needed): https://www.pkuvmc.com/dataset.html",
        _COUNTS,
        terms="signed release agreement, academic research only",
        variants=("", "no-val"),
        differs={"no-val": {"counts": _COUNTS | {"train images": 30248}}},
    ),
}
