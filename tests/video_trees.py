"""Small trees in the layouts of the video data sets: 3 training and 3 test persons, 2 cameras."""

import json
import os

import numpy as np
from PIL import Image

TRAIN, TEST = (2, 7, 11), (1, 3, 5)


def picture(path, seed=None, size=(8, 16)):
    """Writes a picture: noise of a seed, or black."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 256, pixels.shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)


def mars_name(pid, camera, tracklet, frame):
    who = "00-1" if pid < 0 else f"{pid:04d}"
    return f"{who}C{camera}T{tracklet:04d}F{frame:03d}.jpg"


def mars(root, lengths=(3, 12), pid_color=False, size=(8, 16)):
    """MARS: two tracklets of every person and camera (1 and 4) and one of a distractor and of junk.

    The first tracklet of a person and camera in the test set is a query. Lengths alternate.
    """
    from scipy.io import savemat

    root, count = str(root), 0
    test_rows = [(p, c, t) for p in (-1, 0) for c, t in ((1, 1),)] + [
        (p, c, t) for p in TEST for c in (1, 4) for t in (1, 2)
    ]
    train_rows = [(p, c, t) for p in TRAIN for c in (1, 4) for t in (1, 2)]
    for part, rows in (("train", train_rows), ("test", test_rows)):
        names, table = [], []
        for pid, camera, tracklet in rows:
            length, count = lengths[count % len(lengths)], count + 1
            table.append((len(names) + 1, len(names) + length, pid, camera))
            for frame in range(1, length + 1):
                name = mars_name(pid, camera, tracklet, frame)
                names.append(name)
                seed = [pid + 1] if pid_color else [count, frame]
                picture(os.path.join(root, f"bbox_{part}", name[:4], name), seed, size)
        write(os.path.join(root, "info", f"{part}_name.txt"), "\n".join(names) + "\n")
        matrix = {f"track_{part}_info": np.array(table, np.int16)}
        savemat(os.path.join(root, "info", f"tracks_{part}_info.mat"), matrix)
    queries = [i + 1 for i, (pid, _, t) in enumerate(test_rows) if pid > 0 and t == 1]
    savemat(os.path.join(root, "info", "query_IDX.mat"), {"query_IDX": np.array([queries], np.uint8)})
    return root


def duke(root, old=False):
    """DukeMTMC-VideoReID: frames from F0002 on; the gallery holds the queries and a stray person 9."""
    root = str(root)
    gallery = [(p, c) for p in (*TEST, 9) for c in (1, 6)]
    for split, rows in (
        ("train", [(p, c) for p in TRAIN for c in (1, 6)]),
        ("query", [(p, 1) for p in TEST]),
        ("gallery", gallery),
    ):
        for pid, camera in rows:
            for frame in (11, 2, 3):  # F0011 comes last however it is listed
                form = "{:04d}C{}F{:04d}X{:05d}.jpg" if old else "{:04d}_C{}_F{:04d}_X{:d}.jpg"
                name = form.format(pid, camera, frame, 90000 - frame)
                folder = os.path.join(root, f"{split}_split" if old else split, f"{pid:04d}", f"{camera:04d}")
                picture(os.path.join(folder, name))
    return root


def ls_vid(root, info="", first=0):
    """LS-VID: prefixes with a leading slash; test pids from `first` on; every other test row is a query."""
    import h5py

    root, lines = str(root), {"train": [], "test": []}
    for part, pids in (("train", (0, 1, 2)), ("test", tuple(first + i for i in range(3)))):
        for pid in pids:
            for camera in (2, 15):
                for tracklet in (0, 1):
                    prefix = f"/tracklet_{part}/{pid:04d}/{pid:04d}_{tracklet}_{camera:02d}_0303morning"
                    for frame in range(3):
                        picture(f"{root}{prefix}_{frame:04d}.jpg")
                    lines[part].append(f"{prefix} {pid}")
        write(os.path.join(root, info, f"list_sequence/list_seq_{part}.txt"), "\n".join(lines[part]) + "\n")
    os.makedirs(os.path.join(root, info, "test", "data"))
    with h5py.File(os.path.join(root, info, "test", "data", "info_test.mat"), "w") as f:
        f["query"] = np.arange(1, 13, 2, dtype=np.float64)[None]
    return root


def ilids_vid(root, nested=True):
    """iLIDS-VID: persons 1, 2, 4, 8, 16, 32; split 0 tests places 2, 6, 3, split 1 the others."""
    from scipy.io import savemat

    root, persons = str(root), (1, 2, 4, 8, 16, 32)
    for camera in (1, 2):
        for p in persons:
            folder = os.path.join(
                root, "i-LIDS-VID" if nested else "", f"sequences/cam{camera}/person{p:03d}"
            )
            for frame in (99, 100, 317):
                picture(os.path.join(folder, f"cam{camera}_person{p:03d}_{frame:05d}.png"))
    folder = os.path.join(root, "train-test people splits")
    os.makedirs(folder)
    rows = np.array([[2, 6, 3, 1, 4, 5], [1, 4, 5, 2, 6, 3]] * 5, np.uint8)
    savemat(os.path.join(folder, "train_test_splits_ilidsvid.mat"), {"ls_set": rows})
    return root


def prid(root, splits=True):
    """PRID2011: persons 1 to 8 with 22 frames in both cameras, 9 with 21 in camera b, 10 in a alone."""
    root = str(root)
    for camera in "ab":
        for p in range(1, 11):
            if (camera, p) == ("b", 10):
                continue
            folder = os.path.join(root, "multi_shot", f"cam_{camera}", f"person_{p:04d}")
            for frame in range(1, 22 if (camera, p) == ("b", 9) else 23):
                picture(os.path.join(folder, f"{frame:04d}.png"))
    if splits:
        names = [f"person_{p:04d}" for p in range(1, 9)]
        given = [{"train": names[:4], "test": names[4:]}, {"train": names[::2], "test": names[1::2]}]
        write(os.path.join(root, "splits_prid2011.json"), json.dumps(given))
    return root


def lpw(root):
    """LPW: persons 1 and 2 in the three scenes, frames named without leading zeros."""
    root = str(root)
    for scene, views in ((1, 3), (2, 4), (3, 4)):
        for view in range(1, views + 1):
            for p in (1, 2):
                for frame in (1, 2, 10):
                    picture(os.path.join(root, f"scen{scene}", f"view{view}", str(p), f"{frame}.jpg"))
    return root
