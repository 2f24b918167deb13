"""VIPeR: cam_{a,b}/PID_ANGLE.bmp, one picture of each identity and camera."""

import os
import re

from reid_jax.data.loaders.common import (
    Layout,
    Reading,
    both_ways,
    draw_half,
    from_one,
    of_ids,
    read_flat,
    without_repeats,
)

COUNTS = {
    "train ids": 316,
    "train images": 632,
    "query ids": 316,
    "query images": 316,
    "gallery ids": 316,
    "gallery images": 316,
    "cameras": 2,
}
_NAME = re.compile(r"(\d+)_\d+\.")


def read(root, options):
    """Half of the identities seen by both, drawn, trains; even splits search b for a, odd ones a for b."""
    strange = []
    views = [read_view(os.path.join(root, f"cam_{c}"), i, strange) for i, c in enumerate("ab", 1)]
    draw, swap = both_ways(options)
    ids = {r.pid for r in views[0]} & {r.pid for r in views[1]}
    strange += [r.path for view in views for r in view if r.pid not in ids]
    train, test = draw_half(ids, len(ids) // 2, draw)
    query, gallery = (of_ids(view, test) for view in (reversed(views) if swap else views))
    splits = {"train": of_ids(views[0] + views[1], train), "query": query, "gallery": gallery}
    return Reading(from_one(splits), strange, {"train_ids": train}, {1: "a", 2: "b"})


def read_view(folder, camera, strange):
    """Records of one camera."""
    records, odd = read_flat(folder, _NAME, camera)
    strange += odd
    return without_repeats(records, strange)


LAYOUTS = {
    "viper": Layout(
        "VIPeR",
        read,
        ("VIPeR", "VIPeR.v1.0", "viper"),
        (("cam_a", "cam_b"),),
        "VIPeR/\n    cam_a/000_45.bmp\n    cam_b/000_90.bmp",
        "Its page: https://vision.soe.ucsc.edu/node/178",
        COUNTS,
        terms="not stated; ask its authors (Gray, Brennan and Tao, 2007)",
        protocol="single-gallery",
        num_splits=20,
    ),
}
