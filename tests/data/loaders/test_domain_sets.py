"""Sets that domain generalisation trains and tests on, and what joins when everything trains."""

import itertools
import os

import numpy as np
import pytest
from loaded import files, labels, load
from PIL import Image
from scipy import io
from trees import cuhk02, cuhk03, picture

from reid_jax.data import check, test_sets
from reid_jax.errors import DataError

BOXES = {1: [("s00001", (1, 2, 4, 8), 0), ("s00003", (6, 0, 9, 9), 1)], 7: [("s00001", (0, 0, 3, 5), 0)]}


def struct(**fields):
    """A MATLAB struct [1, N] of lists of N values."""
    table = np.empty((1, len(next(iter(fields.values())))), [(name, object) for name in fields])
    for name, values in fields.items():
        table[name][0] = np.fromiter(values, object, len(values))
    return table


def cuhk_sysu(root, shape="original"):
    """Persons 1 (two scenes, one box over the edge) and 7; or the crops under other codes' names."""
    names = {"crops": "cropped_images/p{}_s{}.jpg", "cropped": "cropped_image/p{:05d}_n01_s{:05d}_hard0.png"}
    if shape in names:
        for pid, scene in ((1, 1), (1, 3), (7, 1)):
            picture(root, *names[shape].format(pid, scene).split("/"))
        return str(root)
    for scene in ("s00001", "s00003"):
        picture(root, "Image", "SSM", f"{scene}.png", size=(10, 12), value=int(scene[-1]) * 50)
    scenes = [
        struct(
            imname=[f"{s}.png" for s, _, _ in seen],
            idlocate=[np.array([box], np.uint16) for _, box, _ in seen],
            ishard=[np.array([[hard]], np.uint8) for _, _, hard in seen],
        )
        for seen in BOXES.values()
    ]
    appear = [np.array([[len(s)]]) for s in BOXES.values()]
    os.makedirs(os.path.join(root, "annotation"))
    persons = struct(idname=[f"p{pid}" for pid in BOXES], nAppear=appear, scene=scenes)
    io.savemat(os.path.join(root, "annotation", "Person.mat"), {"Person": persons})
    return str(root)


def test_cuhk_sysu_is_cut_once(tmp_path):
    root = cuhk_sysu(tmp_path / "CUHK-SYSU")
    d = load("cuhk_sysu", tmp_path)
    assert labels(d.train) == [(0, 0), (0, 0), (1, 0)] and not d.query and not d.gallery
    want = ["p00001_n01_s00001_hard0.png", "p00001_n02_s00003_hard1.png", "p00007_n01_s00001_hard0.png"]
    assert files(d.train) == want
    sizes = [Image.open(r.path).size for r in d.train]
    assert sizes == [(4, 8), (4, 9), (3, 5)]  # the second box is cut off at the edge
    assert np.array(Image.open(d.train[1].path)).max() == 150
    os.remove(os.path.join(root, "annotation", "Person.mat"))
    assert load("cuhk_sysu", root) == d  # from the crops
    assert check.check("cuhk_sysu", root, quick=True)["counts"]["train images"] == 3
    with pytest.raises(DataError, match="has no test of its own"):
        test_sets.read(f"cuhk_sysu:{root}")


def test_cuhk_sysu_goes_on_where_it_stopped(tmp_path):
    root = cuhk_sysu(tmp_path / "CUHK-SYSU")
    done = picture(root, "cropped_image.part", "p00001_n01_s00001_hard0.png", size=(2, 2))
    d = load("cuhk_sysu", root)
    assert Image.open(d.train[0].path).size == (2, 2) and not os.path.exists(done) and len(d.train) == 3


@pytest.mark.parametrize("shape", ["crops", "cropped"])
def test_cuhk_sysu_crops_of_others(tmp_path, shape):
    d = load("cuhk_sysu", cuhk_sysu(tmp_path / "cuhk_sysu", shape))
    assert labels(d.train) == [(0, 0), (0, 0), (1, 0)]


def test_cuhk_sysu_faults(tmp_path):
    root = cuhk_sysu(tmp_path / "CUHK-SYSU")
    os.remove(os.path.join(root, "Image", "SSM", "s00003.png"))
    with pytest.raises(DataError, match=r"cannot read .*s00003.png"):
        load("cuhk_sysu", root)
    io.savemat(os.path.join(root, "annotation", "Person.mat"), {"Person": np.zeros((1, 2))})
    with pytest.raises(DataError, match="Person is not as published"):
        load("cuhk_sysu", root)


def test_cuhk_sysu_as_lifelong_learning_has_it(tmp_path):
    for split, ids in (("train", (1, 2)), ("query", (5, 6)), ("gallery", (5, 6))):
        for pid in ids:
            picture(tmp_path, "cuhksysu4reid", split, f"{pid:05d}_s00001_0000001_0.jpg")
    d = load("cuhk_sysu", tmp_path, variant="lifelong")
    assert labels(d.train) == [(0, 0), (1, 0)]
    assert labels(d.query) == [(5, 0), (6, 0)] and labels(d.gallery) == [(5, 1), (6, 1)]


def test_sensereid_tests_alone(tmp_path):
    for pid, camera in itertools.product((0, 1), (1, 2)):
        picture(tmp_path, "SenseReID", "test_probe", f"{pid:05d}_{camera}.jpg")
    for pid, camera in itertools.product((0, 1, 2), (3, 4)):
        picture(tmp_path, "SenseReID", "test_gallery", f"{pid:05d}_{camera}.jpg")
    _, (test,) = test_sets.read(f"sensereid:{tmp_path}")
    assert labels(test.query) == [(p, c) for p in (1, 2) for c in (0, 1)]
    assert labels(test.gallery) == [(p, c) for p in (1, 2, 3) for c in (2, 3)]
    with pytest.raises(DataError, match="is for tests alone"):
        load("sensereid", tmp_path)


def test_cuhk02_with_its_fifth_pair(tmp_path):
    """Number 1 is five persons; published: 1816 identities, 7264 pictures."""
    d = load("cuhk02", cuhk02(tmp_path), everything=True)
    assert len(d.train) == 60 and d.num_train_pids == 15 and d.num_cams == 10 and not d.query
    folders = {}
    for r in d.train:
        folders.setdefault(r.pid, set()).add(r.path.split("Dataset")[1][2])
    assert all(len(pairs) == 1 for pairs in folders.values())


def test_cuhk03_of_both_boxes(tmp_path):
    """Three persons train with detected and labeled pictures; tested are the detected ones."""
    root = cuhk03(tmp_path / "cuhk03")
    both, detected = (load("cuhk03", root, variant=f"classic-{v}") for v in ("both", "detected"))
    assert len(both.train) == 2 * len(detected.train) and both.num_train_pids == 3
    assert (both.query, both.gallery, both.protocol) == (detected.query, detected.gallery, "single-shot")
    assert both.drawn == detected.drawn
    every = load("cuhk03", root, variant="classic-both", everything=True)
    assert len(every.train) == 48 and every.num_train_pids == 6 and not every.query


def test_msmt17_without_its_validation_list(tmp_path):
    lists = {"train": ("train", 0), "val": ("train", 1), "query": ("test", 0), "gallery": ("test", 0)}
    for part, (folder, n) in lists.items():
        names = [f"{pid:04d}/{pid:04d}_{n:03d}_0{1 + (part == 'query')}_x_{part}.jpg" for pid in (0, 1)]
        for name in names:
            picture(tmp_path, "MSMT17_V1", folder, *name.split("/"))
        lines = [f"{name} {pid}\n" for pid, name in enumerate(names)]
        (tmp_path / "MSMT17_V1" / f"list_{part}.txt").write_text("".join(lines))
    counts = {v: len(load("msmt17", tmp_path, variant=v).train) for v in ("", "no-val")}
    assert counts == {"": 4, "no-val": 2}
    assert len(load("msmt17", tmp_path, variant="no-val", everything=True).train) == 8
