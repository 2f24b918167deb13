"""SenseReID: {test_probe,test_gallery}/PID_CAMERA.jpg, for tests alone."""

import dataclasses
import os
import re

from reid_jax.data.loaders.common import Layout, Reading, read_flat

FOLDERS = {"query": "test_probe", "gallery": "test_gallery"}
_NAME = re.compile(r"(\d+)_(\d+)\.")


def read(root, options):
    """Probe and gallery; more people are in the gallery."""
    splits, strange = {"train": []}, []
    for split, folder in FOLDERS.items():
        splits[split], odd = read_flat(os.path.join(root, folder), _NAME)
        strange += odd
    if any(r.pid == 0 for r in splits["gallery"]):  # 0 marks distractors, of which there are none
        splits = {s: [dataclasses.replace(r, pid=r.pid + 1) for r in rs] for s, rs in splits.items()}
    return Reading(splits, strange)


LAYOUTS = {
    "sensereid": Layout(
        "SenseReID",
        read,
        ("SenseReID", "sensereid", "sensereid/SenseReID"),
        (tuple(FOLDERS.values()),),
        "SenseReID/\n    test_probe/00001_1.jpg\n    test_gallery/00001_2.jpg",
        "Ask its authors for a copy (Zhao et al., Spindle Net, CVPR 2017).",
        {"query ids": 522, "query images": 1040, "gallery ids": 1717, "gallery images": 3388},
        terms="academic research only; ask its authors",
        trains=False,
    ),
}
