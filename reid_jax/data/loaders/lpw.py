"""LPW: scen{1,2,3}/view{n}/PID/*.jpg, one folder a tracklet; identities are those of a scene."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, image_names, integer_folders, listing
from reid_jax.data.loaders.labels import natural
from reid_jax.data.records import Record

SCENES = ("scen1", "scen2", "scen3")


def read(root, options):
    """Train: scenes 2 and 3. Query: scene 1, view 2; gallery: its other views.

    A person's number counts within a scene, so pid = 100000 scene + number and camera = 10 scene + view.
    """
    del options
    splits, strange, cameras = {"train": [], "query": [], "gallery": []}, [], {}
    for scene, folder in enumerate(SCENES, 1):
        for name in listing(os.path.join(root, folder)):
            path = os.path.join(root, folder, name)
            match = re.fullmatch(r"view(\d)", name)
            if not match:
                strange.append(path)
                continue
            view = int(match[1])
            cameras[10 * scene + view] = f"{folder} {name}"
            split = "train" if scene > 1 else "query" if view == 2 else "gallery"
            splits[split] += tracklets(path, 100000 * scene, 10 * scene + view, strange)
    return Reading(splits, strange, cameras=cameras)


def tracklets(folder, offset, camera, strange):
    """Records of one view's folders."""
    records = []
    for number, path in integer_folders(folder, strange):
        names = sorted(image_names(path), key=natural)
        if names:
            frames = tuple(os.path.join(path, n) for n in names)
            records.append(Record(frames[0], offset + number, camera, frames))
        else:
            strange.append(path)
    return records


LAYOUTS = {
    "lpw": Layout(
        "LPW",
        read,
        ("pep_256x128", "pep_256x128/data_slim", "data_slim", "LPW", "LPW/pep_256x128", "lpw"),
        (SCENES,),
        "pep_256x128/  (or its data_slim/)\n    scen1/view1/1/*.jpg  (3 views)\n"
        "    scen2/view1/1/*.jpg  (4 views)\n    scen3/view1/1/*.jpg  (4 views)",
        "Ask its authors for a copy (Song et al., Region-based quality estimation network, AAAI 2018).",
        {
            "train ids": 1975,
            "query ids": 756,
            "gallery ids": 756,
            "images": 7694,
            "cameras": 11,
        },
        terms="not stated; ask its authors",
        kind="video",
    ),
}
