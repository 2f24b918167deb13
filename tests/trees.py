"""Tiny trees in the true layouts of the image data sets: few identities, 8 x 16 pixels."""

import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import io

IDS = (3, 5, 8, 12, 13, 21)  # of sets that draw their split: three train, three test


def picture(*path, size=(8, 16), value=0):
    """Writes an image file of one colour; returns its path."""
    path = os.path.join(*map(str, path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.new("RGB", size, (value % 256,) * 3).save(path)
    return path


def damage(path, kind):
    """Spoils a file: 'empty', 'truncated' or 'text'."""
    with open(path, "rb") as f:
        data = f.read()
    data = {"empty": b"", "truncated": data[: len(data) // 2], "text": b"no image at all"}[kind]
    with open(path, "wb") as f:
        f.write(data)
    return path


def market(root):
    """Market-1501 in small: ids 2 and 7 train; cameras 1 and 3, camera 2 has a distractor alone."""
    for split, ids in (("bounding_box_train", (2, 7)), ("query", (1, 3)), ("bounding_box_test", (1, 3))):
        for pid, cam in itertools.product(ids, (1, 3)):
            picture(root, split, f"{pid:04d}_c{cam}s1_000000_00.jpg")
    picture(root, "bounding_box_test", "0000_c2s1_000009_00.jpg")
    return str(root)


def cuhk01(root, ids=IDS):
    for pid, number in itertools.product(ids, (1, 2, 3, 4)):
        picture(root, "campus", f"{pid:04d}{number:03d}.png")
    return str(root)


def cuhk02(root):
    """Ids 1-3 of every pair, two pictures a camera."""
    for pair, cam, pid, i in itertools.product(range(1, 6), (1, 2), (1, 2, 3), (1, 2)):
        picture(root, "Dataset", f"P{pair}", f"cam{cam}", f"{pid:03d}_{i}.png")
    return str(root)


# ---- CUHK03 ---------------------------------------------------------------------------------------------
CUHK03_PERSONS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (5, 1))  # (pair, person); the last three test
CUHK03_INDEX = (1, 2, 6, 7)  # two pictures of each view


def cuhk03_name(pair, pid, index):
    return f"{pair}_{pid:03d}_{1 if index <= 5 else 2}_{index:02d}.png"


def cuhk03_names():
    return [cuhk03_name(*person, index) for person in CUHK03_PERSONS for index in CUHK03_INDEX]


def cuhk03_pixels(pair, pid, index):
    """u8[16,8,3], different for every picture and along every axis."""
    plane = np.arange(16 * 8 * 3).reshape(16, 8, 3)
    return ((plane + 40 * pair + 20 * pid + index) % 256).astype(np.uint8)


def cuhk03_mat(path, boxes=("detected", "labeled")):
    """cuhk-03.mat as MATLAB writes it: cells are references, matrices are transposed, empty cells 1-D."""
    import h5py

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with h5py.File(path, "w") as f:
        number = itertools.count()

        def stored(array):
            return f.create_dataset(f"#refs#/{next(number)}", data=array).ref

        def cells(array):
            refs = np.empty(np.shape(array), h5py.ref_dtype)
            refs[...] = array
            return refs

        empty = stored(np.zeros(2, np.uint64))
        for kind in boxes:
            pairs = []
            for pair in range(1, 6):
                count = max([pid for p, pid in CUHK03_PERSONS if p == pair], default=0)
                table = np.empty((count, 10), h5py.ref_dtype)
                for pid, index in itertools.product(range(1, count + 1), range(1, 11)):
                    there = index in CUHK03_INDEX
                    ref = stored(cuhk03_pixels(pair, pid, index).T) if there else empty
                    table[pid - 1, index - 1] = ref
                pairs.append(stored(table.T))
            f.create_dataset(kind, data=cells([pairs]))
        tests = [CUHK03_PERSONS[3:], CUHK03_PERSONS[:3], *[CUHK03_PERSONS[1:4]] * 18]
        f.create_dataset("testsets", data=cells([[stored(np.array(t, float).T) for t in tests]]))


def cuhk03_config(path):
    """A new-protocol file: three persons train, of three test one query a view and the rest gallery."""
    names = cuhk03_names()
    filelist = np.empty((len(names), 1), object)
    filelist[:, 0] = names
    train, query = range(12), (12, 14, 16, 18, 20, 22)
    gallery = sorted(set(range(12, 24)) - set(query))
    rows = {"train_idx": train, "query_idx": query, "gallery_idx": gallery}
    rows = {k: np.array(v, np.uint16)[:, None] + 1 for k, v in rows.items()}
    labels = np.repeat(np.arange(1, 7, dtype=np.uint16), 4)[:, None]
    io.savemat(path, {"filelist": filelist, "labels": labels, **rows})


def cuhk03(root, mat=True, images=()):
    """The release with cuhk-03.mat, or the folders of `images` as they are after extraction."""
    if mat:
        cuhk03_mat(os.path.join(root, "cuhk03_release", "cuhk-03.mat"))
    for boxes in images:
        for name in cuhk03_names():
            picture(root, f"images_{boxes}", name)
    os.makedirs(root, exist_ok=True)
    for boxes in ("detected", "labeled"):
        cuhk03_config(os.path.join(root, f"cuhk03_new_protocol_config_{boxes}.mat"))
    return str(root)


# ---- the small ones -------------------------------------------------------------------------------------
def viper(root, ids=(0, 1, 5, 7, 30, 31), size=(8, 16)):
    """cam_b's angles make its sorted listing agree with cam_a's by identity only."""
    for i, pid in enumerate(ids):
        picture(root, "cam_a", f"{pid:03d}_{(0, 45, 90)[i % 3]}.bmp", size=size, value=30 * i)
        picture(root, "cam_b", f"{pid:03d}_{(180, 90)[i % 2]}.bmp", size=size, value=30 * i + 9)
    return str(root)


def grid(root):
    """Ids 1-6; split s trains on three of them from s on, in no order; two unmatched gallery images."""
    for pid in range(1, 7):
        picture(root, "probe", f"{pid:04d}_{pid % 4 + 1}_25023_107_32_106_221.jpeg")
        picture(root, "gallery", f"{pid:04d}_{pid % 4 + 5}_25108_164_10_107_241.jpeg")
    for i in (1, 2):
        picture(root, "gallery", f"0000_{i}_2510{i}_1_1_10_24.jpeg")
    cells = np.empty((1, 10), object)
    for s in range(10):
        ids = np.array([[(s + 4) % 6 + 1, s % 6 + 1, (s + 2) % 6 + 1]], np.uint8)
        cells[0, s] = {"first": np.zeros((1, 2)), "second": np.ones((1, 3)), "ids": ids}
    io.savemat(os.path.join(root, "features_and_partitions.mat"), {"trainIdxAll": cells})
    return str(root)


def ilids(root, ids=IDS):
    for pid, number in itertools.product(ids, (1, 2, 3, 4)):
        picture(root, "Persons", f"{pid:04d}{number:03d}.jpg")
    return str(root)


def prid(root):
    """Persons 1-6 in both cameras, 201 in a alone, 201 and 202 in b alone (another 201)."""
    for pid in (*range(1, 7), 201):
        picture(root, "single_shot", "cam_a", f"person_{pid:04d}.png")
    for pid in (*range(1, 7), 201, 202):
        picture(root, "single_shot", "cam_b", f"person_{pid:04d}.png")
    return str(root)


def caviar(root, ids=IDS, low_first=True, per_camera=10):
    """Persons of two cameras, the smaller pictures first or last, and person 2 of one camera."""
    sizes = ((4, 8), (12, 24)) if low_first else ((12, 24), (4, 8))
    for pid, number in itertools.product(ids, range(1, 2 * per_camera + 1)):
        picture(root, f"{pid:04d}{number:03d}.jpg", size=sizes[number > per_camera])
    for number in range(1, per_camera + 1):
        picture(root, f"0002{number:03d}.jpg", size=sizes[0])
    return str(root)


def mlr(root):
    """Three train, three test ids, two pictures each of c0 and c1; queries c0, gallery c1; val has one."""
    for split, ids, cameras in (
        ("train", (0, 4, 20), (0, 1)),
        ("query", (1, 2, 9), (0,)),
        ("gallery", (1, 2, 9), (1,)),
    ):
        for pid, cam, i in itertools.product(ids, cameras, (0, 1)):
            picture(root, split, f"{pid:04d}", f"{pid:05d}_c{cam}_{i:05d}.jpg")
    picture(root, "val", "0003", "00003_c0_00000.jpg")
    return str(root)


def airport(root):
    """Persons 11001-11006 in cameras 1 and 2, 11010 in one; boxes of person 0 and of 1320011 match nobody."""
    lines = [(c, p, i) for p in range(11001, 11007) for c in (1, 2) for i in (0, 1)]
    lines += [(3, 11010, 0), (2, 0, 0), (1, 1320011, 0), (2, 1320011, 0)]
    for camera, person, i in lines:
        picture(root, f"cam{camera}", str(person), f"{i}.png")
    columns = {
        "filepath.txt": [f"cam{c}\\{p}\\{i}.png" for c, p, i in lines],
        "personID.txt": [str(p) for _, p, _ in lines],
        "camID.txt": [str(c) for c, _, _ in lines],
    }
    for name, values in columns.items():
        with open(os.path.join(root, name), "w") as f:
            f.write("\n".join(values) + "\n")
    return str(root)


def folder(root, splits=True):
    """train ids 1-3, test ids 4-6, cameras 1 and 2, two pictures each, named like Market-1501's."""
    for pid, cam, i in itertools.product(range(1, 7), (1, 2), (0, 1)):
        parts = [] if not splits else ["train"] if pid < 4 else ["gallery" if i else "query"]
        picture(root, *parts, f"{pid:04d}_c{cam}s1_{i:06d}_00.jpg")
    return str(root)


def files(folder):
    """{path below folder: bytes} of all files in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
