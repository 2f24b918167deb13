"""iLIDS (QMUL): Persons/PPPPNNN.jpg, 4 digits identity, 3 digits picture number; cameras are not given."""

import os
import re

import numpy as np

from reid_jax.data.loaders.common import Layout, Reading, draw_half, from_one, image_names, of_ids
from reid_jax.data.records import Record

_NAME = re.compile(r"(\d{4})(\d{3})\.")
_FOLDERS = ("Persons", "i-LIDS_Pedestrian/Persons")


def read(root, options):
    """Half of the identities train; of the others two pictures are drawn, one query and one gallery.

    Each picture number counts as a camera, so that no pair is left out as seen by one camera.
    """
    folder = next(f for f in (os.path.join(root, p) for p in _FOLDERS) if os.path.exists(f))
    records, strange = [], []
    for name in image_names(folder):
        path, match = os.path.join(folder, name), _NAME.match(name)
        if match:
            records.append(Record(path, int(match[1]), int(match[2])))
        else:
            strange.append(path)
    ids = {r.pid for r in records}
    train, test = draw_half(ids, len(ids) // 2, options)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((options.seed, options.split, 1))))
    query, gallery = [], []
    for pid in test:
        pictures = of_ids(records, {pid})
        if len(pictures) < 2:  # nothing to search for
            strange += [r.path for r in pictures]
            continue
        first, second = rng.permutation(len(pictures))[:2]
        query.append(pictures[first])
        gallery.append(pictures[second])
    splits = from_one({"train": of_ids(records, train), "query": query, "gallery": gallery})
    names = [[os.path.basename(r.path) for r in part] for part in (query, gallery)]
    return Reading(splits, strange, {"train_ids": train, "query": names[0], "gallery": names[1]})


LAYOUTS = {
    "ilids": Layout(
        "iLIDS (QMUL)",
        read,
        ("i-LIDS_Pedestrian", "ilids", "iLIDS"),
        tuple((folder,) for folder in _FOLDERS),
        "i-LIDS_Pedestrian/\n    Persons/0001001.jpg",
        "Ask its authors for a copy (Zheng, Gong and Xiang, Associating Groups of People, 2009).",
        {
            "train ids": 59,
            "query ids": 60,
            "query images": 60,
            "gallery ids": 60,
            "gallery images": 60,
        },
        terms="not stated; ask its authors",
        protocol="single-gallery",
        num_splits=10,
    ),
}
