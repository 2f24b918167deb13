"""MLR-CUHK03, MLR-VIPeR, made and read, and CAVIAR4REID in both layouts."""

import json
import os

import jax
import numpy as np
import pytest
from loaded import labels, load
from PIL import Image
from trees import caviar, cuhk03, damage, mlr, picture, viper

from reid_jax.data.loaders import mlr as reader
from reid_jax.errors import ConfigError, DataError


def tree(root):
    """{relative path: bytes} of all files."""
    found = {}
    for parent, _, names in os.walk(root):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as f:
                found[os.path.relpath(path, root)] = f.read()
    return found


@pytest.mark.parametrize("name", ["mlr_viper", "mlr_cuhk03", "caviar"])
def test_reorganised(tmp_path, name):
    d = load(name, mlr(tmp_path / "set"))
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 0, 1, 1)]
    # a person 0 trains, so that all count from 1
    assert labels(d.query) == [(p, 0) for p in (2, 2, 3, 3, 10, 10)]
    assert labels(d.gallery) == [(p, 1) for p in (2, 2, 3, 3, 10, 10)]
    assert d.camera_names == ("low", "high") and d.protocol == "single-shot" and not d.drawn


def test_reorganised_faults(tmp_path, caplog):
    root = mlr(tmp_path / "MLR-VIPeR")
    picture(root, "train", "0004", "noname.jpg")
    assert len(load("mlr_viper", root).train) == 12
    assert "1 entries" in caplog.text and "noname.jpg" in caplog.text
    with pytest.raises(ConfigError, match="split is 1.*single split"):
        load("caviar", root, split=1)
    os.rename(os.path.join(root, "query"), os.path.join(root, "queries"))
    with pytest.raises(DataError, match="(?s)no query.*loaders.mlr.build"):
        load("mlr_viper", root)


def test_build_viper(tmp_path):
    source = viper(tmp_path / "VIPeR", size=(48, 128))
    target = reader.build(source, tmp_path / "a", seed=3, progress=False)
    d = load("mlr_viper", target)
    assert (len(d.train), len(d.query), len(d.gallery)) == (6, 3, 3)
    assert d.drawn["train_ids"] == load("viper", source, seed=3).drawn["train_ids"] and d.drawn["seed"] == 3
    note = json.loads((tmp_path / "a" / "split.json").read_text())
    sizes = {2: (24, 64), 3: (16, 43), 4: (12, 32)}
    seen = set()
    for r in d.train + d.query + d.gallery:
        ratio = note["ratios"].get(os.path.relpath(r.path, target).replace(os.sep, "/"), 1)
        assert (ratio > 1) == (r.camid == 0)
        assert Image.open(r.path).size == sizes.get(ratio, (48, 128))
        seen.add(ratio)
    assert len(seen) > 2
    assert tree(reader.build(source, tmp_path / "b", seed=3, progress=False)) == tree(target)
    other = json.loads(
        open(reader.build(source, tmp_path / "c", seed=4, progress=False) + "/split.json").read()
    )
    assert other["ratios"] != note["ratios"]


def test_build_down_samples_by_bicubic(tmp_path):
    source = str(tmp_path / "x.png")
    plane = np.random.default_rng(0).integers(0, 256, (64, 24), np.uint8)
    Image.fromarray(np.repeat(plane[..., None], 3, 2)).save(source)
    reader.write_picture(source, str(tmp_path / "out" / "x.jpg"), 4)
    got = np.asarray(Image.open(tmp_path / "out" / "x.jpg"), float)
    want = jax.image.resize(plane.astype(np.float32), (16, 6), "cubic")
    assert got.shape == (16, 6, 3)
    assert np.abs(got[..., 0] - want).mean() < 1.8  # of JPEG; the next filter, Lanczos, is 2.4 away


def test_build_cuhk03(tmp_path):
    source = cuhk03(tmp_path / "cuhk03")
    d = load("mlr_cuhk03", reader.build(tmp_path, tmp_path / "mlr", progress=False))
    classic = load("cuhk03", source, variant="classic-detected")
    assert len(d.train) == len(classic.train) == 12 and d.num_train_pids == 3
    assert labels(d.query) == [(p, 0) for p in (4, 4, 5, 5, 6, 6)]
    assert labels(d.gallery) == [(p, 1) for p in (4, 4, 5, 5, 6, 6)]


def test_build_faults(tmp_path):
    source = viper(tmp_path / "VIPeR")
    with pytest.raises(ConfigError, match="'mlr_viper', 'mlr_cuhk03'"):
        reader.build(source, tmp_path / "t", name="viper")
    with pytest.raises(DataError, match="(?s)does not hold VIPeR.*does not hold CUHK03"):
        (tmp_path / "nothing").mkdir()
        reader.build(tmp_path / "nothing", tmp_path / "t")
    with pytest.raises(DataError, match="VIPeR exists already"):
        reader.build(source, source, progress=False)
    victim = damage(os.path.join(source, "cam_b", os.listdir(os.path.join(source, "cam_b"))[0]), "truncated")
    with pytest.raises(DataError, match=f"{os.path.basename(victim)} cannot be read"):
        reader.build(source, tmp_path / "t", progress=False)
    assert not (tmp_path / "t").exists()
    picture(victim)
    (tmp_path / "t").mkdir()  # an empty folder is as good as none
    assert len(load("mlr_viper", reader.build(source, tmp_path / "t", progress=False)).query) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        reader.build(source, tmp_path / "file" / "t", progress=False)
    (tmp_path / "t" / "split.json").write_text("{")
    with pytest.raises(DataError, match="split.json.*build the set again"):
        load("mlr_viper", tmp_path / "t")


@pytest.mark.parametrize("low_first, per_camera", [(True, 10), (False, 10), (True, 5)])
def test_caviar_flat(tmp_path, low_first, per_camera):
    caviar(tmp_path / "CAVIAR4REID" / "CAVIARa", low_first=low_first, per_camera=per_camera)
    d = load("caviar", tmp_path / "CAVIAR4REID")
    assert d == load("caviar", tmp_path) and d.camera_names == ("low", "high")
    assert len(d.train) == 6 * per_camera and len(d.query) == len(d.gallery) == 3 * per_camera
    test = sorted(set((3, 5, 8, 12, 13, 21)) - set(d.drawn["train_ids"]))  # person 2 is left out
    assert sorted({r.pid for r in d.query}) == sorted({r.pid for r in d.gallery}) == test
    assert {Image.open(r.path).size for r in d.query} == {(4, 8)} and {r.camid for r in d.query} == {0}
    assert {Image.open(r.path).size for r in d.gallery} == {(12, 24)} and {r.camid for r in d.gallery} == {1}
    assert all((Image.open(r.path).size == (4, 8)) == (r.camid == 0) for r in d.train)
    assert len({tuple(load("caviar", tmp_path, split=s).drawn["train_ids"]) for s in range(10)}) > 3


def test_caviar_flat_as_root_and_faults(tmp_path):
    root = caviar(tmp_path / "any", ids=(1, 4, 6, 7))
    damage(os.path.join(root, "0001001.jpg"), "empty")  # passed over when sizes are compared
    d = load("caviar", root)
    assert d.root == root and len(d.query) == 20
    for number in range(1, 11):
        for pid in (1, 4, 6, 7):
            damage(os.path.join(root, f"{pid:04d}{number:03d}.jpg"), "text")
    with pytest.raises(DataError, match="no picture of a camera can be read"):
        load("caviar", root)
    root = caviar(tmp_path / "few", ids=(1,))
    with pytest.raises(DataError, match="1 persons seen by both cameras"):
        load("caviar", root)
