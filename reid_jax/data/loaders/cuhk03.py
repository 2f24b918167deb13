"""CUHK03: pictures inside cuhk-03.mat (HDF5), taken out once; the 767/700 and the classic protocol.

The pictures go to images_{detected,labeled}/PAIR_PID_VIEW_NN.png beside the .mat, the 20 classic test sets
to classic_splits.json. h5py is needed for that alone.
"""

import contextlib
import json
import os
import re
import shutil

import numpy as np
from PIL import Image
from tqdm import tqdm

from reid_jax.data.loaders.common import (
    Layout,
    Reading,
    check_present,
    from_one,
    image_names,
    inside,
    of_ids,
    read_mat,
    writing,
)
from reid_jax.data.loaders.cuhk01 import SOURCE
from reid_jax.data.records import Record
from reid_jax.errors import DataError

MAT, RELEASE, CLASSIC = "cuhk-03.mat", "cuhk03_release", "classic_splits.json"
NAME = re.compile(r"(\d)_(\d{3,})_([12])_(\d{2})\.png")
_STRIDE = 100_000  # a person's number counts anew in each pair of cameras


def read(root, options):
    """The 767/700 split ("detected", "labeled") or one of the 20 classic ones ("classic-detected", ...).

    "classic-both": that of the detected boxes, for which the labeled ones train too.
    """
    protocol, _, boxes = options.variant.rpartition("-")
    if boxes == "both":
        return read_both(root, options)
    folder = images(root, boxes)
    if protocol == "classic":
        return read_classic(folder, classic_tests(root)[options.split])
    config = os.path.join(root, f"cuhk03_new_protocol_config_{boxes}.mat")
    if not os.path.exists(config):
        raise DataError(
            f"{config} is missing: the 767/700 split comes apart from the pictures (CUHK03-NP, Zhong et al. "
            f"2017); without it there is config.data.variant='classic-{boxes}'"
        )
    return read_new(folder, config, options)


def read_new(folder, config, options):
    """Reading of the split in a protocol file: 1-based rows of its list of file names."""
    parts = ("train", "query", "gallery")
    names, labels, *rows = read_mat(config, "filelist", "labels", *(f"{p}_idx" for p in parts))
    names, labels = [str(np.squeeze(n)) for n in names.ravel()], labels.ravel().astype(np.int64)
    splits, strange = {}, []
    for part, row in zip(parts, rows, strict=True):
        row = row.ravel().astype(np.int64) - 1
        if len(labels) != len(names) or len(row) and not 0 <= row.min() <= row.max() < len(names):
            raise DataError(f"{config}: {part}_idx does not fit its filelist; copy the file again")
        splits[part] = []
        for name, pid in ((names[i], int(labels[i])) for i in row):
            match = NAME.fullmatch(name)
            if match:
                splits[part].append(Record(inside(folder, name, config), pid, int(match[3])))
            else:
                strange.append(f"{config}: {name}")
    check_present([r.path for records in splits.values() for r in records], folder, options)
    return Reading(from_one(splits), strange)


def read_classic(folder, test):
    """Reading with the identities [(pair, pid)] of `test` as query and gallery, both all their pictures."""
    records, strange = read_all(folder)
    test = {pair * _STRIDE + pid for pair, pid in test}
    missing = test - {r.pid for r in records}
    if missing:
        raise DataError(
            f"{folder} has no picture of {len(missing)} test identities of the classic split: remove the "
            f"folder so that it is made anew from {MAT}"
        )
    tested = of_ids(records, test)
    train = [r for r in records if r.pid not in test]
    return Reading({"train": train, "query": tested, "gallery": tested}, strange)


def read_both(root, options):
    """The classic split, its training identities with the pictures of both sorts of boxes."""
    test = classic_tests(root)[options.split]
    detected, labeled = (read_classic(images(root, boxes), test) for boxes in ("detected", "labeled"))
    splits = {**detected.splits, "train": detected.splits["train"] + labeled.splits["train"]}
    if options.everything:  # who is tested, too
        splits["gallery"] = splits["gallery"] + labeled.splits["gallery"]
    return Reading(splits, detected.strange + labeled.strange)


def read_all(folder):
    """(records, strange paths) of a folder of pictures; pid = 100000 pair + person, camera = view."""
    records, strange = [], []
    for name in image_names(folder):
        path, match = os.path.join(folder, name), NAME.fullmatch(name)
        if match:
            records.append(Record(path, int(match[1]) * _STRIDE + int(match[2]), int(match[3])))
        else:
            strange.append(path)
    return records, strange


# ---- cuhk-03.mat ----------------------------------------------------------------------------------------
def images(root, boxes):
    """The folder images_BOXES, made from cuhk-03.mat when it is not there yet."""
    name = f"images_{boxes}"
    for folder in (root, os.path.join(root, RELEASE)):
        if os.path.isdir(os.path.join(folder, name)):
            return os.path.join(folder, name)
    mat = mat_path(root, f"there is no folder {name} either")
    folder = os.path.join(os.path.dirname(mat), name)
    extract(mat, boxes, folder)
    return folder


def classic_tests(root):
    """20 lists of (pair, person), 1-based: classic_splits.json, made from cuhk-03.mat when not there yet."""
    for folder in (root, os.path.join(root, RELEASE)):
        path = os.path.join(folder, CLASSIC)
        if os.path.exists(path):
            try:
                with open(path) as f:
                    return [[(int(pair), int(pid)) for pair, pid in split] for split in json.load(f)]
            except (OSError, ValueError, TypeError) as e:
                raise DataError(f"cannot read {path} ({e}): remove it, it is made anew from {MAT}") from e
    mat = mat_path(root, f"there is no {CLASSIC} either")
    with opened(mat) as data:
        tests = [data[ref][()].T.astype(int).tolist() for ref in data["testsets"][0]]
    path = os.path.join(os.path.dirname(mat), CLASSIC)
    with writing(path), open(path + ".part", "w") as f:
        json.dump(tests, f)
    os.replace(path + ".part", path)
    return [[tuple(person) for person in split] for split in tests]


def mat_path(root, otherwise):
    """Path of cuhk-03.mat; DataError when it is not there."""
    for folder in (os.path.join(root, RELEASE), root):
        if os.path.exists(os.path.join(folder, MAT)):
            return os.path.join(folder, MAT)
    raise DataError(f"{os.path.join(root, RELEASE, MAT)} is missing, and {otherwise}; unpack cuhk03_release")


@contextlib.contextmanager
def opened(mat):
    """The open HDF5 file; errors of reading become DataErrors."""
    try:
        import h5py
    except ImportError as e:
        raise DataError(
            f"{mat} is an HDF5 file; reading it needs h5py: pip install 'reid_jax[datasets]'"
        ) from e
    try:
        with h5py.File(mat, "r") as data:
            yield data
    except (OSError, KeyError, ValueError, RuntimeError) as e:
        raise DataError(f"cannot read {mat} ({e}): it is damaged or incomplete; unpack it again") from e


def extract(mat, boxes, folder):
    """Writes the pictures of one kind of boxes as PNG to `folder`.

    They gather in FOLDER.part, which gets its name at the end; a run that was stopped goes on there.
    """
    part = folder + ".part"
    with opened(mat) as data:
        persons = [(pair + 1, data[ref]) for pair, ref in enumerate(data[boxes][0])]
        with writing(part):
            os.makedirs(part, exist_ok=True)
        done = set(os.listdir(part))
        with tqdm(total=sum(p.shape[1] for _, p in persons), desc=f"CUHK03 {boxes}", unit="person") as bar:
            for pair, cells in persons:
                for number, row in enumerate(cells[()].T, 1):
                    for index, ref in enumerate(row, 1):
                        name = f"{pair}_{number:03d}_{1 if index <= 5 else 2}_{index:02d}.png"
                        if name not in done:
                            save_cell(data[ref], os.path.join(part, name))
                    bar.update()
    if not image_names(part):
        shutil.rmtree(part)
        raise DataError(f"{mat} holds no picture under {boxes!r}: it is damaged; unpack it again")
    with writing(folder):
        if os.path.isdir(folder):  # another process was faster
            shutil.rmtree(part, ignore_errors=True)
        else:
            os.replace(part, folder)


def save_cell(cell, path):
    """One cell of the .mat, stored as [3,W,H]; an empty one has no picture."""
    if cell.ndim != 3 or not cell.size:
        return
    picture = Image.fromarray(cell[()].T.astype(np.uint8))
    new = f"{path}.{os.getpid()}"
    with writing(path):
        picture.save(new, "PNG")
        os.replace(new, path)


_NEW = {"train ids": 767, "query ids": 700, "query images": 1400, "gallery ids": 700, "cameras": 2}
_CLASSIC = {
    "counts": {"train ids": 1367, "query ids": 100, "gallery ids": 100, "cameras": 2},
    "protocol": "single-shot",
    "num_splits": 20,
}
LAYOUTS = {
    "cuhk03": Layout(
        "CUHK03",
        read,
        ("CUHK03", "cuhk03"),
        ((RELEASE,), (MAT,), ("images_detected",), ("images_labeled",)),
        "cuhk03/\n    cuhk03_release/cuhk-03.mat  (or images_detected/ and images_labeled/1_001_1_01.png)\n"
        "    cuhk03_new_protocol_config_detected.mat\n    cuhk03_new_protocol_config_labeled.mat",
        SOURCE + "\nThe two protocol files are part of CUHK03-NP (Zhong et al., Re-ranking Person "
        "Re-identification with k-reciprocal Encoding, 2017).",
        _NEW | {"train images": 7365, "gallery images": 5332},
        terms="academic research only; ask its authors",
        variants=("detected", "labeled", "classic-detected", "classic-labeled", "classic-both"),
        differs={
            "labeled": {"counts": _NEW | {"train images": 7368, "gallery images": 5328}},
            "classic-detected": _CLASSIC,
            "classic-labeled": _CLASSIC,
            "classic-both": _CLASSIC,
        },
    ),
}
