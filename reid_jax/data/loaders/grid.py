"""GRID (QMUL underground): {probe,gallery}/PPPP_CAMERA_*.jpeg, ten splits in a .mat; id 0 = unmatched."""

import os
import re

import numpy as np

from reid_jax.data.loaders.common import Layout, Reading, of_ids, read_flat, read_mat
from reid_jax.errors import DataError

SPLITS = "features_and_partitions.mat"
_NAME = re.compile(r"(\d+)_(\d+)_")


def read(root, options):
    """The split's 125 identities train, the others' probes search their gallery images and the unmatched."""
    train = train_ids(os.path.join(root, SPLITS), options.split)
    probe, strange = read_flat(os.path.join(root, "probe"), _NAME)
    gallery, odd = read_flat(os.path.join(root, "gallery"), _NAME)
    if missing := set(train) - {r.pid for r in probe}:
        raise DataError(
            f"{root}/probe has no image of {len(missing)} identities that {SPLITS} names (first "
            f"{min(missing)}): the copy is incomplete; unpack the archive again"
        )
    splits = {
        "train": of_ids(probe + gallery, train),
        "query": of_ids(probe, {r.pid for r in probe} - set(train)),
        "gallery": of_ids(gallery, {r.pid for r in gallery} - set(train)),
    }
    return Reading(splits, strange + odd)


def train_ids(path, split):
    """Training identities of a split: the third field of the struct in its cell of trainIdxAll."""
    (cells,) = read_mat(path, "trainIdxAll")
    try:
        return sorted(np.unique(cells[0][split][0][0][2].astype(int)).tolist())
    except (IndexError, ValueError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: trainIdxAll has no split {split} ({e}); copy the file again") from e


LAYOUTS = {
    "grid": Layout(
        "GRID",
        read,
        ("underground_reid", "grid/underground_reid", "GRID", "grid"),
        (("probe", "gallery", SPLITS),),
        "underground_reid/\n    probe/0001_1_25023_107_32_106_221.jpeg\n"
        "    gallery/0001_2_25108_164_10_107_241.jpeg\n    features_and_partitions.mat",
        "Its page: http://personal.ie.cuhk.edu.hk/~ccloy/downloads_qmul_underground_reid.html",
        {
            "train ids": 125,
            "train images": 250,
            "query ids": 125,
            "query images": 125,
            "gallery ids": 126,  # 125 and the unmatched images' 0
            "gallery images": 900,
            "cameras": 8,
        },
        terms="not stated; ask its authors (Loy, Xiang and Gong, 2009)",
        protocol="single-gallery",
        num_splits=10,
        distractors=True,
    ),
}
