"""SYSU-MM01 and RegDB: people in visible and in infrared light; infrared pictures search visible ones."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, image_names, inside, read_lines
from reid_jax.data.records import Record
from reid_jax.errors import DataError

VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)
NAMES = {c: f"{'visible' if c in VISIBLE else 'infrared'} c{c}" for c in (*VISIBLE, *INFRARED)}
IDS = {"train": ("train_id", "val_id"), "test": ("test_id",)}


def read_sysu(root, options):
    """Identities of train and val train by all cameras; of test the infrared ones search the visible ones.

    All visible pictures are the gallery; eval.cross_modal draws single-shot galleries from them.
    """
    ids = {
        part: sorted({i for name in names for i in numbers(os.path.join(root, "exp", f"{name}.txt"))})
        for part, names in IDS.items()
    }
    splits = {
        "train": pictures(root, ids["train"], (*VISIBLE, *INFRARED)),
        "query": pictures(root, ids["test"], INFRARED),
        "gallery": pictures(root, ids["test"], VISIBLE),
    }
    return Reading(splits, [], cameras=NAMES)


def numbers(path):
    """Identities of a list: comma-separated numbers."""
    text = ",".join(read_lines(path))
    try:
        return [int(number) for number in text.split(",") if number.strip()]
    except ValueError as e:
        raise DataError(f"{path}: {e}; numbers separated by commas are expected: copy the file again") from e


def pictures(root, ids, cameras):
    """Records of identities, one after the other, by cameras; not every one is seen by every camera."""
    records = []
    for pid in ids:
        for camera in sorted(cameras):
            folder = os.path.join(root, f"cam{camera}", f"{pid:04d}")
            if os.path.isdir(folder):
                records += [Record(os.path.join(folder, n), pid, camera) for n in image_names(folder)]
    return records


_LINE = re.compile(r"(.+?)\s+(\d+)")


def read_regdb(root, options):
    """Trial split + 1; variant "visible" has visible queries and a thermal gallery, "thermal" the reverse."""
    trial, parts = options.split + 1, {}
    for part in ("train", "test"):
        for camera, light in enumerate(("visible", "thermal"), 1):
            path = os.path.join(root, "idx", f"{part}_{light}_{trial}.txt")
            parts[part, light] = [listed(root, path, line, camera) for line in read_lines(path)]
    sides = ("thermal", "visible") if options.variant == "thermal" else ("visible", "thermal")
    train = parts["train", "visible"] + parts["train", "thermal"]
    query, gallery = (parts["test", side] for side in sides)
    return Reading(counted({"train": train, "query": query, "gallery": gallery}), [], cameras=LIGHTS)


LIGHTS = {1: "visible", 2: "infrared"}


def counted(splits):
    """Test identities from 1 on; they count anew, and are others than those of training."""
    first = 1 + max((r.pid for r in splits["train"]), default=0)
    moved = {s: [Record(r.path, r.pid + first, r.camid) for r in splits[s]] for s in ("query", "gallery")}
    return {**splits, **moved}


def listed(root, path, line, camera):
    """Record of a line "Visible/0/male_front_v_00001_1.bmp 0"."""
    match = _LINE.fullmatch(line)
    if not match:
        raise DataError(f"{path} has a line {line!r}; 'PATH LABEL' is expected: copy the file again")
    return Record(inside(root, match[1], path), int(match[2]), camera)


LAYOUTS = {
    "sysu_mm01": Layout(
        "SYSU-MM01",
        read_sysu,
        ("SYSU-MM01", "sysu_mm01", "SYSU"),
        (
            tuple(f"cam{c}" for c in range(1, 7))
            + tuple(f"exp/{n}.txt" for n in (*IDS["train"], *IDS["test"])),
        ),
        "SYSU-MM01/\n    cam{1,..,6}/0001/0001.jpg\n    exp/train_id.txt  exp/val_id.txt  exp/test_id.txt",
        "Ask its authors for a copy (Wu et al., RGB-Infrared Cross-Modality Person Re-Identification, 2017).",
        {"train ids": 395, "train images": 34167, "query ids": 96, "query images": 3803, "cameras": 6},
        terms="signed release agreement, academic research only",
        protocol="sysu-all",
        variants=("all", "indoor"),
        differs={"indoor": {"protocol": "sysu-indoor"}},
    ),
    "regdb": Layout(
        "RegDB",
        read_regdb,
        ("RegDB", "regdb", "RegDB_01"),
        (("Visible", "Thermal", "idx"),),
        "RegDB/\n    Visible/1/name_v_1.bmp\n    Thermal/1/name_t_1.bmp\n    idx/train_visible_1.txt ...",
        "Ask its authors for a copy (Nguyen et al., Person Recognition System, Sensors 2017).",
        {"train ids": 206, "train images": 4120, "query ids": 206, "query images": 2060}
        | {"gallery ids": 206, "gallery images": 2060, "cameras": 2},
        terms="academic research only; ask its authors",
        protocol="all-pairs",
        variants=("visible", "thermal"),
        num_splits=10,
    ),
}
