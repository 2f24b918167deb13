"""CUHK01: campus/PPPPNNN.png, 4 digits identity, 3 digits picture number 1-4, two of each view."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, both_ways, draw_half, from_one, image_names, of_ids
from reid_jax.data.records import Record

NAME = re.compile(r"(\d{4})(\d{3})\.")
SOURCE = "Ask its authors for a copy: http://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html"


def read(root, options):
    """Half of the identities, drawn, trains; even splits search view 2 for view 1, odd ones view 1 for 2."""
    folder, strange, records = os.path.join(root, "campus"), [], []
    for name in image_names(folder):
        match = NAME.match(name)
        if match and 1 <= int(match[2]) <= 4:
            records.append(Record(os.path.join(folder, name), int(match[1]), (int(match[2]) + 1) // 2))
        else:
            strange.append(os.path.join(folder, name))
    draw, swap = both_ways(options)
    ids = {r.pid for r in records}
    train, test = draw_half(ids, len(ids) // 2, draw)
    views = [[r for r in of_ids(records, test) if r.camid == view] for view in (1, 2)]
    query, gallery = reversed(views) if swap else views
    splits = from_one({"train": of_ids(records, train), "query": query, "gallery": gallery})
    return Reading(splits, strange, {"train_ids": train})


LAYOUTS = {
    "cuhk01": Layout(
        "CUHK01",
        read,
        ("CUHK01", "cuhk01"),
        (("campus",),),
        "cuhk01/\n    campus/0001001.png",
        SOURCE,
        {
            "train ids": 485,
            "train images": 1940,
            "query ids": 486,
            "query images": 972,
            "gallery ids": 486,
            "gallery images": 972,
            "cameras": 2,
        },
        terms="academic research only; ask its authors",
        protocol="single-gallery",
        num_splits=20,
    ),
}
