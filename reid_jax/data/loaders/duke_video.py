"""DukeMTMC-VideoReID: {train,query,gallery}/PERSON/TRACKLET/0001_C6_F0099_X30823.jpg, or older names."""

import os
import re

from reid_jax.data.loaders.common import Layout, Reading, image_names, integer_folders
from reid_jax.data.records import Record
from reid_jax.errors import DataError

SPLITS = ("train", "query", "gallery")
NAME = re.compile(r"(\d+)_?C(\d)_?F(\d+)")  # also 0001C6F0099X30823.jpg


def read(root, options):
    """The gallery holds the query tracklets already: its folder does. Older copies say train_split/."""
    del options
    splits, strange = {}, []
    for split in SPLITS:
        folder = os.path.join(root, split)
        if not os.path.isdir(folder):
            folder += "_split"
        splits[split] = [
            record
            for _, person in integer_folders(folder, strange)
            for _, path in integer_folders(person, strange)
            if (record := read_tracklet(path, strange))
        ]
    return Reading(splits, strange)


def read_tracklet(folder, strange):
    """Record of a folder of frames in the order of F, which need not start at 1; None when it is empty."""
    numbered, labels = [], set()
    for name in image_names(folder):
        if match := NAME.match(name):
            numbered.append((int(match[3]), name))
            labels.add((int(match[1]), int(match[2])))
        else:
            strange.append(os.path.join(folder, name))
    if not numbered:
        strange.append(folder)
        return None
    if len(labels) > 1:
        shown = ", ".join(f"identity {p} camera {c}" for p, c in sorted(labels))
        raise DataError(f"{folder} mixes tracklets ({shown}): remove the foreign frames or unpack it again")
    frames = tuple(os.path.join(folder, name) for _, name in sorted(numbered))
    return Record(frames[0], *labels.pop(), frames)


LAYOUTS = {
    "duke_video": Layout(
        "DukeMTMC-VideoReID",
        read,
        ("DukeMTMC-VideoReID", "dukemtmc-vidreid", "duke_video"),
        (SPLITS, tuple(f"{s}_split" for s in SPLITS), ("train_split", "query", "gallery")),
        "DukeMTMC-VideoReID/  (or train_split/... with names like 0001C6F0099X30823.jpg)\n"
        + "\n".join(f"    {s}/0001/0003/0001_C6_F0099_X30823.jpg" for s in SPLITS),
        "It is derived from DukeMTMC, which its authors have withdrawn: only a copy you already hold, and "
        "are allowed to use, can be loaded. MARS and LS-VID are the usual replacements.",
        {
            "train ids": 702,
            "train images": 2196,
            "query ids": 702,
            "gallery ids": 1110,
            "gallery images": 2636,
            "cameras": 8,
        },
        terms="withdrawn by its authors",
        kind="video",
    ),
}
