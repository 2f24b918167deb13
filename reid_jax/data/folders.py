"""Readers of the original folder layouts: which file is whose picture, seen by which camera.

A reader takes the data set's own folder and returns (splits, strange): splits maps train, query and gallery
to Records with the labels as published (pid -1 = junk, camid = camera number); strange lists paths or lines
whose names do not follow the layout.
"""

import os
import re

from reid_jax.data.records import Record
from reid_jax.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
PID_CAMERA = re.compile(r"(-?\d+)_c(\d+)")  # 0002_c1s1_000451_03.jpg, 0001_c2_f0046182.jpg


def listing(folder):
    """Sorted names in a folder, hidden files left out; DataError when it cannot be read."""
    try:
        return sorted(n for n in os.listdir(folder) if not n.startswith("."))
    except OSError as e:
        raise DataError(f"cannot read the folder {folder}: {e.strerror}") from e


def image_names(folder):
    """Sorted names of image files in a folder (Thumbs.db and the like are no images)."""
    return [n for n in listing(folder) if n.lower().endswith(IMAGES)]


def read_market(root):
    """Market-1501 and DukeMTMC-reID: {bounding_box_train,query,bounding_box_test}/PID_cCAMERA*.jpg."""
    splits, strange = {}, []
    parts = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    for split, part in parts.items():
        folder, records = os.path.join(root, part), []
        for name in image_names(folder):
            path, match = os.path.join(folder, name), PID_CAMERA.match(name)
            if match:
                records.append(Record(path, int(match[1]), int(match[2])))
            else:
                strange.append(path)
        splits[split] = records
    return splits, strange


def read_msmt17(root):
    """MSMT17 V1 ({train,test}) and V2 (mask_{train,test}_v2): the list_*.txt files are authoritative.

    train is list_train plus list_val, the customary 1041 identities and 32621 images. Test pids restart at 0
    in the lists; here they follow the training pids, so that none collides and none is 0.
    """
    train, test = msmt17_folders(root)
    splits, strange = {"train": []}, []
    for part, split, folder in (
        ("train", "train", train),
        ("val", "train", train),
        ("query", "query", test),
        ("gallery", "gallery", test),
    ):
        records, odd = read_list(os.path.join(root, f"list_{part}.txt"), folder)
        splits[split] = splits.get(split, []) + records
        strange += odd
    check_present(splits["train"], train)
    check_present(splits["query"] + splits["gallery"], test)
    offset = 1 + max((r.pid for r in splits["train"]), default=0)
    for split in ("query", "gallery"):
        splits[split] = [Record(r.path, r.pid + offset, r.camid) for r in splits[split]]
    return splits, strange


def msmt17_folders(root):
    """(train, test) folders of whichever version lies in root."""
    for train, test in (("train", "test"), ("mask_train_v2", "mask_test_v2")):
        if os.path.isdir(os.path.join(root, train)) and os.path.isdir(os.path.join(root, test)):
            return os.path.join(root, train), os.path.join(root, test)
    raise DataError(f"{root} has neither train/ and test/ nor mask_train_v2/ and mask_test_v2/")


def read_list(path, folder):
    """(records, strange lines) of one MSMT17 list: "0000/0000_000_01_0303morning_0015_0.jpg 0" a line."""
    try:
        with open(path, encoding="utf-8") as f:
            lines = [line.strip() for line in f]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read {path}: {e}") from e
    records, strange = [], []
    for line in filter(None, lines):
        name, _, pid = line.rpartition(" ")
        fields = os.path.basename(name).split("_")
        if len(fields) > 3 and fields[2].isdigit() and re.fullmatch(r"-?\d+", pid):
            records.append(Record(os.path.join(folder, name.strip()), int(pid), int(fields[2])))
        else:
            strange.append(f"{path}: {line}")
    return records, strange


def check_present(records, folder):
    """DataError when listed files are not in the folder."""
    names = {}
    for r in records:
        names.setdefault(os.path.dirname(r.path), set()).add(r.path)
    missing = []
    for parent, paths in names.items():
        present = {os.path.join(parent, n) for n in os.listdir(parent)} if os.path.isdir(parent) else set()
        missing += sorted(paths - present)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} listed images are missing under {folder}, "
            f"first {missing[0]}: the copy is incomplete; unpack the archive again"
        )


def read_me_reid(root):
    """ME-ReID: {train,query,gallery}/PID/CAMID/NAME.png, any integers, names without meaning.

    A data set whose queries use pid 0 counts from 0: its test pids then move up by one, so that 0 stays the
    label of distractors.
    """
    splits, strange = {}, []
    for split in ("train", "query", "gallery"):
        splits[split], odd = read_nested(os.path.join(root, split))
        strange += odd
    if any(r.pid == 0 for r in splits["query"]):
        for split in ("query", "gallery"):
            splits[split] = [Record(r.path, r.pid + (r.pid >= 0), r.camid) for r in splits[split]]
    return splits, strange


def read_nested(folder):
    """(records, strange paths) of FOLDER/PID/CAMID/*.png."""
    records, strange = [], []
    for pid, person in integer_folders(folder, strange):
        for camid, view in integer_folders(person, strange):
            records += [Record(os.path.join(view, n), pid, camid) for n in image_names(view)]
    return records, strange


def integer_folders(folder, strange):
    """[(number, path)] of the sub-folders in numeric order; other entries are added to `strange`."""
    found = []
    for name in listing(folder):
        path = os.path.join(folder, name)
        if re.fullmatch(r"-?\d+", name) and os.path.isdir(path):
            found.append((int(name), path))
        elif os.path.isdir(path) or name.lower().endswith(IMAGES):
            strange.append(path)
    return sorted(found)
