"""Folder loaders on generated trees in the published layouts, and every way a folder can be wrong."""

import logging
import os
import pickle

import numpy as np
import pytest
from batches import data_config
from PIL import Image

from reid_jax.config import defaults
from reid_jax.data import datasets
from reid_jax.errors import ConfigError, DataError


def picture(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.zeros((16, 8, 3), np.uint8)).save(path)


def market(root, name="{:04d}_c{}s1_{:06d}_00.jpg"):
    """Train ids 2, 7, 11, test ids 1, 3, 5; cameras 1 and 3; two images each; junk and distractors."""
    test = (1, 3, 5)
    for part, ids in (("bounding_box_train", (2, 7, 11)), ("query", test), ("bounding_box_test", test)):
        for pid in ids:
            for cam in (1, 3):
                for i in range(1 if part == "query" else 2):
                    picture(os.path.join(root, part, name.format(pid, cam, i)))
    picture(os.path.join(root, "bounding_box_test", "-1_c2s1_000009_00.jpg"))
    picture(os.path.join(root, "bounding_box_test", "0000_c2s1_000009_00.jpg"))
    with open(os.path.join(root, "bounding_box_test", "Thumbs.db"), "wb"):
        pass
    return str(root)


def msmt17(root, folders=("train", "test")):
    lists = {"train": [], "val": [], "query": [], "gallery": []}
    for part, pids in ((0, (0, 1, 2)), (1, (0, 1, 2))):
        for pid in pids:
            for cam in (2, 15):
                for i in range(2):
                    name = f"{pid:04d}/{pid:04d}_{i:03d}_{cam:02d}_0303morning_0015_{i}.jpg"
                    picture(os.path.join(root, folders[part], name))
                    split = (("train", "val"), ("query", "gallery"))[part][i]
                    lists[split].append(f"{name} {pid}")
    for split, lines in lists.items():
        with open(os.path.join(root, f"list_{split}.txt"), "w") as f:
            f.write("\n".join(lines) + "\n")
    return str(root)


def me_reid(root, test=(0, 40), cameras=(5, 12)):
    for split, pids in (("train", (3, 9, 30)), ("query", test), ("gallery", test)):
        for pid in pids:
            for cam in cameras:
                for i in range(2):
                    picture(os.path.join(root, split, str(pid), str(cam), f"x{i}.png"))
    return str(root)


def labels(records):
    return [(r.pid, r.camid) for r in records]


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "reid_jax")
    return lambda: [r.getMessage() for r in caplog.records]


def test_market(tmp_path, warnings):
    root = market(tmp_path / "m")
    d = datasets.load_folder("market1501", root)
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 1) for _ in range(2)]
    assert labels(d.query) == [(p, c) for p in (1, 3, 5) for c in (0, 1)]
    assert labels(d.gallery) == [(0, 2)] + [(p, c) for p in (1, 3, 5) for c in (0, 1) for _ in range(2)]
    assert (d.num_train_pids, d.num_cams, d.camera_names) == (3, 2, ("c1", "c3", "c2"))
    assert all(os.path.isabs(r.path) and os.path.isfile(r.path) for r in d.train + d.query + d.gallery)
    (message,) = warnings()
    assert "3 train ids instead of 751" in message and "12 train images instead of 12936" in message
    assert pickle.loads(pickle.dumps(d)) == d


@pytest.mark.parametrize("name", ["Market-1501-v15.09.15", "market1501"])
def test_parent_folder_and_relative_root(tmp_path, name, monkeypatch):
    market(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    d = datasets.load_folder("market1501", ".")
    assert d.root == str(tmp_path / name) and d.train[0].path.startswith(d.root)


def test_duke(tmp_path):
    root = market(tmp_path / "DukeMTMC-reID", "{:04d}_c{}_f{:07d}.jpg")
    d = datasets.load_folder("dukemtmc", tmp_path)
    assert d.root == root and len(d.train) == 12 and d.num_train_pids == 3


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17(tmp_path, folders):
    msmt17(tmp_path / "MSMT17_V1", folders)
    d = datasets.load_folder("msmt17", tmp_path)
    assert sorted(labels(d.train)) == [(p, c) for p in range(3) for c in (0, 1) for _ in range(2)]
    # the test ids 0, 1, 2 of the lists collide neither with train nor with the distractors' 0
    assert labels(d.query) == labels(d.gallery) == [(p, c) for p in (3, 4, 5) for c in (0, 1)]
    assert d.camera_names == ("c2", "c15")
    assert all(os.path.isfile(r.path) for r in d.train + d.query + d.gallery)


def test_msmt17_incomplete(tmp_path, warnings):
    root = msmt17(tmp_path / "MSMT17_V1")
    with open(os.path.join(root, "list_val.txt"), "a") as f:
        f.write("0000/strange.jpg 0\n0001/0001_000_x.jpg\n")
    datasets.load_folder("msmt17", root)
    assert any("2 entries" in m and "strange.jpg" in m for m in warnings())
    victim = os.path.join(root, "test", "0001", "0001_000_02_0303morning_0015_0.jpg")
    os.remove(victim)
    with pytest.raises(DataError, match=r"1 of 12 listed images are missing .*0001_000_02"):
        datasets.load_folder("msmt17", root)
    os.remove(os.path.join(root, "list_query.txt"))
    with pytest.raises(DataError, match=r"(?s)is incomplete, it has no list_query.txt.*pkuvmc"):
        datasets.load_folder("msmt17", root)


def test_me_reid(tmp_path):
    d = datasets.load_folder("me_reid", me_reid(tmp_path / "ME-ReID"))
    assert sorted(set(labels(d.train))) == [(p, c) for p in range(3) for c in (0, 1)]
    assert set(labels(d.query)) == set(labels(d.gallery)) == {(1, 0), (1, 1), (41, 0), (41, 1)}
    assert d.camera_names == ("c5", "c12")
    d = datasets.load_folder("me_reid", me_reid(tmp_path / "b", test=(4, 40)))
    assert {r.pid for r in d.query} == {4, 40}


def test_me_reid_strange_folders(tmp_path, warnings):
    root = me_reid(tmp_path / "ME-ReID")
    picture(os.path.join(root, "train", "person", "1", "x.png"))
    picture(os.path.join(root, "train", "3", "loose.png"))
    assert len(datasets.load_folder("me_reid", root).train) == 12
    assert any("2 entries" in m and "person" in m and "loose.png" in m for m in warnings())


def test_wrong_names_are_skipped_with_one_warning(tmp_path, warnings):
    root = market(tmp_path)
    for i in range(5):
        picture(os.path.join(root, "bounding_box_train", f"holiday{i}.jpg"))
    assert len(datasets.load_folder("market1501", root).train) == 12
    (message,) = [m for m in warnings() if "holiday" in m]
    assert "5 entries" in message and message.count("holiday") == 3


def test_junk_in_train_is_left_out(tmp_path, warnings):
    root = market(tmp_path)
    picture(os.path.join(root, "bounding_box_train", "0000_c1s1_000000_00.jpg"))
    picture(os.path.join(root, "query", "-1_c1s1_000000_00.jpg"))
    d = datasets.load_folder("market1501", root)
    assert len(d.train) == 12 and len(d.query) == 6
    assert sum("are left out" in m for m in warnings()) == 2


def test_missing_and_incomplete_folders(tmp_path):
    with pytest.raises(DataError, match=r"(?s)nowhere does not exist.*bounding_box_train/0002.*zheng-lab"):
        datasets.load_folder("market1501", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"(?s)does not hold DukeMTMC-reID.*withdrawn"):
        datasets.load_folder("dukemtmc", tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        file = tmp_path / "file"
        file.write_text("")
        datasets.load_folder("market1501", file)
    for part in ("bounding_box_train", "query"):
        os.makedirs(tmp_path / "Market-1501" / part)
    with pytest.raises(DataError, match=r"Market-1501 is incomplete, it has no bounding_box_test"):
        datasets.load_folder("market1501", tmp_path)
    os.makedirs(tmp_path / "Market-1501" / "bounding_box_test")
    with pytest.raises(DataError, match=r"(?s)holds no usable image for train.*Expected layout"):
        datasets.load_folder("market1501", tmp_path)


def test_load_errors(tmp_path):
    with pytest.raises(ConfigError, match="'market1501', .*'me_reid', .*'synthetic'"):
        datasets.load(data_config(name="nowhere", root=str(tmp_path)), tmp_path)
    with pytest.raises(DataError, match=r"(?s)data.root is empty.*--config.data.root"):
        datasets.load(data_config(), tmp_path)
    root = market(tmp_path)
    with pytest.raises(DataError, match=r"3 training identities, fewer than the 4.*data.ids"):
        datasets.load(data_config(root=root, ids=4), tmp_path)
    with pytest.raises(ConfigError, match="val_ids is 3"):
        datasets.load(data_config(root=root, val_ids=3), tmp_path)


def test_warns_of_one_camera_and_single_images(tmp_path, warnings):
    root = market(tmp_path)
    folder = os.path.join(root, "bounding_box_train")
    for name in os.listdir(folder):
        if "_c3" in name or (name.startswith("0007") and "_000001_" in name):
            os.remove(os.path.join(folder, name))
    d = datasets.load(data_config(root=root), tmp_path)
    assert d.num_cams == 1
    assert any("one camera" in m for m in warnings())
    assert any("1 of 3 training identities have a single image" in m for m in warnings())
    before = len(warnings())
    datasets.load(data_config(root=market(tmp_path)), tmp_path, labels="none", cameras=False)
    assert not any("one camera" in m for m in warnings()[before:])  # hidden, not missing


def test_validation_split(tmp_path):
    root = market(tmp_path)
    whole = datasets.load(data_config(root=root), tmp_path)
    d = datasets.load(data_config(root=root, val_ids=1), tmp_path)
    assert d == datasets.load(data_config(root=root, val_ids=1), tmp_path)
    drawn = {datasets.hold_out(whole, 1, seed).val_query[0].pid for seed in range(20)}
    assert drawn == {1, 2, 3}
    assert d.num_train_pids == 2 and {r.pid for r in d.train} == {0, 1} and len(d.train) == 8
    assert (d.query, d.gallery) == (whole.query, whole.gallery)
    assert labels(d.val_query) == [(d.val_query[0].pid, c) for c in (0, 1)]  # one image of each camera
    assert labels(d.val_gallery) == labels(d.val_query)
    paths = [r.path for r in d.train + d.val_query + d.val_gallery]
    assert sorted(paths) == sorted(r.path for r in whole.train)


def test_synthetic_goes_through_the_market_loader(tmp_path, monkeypatch):
    from reid_jax.data import synthetic

    seen = {}

    def generate(root, **settings):
        seen.update(settings, root=root)
        return market(root)

    monkeypatch.setattr(synthetic, "generate", generate, raising=False)
    d = datasets.load(data_config(name="synthetic"), str(tmp_path))
    assert d.name == "synthetic" and seen["root"] == str(tmp_path / "data") and seen["train_ids"] == 100
    assert set(seen) == {"root", *defaults()["data"]["synthetic"]}
