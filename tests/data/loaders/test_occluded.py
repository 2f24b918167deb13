"""Sets of people partly hidden in small: who searches whom, what the names mean, Occluded-Duke's lists."""

import itertools
import os

import pytest
from loaded import files, labels, load
from trees import picture

from reid_jax.data import check, test_sets
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval.protocols import PROTOCOLS

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def duke(root):
    """DukeMTMC-reID in small: ids 1 and 2 train, 5 and 6 test under cameras 1 to 3."""
    for folder, ids, cameras in zip(
        FOLDERS, ((1, 2), (5, 6), (5, 6)), ((1, 2), (1,), (1, 2, 3)), strict=True
    ):
        for pid, cam in itertools.product(ids, cameras):
            picture(root, folder, f"{pid:04d}_c{cam}_f00{folder == 'query'}{cam}.jpg")


def lists(root):
    """Occluded-Duke's lists: one training picture less, a query out of the gallery, which keeps it."""
    train = ["0001_c1_f00False1.jpg", "0001_c2_f00False2.jpg", "0002_c1_f00False1.jpg"]
    query = ["0005_c1_f00True1.jpg", "0006_c2_f00False2.jpg"]
    gallery = [f"{p:04d}_c{c}_f00False{c}.jpg" for p in (5, 6) for c in (1, 2, 3)]
    os.makedirs(root, exist_ok=True)
    for name, lines in (("train", train), ("query", query), ("gallery", gallery)):
        with open(os.path.join(root, f"{name}.list"), "w") as f:
            f.write("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("place", ["DukeMTMC-reID", "Occluded_Duke", "DukeMTMC-reID/Occluded_Duke"])
def test_occluded_duke_by_its_lists(tmp_path, place):
    duke(tmp_path / "DukeMTMC-reID")
    lists(tmp_path / place)
    d = load("dukemtmc", tmp_path, variant="occluded")
    assert d.root == str(tmp_path / "DukeMTMC-reID") and len(d.train) == 3 and d.num_train_pids == 2
    assert labels(d.query) == [(5, 0), (6, 1)] and len(d.gallery) == 6
    folders = [os.path.basename(os.path.dirname(r.path)) for r in d.query]
    assert folders == ["query", "bounding_box_test"]
    assert len(load("dukemtmc", tmp_path).train) == 4


def test_occluded_duke_by_its_own_tree_and_without_lists(tmp_path):
    duke(tmp_path / "a" / "Occluded_Duke")
    assert len(load("dukemtmc", tmp_path / "a", variant="occluded").train) == 4
    duke(tmp_path / "DukeMTMC-reID")
    with pytest.raises(DataError, match=r"nor a folder Occluded_Duke .* has train\.list"):
        load("dukemtmc", tmp_path, variant="occluded")
    lists(tmp_path / "DukeMTMC-reID")
    os.remove(tmp_path / "DukeMTMC-reID" / "query" / "0005_c1_f00True1.jpg")
    with pytest.raises(DataError, match="1 of 2 listed images are missing"):
        load("dukemtmc", tmp_path, variant="occluded")


def occluded_reid(root):
    for folder, pid, n in itertools.product(("occluded", "whole"), (1, 2), (1, 2)):
        picture(root, f"{folder}_body_images", f"{pid:03d}", f"{pid:03d}_{n:02d}.tif")


def partial_reid(root):
    for folder, pid, n in itertools.product(("partial", "occluded", "whole"), (1, 2), (1, 2)):
        picture(root, f"{folder}_body_images", f"{pid:03d}_{n:03d}.jpg")


def partial_ilids(root):
    for folder, pid in itertools.product(("query", "gallery"), (1, 2)):
        picture(root, folder, f"{pid:03d}_1.jpg")


TESTS = {
    "occluded_reid": (occluded_reid, "market", 4),
    "partial_reid": (partial_reid, "all-pairs", 4),
    "partial_ilids": (partial_ilids, "all-pairs", 2),
}


@pytest.mark.parametrize("name", TESTS)
def test_sets_that_test_alone(tmp_path, name):
    """Hidden pictures are camera 0, whole ones 1, whatever the second number; nobody trains."""
    build, protocol, count = TESTS[name]
    build(tmp_path)
    _, (test,) = test_sets.read(f"{name}:{tmp_path}")
    assert test.protocol == protocol in PROTOCOLS
    assert len(test.query) == len(test.gallery) == count
    assert {r.camid for r in test.query} == {0} and {r.camid for r in test.gallery} == {1}
    assert {r.pid for r in test.query} == {r.pid for r in test.gallery} == {1, 2}
    assert check.check(name, str(tmp_path), quick=True)["counts"]["query images"] == count
    with pytest.raises(DataError, match="is for tests alone; train on another set"):
        load(name, tmp_path)


def test_partial_reid_by_its_occluded_pictures(tmp_path):
    partial_reid(tmp_path)
    _, (test,) = test_sets.read(f"partial_reid/occluded:{tmp_path}")
    assert all("occluded_body_images" in r.path for r in test.query)
    with pytest.raises(ConfigError, match="has 'partial', 'occluded'"):
        test_sets.read(f"partial_reid/whole:{tmp_path}")


@pytest.mark.parametrize("name", ["p_dukemtmc", "p_ethz"])
def test_sets_with_training_pictures(tmp_path, name):
    camera = (lambda whole: f"c{3 + whole}_f0") if name == "p_dukemtmc" else (lambda whole: "x")
    for part, whole, pid in itertools.product(("train", "test"), (False, True), (1, 2)):
        folder = f"{('occluded', 'whole')[whole]}_body_images"
        pid += 10 * (part == "test")
        picture(tmp_path, part, folder, str(pid), f"{pid:04d}_{camera(whole)}.jpg")
    d = load(name, tmp_path)
    assert sorted(labels(d.train)) == [(p, c) for p in (0, 1) for c in (0, 1)]
    assert labels(d.query) == [(11, 0), (12, 0)] and labels(d.gallery) == [(11, 1), (12, 1)]
    assert files(d.query)[0].startswith("0011_")
    if name == "p_dukemtmc":
        assert d.camera_names == ("c3", "c4")
