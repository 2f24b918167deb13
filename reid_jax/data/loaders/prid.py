"""PRID2011, single shot: single_shot/cam_{a,b}/person_NNNN.png; persons 1-200 are in both cameras."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, draw_half, of_ids, read_flat, without_repeats

SHARED = 200  # higher numbers are different persons in the two cameras
_NAME = re.compile(r"person_(0*[1-9]\d*)\.")


def read(root, options):
    """Half of the shared persons, drawn, trains; query: a of the others, gallery: b of them and b's own."""
    strange = []
    a, b = (
        read_view(os.path.join(root, "single_shot", f"cam_{c}"), i, strange) for i, c in ((1, "a"), (2, "b"))
    )
    shared = {r.pid for r in a if r.pid <= SHARED} & {r.pid for r in b}
    train, test = draw_half(shared, len(shared) // 2, options)
    splits = {
        "train": of_ids(a + b, train),
        "query": of_ids(a, test),
        "gallery": of_ids(b, test) + [r for r in b if r.pid > SHARED],
    }
    return Reading(splits, strange, {"train_ids": train}, {1: "a", 2: "b"})


def read_view(folder, camera, strange):
    """Records of one camera."""
    records, odd = read_flat(folder, _NAME, camera)
    strange += odd
    return without_repeats(records, strange)


LAYOUTS = {
    "prid": Layout(
        "PRID2011 (single shot)",
        read,
        ("prid_2011", "prid2011", "PRID2011", "prid"),
        (("single_shot/cam_a", "single_shot/cam_b"),),
        "prid_2011/\n    single_shot/cam_a/person_0001.png\n    single_shot/cam_b/person_0001.png",
        "Its page: https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/PRID11/",
        {
            "train ids": 100,
            "train images": 200,
            "query ids": 100,
            "query images": 100,
            "gallery ids": 649,
            "gallery images": 649,
            "cameras": 2,
        },
        terms="not stated; ask its authors (Hirzer et al., 2011)",
        protocol="single-gallery",
        num_splits=10,
    ),
}
