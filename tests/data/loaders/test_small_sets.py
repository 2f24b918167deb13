"""VIPeR, GRID, iLIDS, PRID2011 and Airport: drawn or published splits of small sets."""

import os

import numpy as np
import pytest
from loaded import files, labels, load
from scipy import io
from trees import airport, damage, grid, ilids, picture, prid, viper

from reid_jax.data import datasets
from reid_jax.data.images import Images
from reid_jax.errors import DataError


def test_viper_pairs_by_identity(tmp_path):
    root = viper(tmp_path / "VIPeR")
    d = load("viper", tmp_path)
    assert d.camera_names == ("a", "b") and d.protocol == "single-gallery"
    assert sorted(labels(d.train)) == [(p, c) for p in range(3) for c in (0, 1)]
    # the published ids count from 0; here they count from 1, as 0 marks distractors
    for part, camera in ((d.query, 0), (d.gallery, 1)):
        assert labels(part) == [(int(f[:3]) + 1, camera) for f in files(part)] and len(part) == 3
    assert [r.pid for r in d.query] == [r.pid for r in d.gallery]
    test = {int(f[:3]) for f in files(d.query)}
    assert test | set(d.drawn["train_ids"]) == {0, 1, 5, 7, 30, 31} and len(d.drawn["train_ids"]) == 3
    back = load("viper", root, split=1)
    assert (back.query, back.gallery) == (d.gallery, d.query)
    assert len({tuple(load("viper", root, split=s).drawn["train_ids"]) for s in range(20)}) > 3
    assert load("viper", root, seed=1).drawn != d.drawn or load("viper", root, seed=2).drawn != d.drawn


def test_pku_reid_tests_every_picture_of_the_other_half(tmp_path):
    for person in ("001", "003", "004", "102"):
        for name in ("01_1.png", "01_8.png", "02_3.png"):
            picture(tmp_path / "pku_reid_74", person, name)
    picture(tmp_path / "pku_reid_74", "001", "back.png")
    d = load("pku_reid", tmp_path)
    assert d.query == d.gallery and len(d.query) == len(d.train) == 6 and d.protocol == "market"
    assert set(d.drawn["train_ids"]) | {r.pid for r in d.query} == {1, 3, 4, 102}
    assert sorted(labels(d.train)) == [(p, c) for p in (0, 1) for c in (0, 0, 1)]
    draws = {tuple(load("pku_reid", tmp_path, split=s).drawn["train_ids"]) for s in range(5)}
    assert len(draws) > 1


def test_viper_validation_searches_the_other_camera(tmp_path):
    """One picture in each camera: all of them are gallery, and evaluation leaves out a query's own."""
    d = datasets.hold_out(load("viper", viper(tmp_path / "VIPeR")), 2)
    assert d.val_query == d.val_gallery and len(d.val_query) == 4 and d.num_train_pids == 1


def test_viper_faults(tmp_path, caplog):
    root = viper(tmp_path / "VIPeR")
    picture(root, "cam_a", "005_180.bmp")  # a second picture of one person
    picture(root, "cam_b", "099_0.bmp")  # a person without a partner
    d = load("viper", root)
    assert len(d.query) == len(d.gallery) == 3
    assert "2 entries" in caplog.text and "099_0.bmp" in caplog.text and "cam_a/005_" in caplog.text
    for name in os.listdir(os.path.join(root, "cam_b")):
        os.remove(os.path.join(root, "cam_b", name))
    with pytest.raises(DataError, match="0 identities cannot be split"):
        load("viper", root)


@pytest.mark.parametrize("kind", ["empty", "truncated", "text"])
def test_a_broken_picture_tells_its_name_or_is_passed_over(tmp_path, kind):
    root = ilids(tmp_path / "ilids")
    d = load("ilids", root)
    path = damage(d.train[0].path, kind)
    assert load("ilids", root) == d  # names alone are read here
    paths, pids = [r.path for r in d.train], [r.pid for r in d.train]
    with pytest.raises(DataError, match=os.path.basename(path)):
        Images(paths, pids, 16, 8).get(0)
    assert Images(paths, pids, 16, 8, skip=True).get(0)[1] == 1


def test_grid(tmp_path):
    root = grid(tmp_path / "underground_reid")
    for split, want in ((0, [1, 3, 5]), (1, [2, 4, 6]), (9, [2, 4, 6])):
        d = load("grid", root, split=split)
        train = sorted({int(f[:4]) for f in files(d.train)})
        assert train == want and len(d.train) == 6 and d.num_train_pids == 3
        rest = [p for p in range(1, 7) if p not in want]
        assert [r.pid for r in d.query] == rest and "probe" in d.query[0].path
        assert [r.pid for r in d.gallery] == [0, 0, *rest]
    assert d.protocol == "single-gallery" and not d.drawn
    names = {r.path: d.camera_names[r.camid] for r in d.train + d.query + d.gallery}
    assert all(name == "c" + os.path.basename(path).split("_")[1] for path, name in names.items())


def test_grid_faults(tmp_path):
    root = grid(tmp_path / "underground_reid")
    mat = os.path.join(root, "features_and_partitions.mat")
    os.remove(os.path.join(root, "probe", "0003_4_25023_107_32_106_221.jpeg"))
    with pytest.raises(DataError, match=r"no image of 1 identities .*\(first 3\)"):
        load("grid", root)
    io.savemat(mat, {"trainIdxAll": np.zeros((1, 2))})
    with pytest.raises(DataError, match="features_and_partitions.mat: trainIdxAll has no split 0"):
        load("grid", root)
    io.savemat(mat, {"other": np.zeros(2)})
    with pytest.raises(DataError, match="no variable 'trainIdxAll'"):
        load("grid", root)
    damage(mat, "empty")
    with pytest.raises(DataError, match="cannot read .*features_and_partitions.mat"):
        load("grid", root)
    os.remove(mat)
    with pytest.raises(DataError, match=r"(?s)incomplete, it has no features_and_partitions.mat.*ccloy"):
        load("grid", root)


def test_ilids(tmp_path, caplog):
    root = ilids(tmp_path / "i-LIDS_Pedestrian")
    picture(root, "Persons", "0099001.jpg")  # alone: nothing could be found
    d = load("ilids", tmp_path)
    again = load("ilids", root)
    assert (d.train, d.query, d.gallery) == (again.train, again.query, again.gallery)
    assert d.protocol == "single-gallery"
    assert len(d.query) == len(d.gallery) and labels(d.query) != labels(d.gallery)
    assert [r.pid for r in d.query] == [r.pid for r in d.gallery] == sorted(r.pid for r in d.query)
    assert all(q.path != g.path and q.camid != g.camid for q, g in zip(d.query, d.gallery, strict=True))
    assert d.drawn["query"] == files(d.query) and d.drawn["gallery"] == files(d.gallery)
    assert len({tuple(load("ilids", root, split=s).drawn["query"]) for s in range(10)}) > 5
    queries = {f[4:7] for s in range(10) for f in load("ilids", root, split=s).drawn["query"]}
    assert queries == {"001", "002", "003", "004"}
    numbers = {r.path: int(os.path.basename(r.path)[4:7]) for r in d.train}
    assert all(d.camera_names[r.camid] == f"c{numbers[r.path]}" for r in d.train)


def test_prid(tmp_path):
    root = prid(tmp_path / "prid_2011")
    d = load("prid", root)
    assert sorted(labels(d.train)) == [(p, c) for p in range(3) for c in (0, 1)]
    test = [p for p in range(1, 7) if p not in d.drawn["train_ids"]]
    assert [r.pid for r in d.query] == test and {r.camid for r in d.query} == {0}
    assert [r.pid for r in d.gallery] == [*test, 201, 202] and {r.camid for r in d.gallery} == {1}
    assert not any("201" in f for f in files(d.query + d.train))


def test_prid_faults(tmp_path, caplog):
    root = prid(tmp_path / "prid_2011")
    picture(root, "single_shot", "cam_a", "person_0001.jpg")
    assert len(load("prid", root).query) == 3
    assert "1 entries" in caplog.text and "person_0001.png" in caplog.text
    os.rename(os.path.join(root, "single_shot/cam_b"), os.path.join(root, "gone"))
    with pytest.raises(DataError, match="no single_shot/cam_b"):
        load("prid", root)
    with open(os.path.join(root, "single_shot/cam_b"), "w"):
        pass
    with pytest.raises(DataError, match="cannot read the folder .*cam_b"):
        load("prid", root)


def test_airport(tmp_path):
    d = load("airport", airport(tmp_path / "AirportALERT"))
    assert d.num_train_pids == 3 and len(d.train) == 12 and len(d.query) == 6
    test = sorted(set(range(11001, 11007)) - set(d.drawn["train_ids"]))
    assert labels(d.query) == [(p, c) for p in test for c in (0, 1)]
    assert all(r.path.endswith(f"{os.sep}0.png") for r in d.query)
    assert labels(d.gallery) == [*labels(d.query), (11010, 2), (0, 1), (0, 0), (0, 1)]
    assert not {r.path for r in d.query} & {r.path for r in d.gallery}
    assert all(os.path.isfile(r.path) for r in d.train + d.query + d.gallery)


@pytest.mark.parametrize(
    "name, line, message",
    [
        ("filepath.txt", "..\\..\\secret.png", r"filepath.txt, line 29, names .*outside"),
        ("filepath.txt", "cam1\\11001\\0.png", r"on lines 1 and 29; remove one"),
        ("filepath.txt", "cam1\\11001\\9.png", r"1 of 29 listed images are missing .*9.png"),
        ("personID.txt", "x", r"line 29 of .*person 'x'"),
    ],
)
def test_airport_faults(tmp_path, name, line, message):
    root = airport(tmp_path / "airport")
    picture(root, "cam1", "11001", "7.png")
    for file, text in (("filepath.txt", "cam1\\11001\\7.png"), ("personID.txt", "11001"), ("camID.txt", "1")):
        with open(os.path.join(root, file), "a") as f:
            f.write((line if file == name else text) + "\n")
    with pytest.raises(DataError, match=message):
        load("airport", root)


def test_airport_lists_of_different_length(tmp_path):
    root = airport(tmp_path / "airport")
    with open(os.path.join(root, "camID.txt"), "a") as f:
        f.write("1\n")
    with pytest.raises(DataError, match="28, 28 and 29 lines"):
        load("airport", root)
    os.remove(os.path.join(root, "camID.txt"))
    with pytest.raises(DataError, match="(?s)no camID.txt.*northeastern"):
        load("airport", root)
