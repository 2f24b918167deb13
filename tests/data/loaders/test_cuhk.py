"""CUHK01, CUHK02 and CUHK03, the last out of a generated cuhk-03.mat."""

import json
import os
import sys

import numpy as np
import pytest
from loaded import files, labels, load
from PIL import Image
from trees import cuhk01, cuhk02, cuhk03, cuhk03_names, cuhk03_pixels, picture

from reid_jax.data.loaders import cuhk03 as reader
from reid_jax.errors import ConfigError, DataError


def test_cuhk01(tmp_path, caplog):
    root = cuhk01(tmp_path / "cuhk01")
    d = load("cuhk01", tmp_path)
    assert d.root == root and d.protocol == "single-gallery"
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 0, 1, 1)]
    assert {f[4:7] for f in files(d.query)} == {"001", "002"} and {r.camid for r in d.query} == {0}
    assert {f[4:7] for f in files(d.gallery)} == {"003", "004"} and {r.camid for r in d.gallery} == {1}
    test = sorted({r.pid for r in d.query})
    assert sorted(d.drawn["train_ids"] + test) == [3, 5, 8, 12, 13, 21]
    assert "3 train ids instead of 485" in caplog.text
    back = load("cuhk01", root, split=1)
    assert (back.query, back.gallery, back.train) == (d.gallery, d.query, d.train)
    draws = {tuple(load("cuhk01", root, split=s).drawn["train_ids"]) for s in range(0, 20, 2)}
    assert len(draws) > 1
    assert load("cuhk01", root, seed=7) == load("cuhk01", root, seed=7)
    with pytest.raises(ConfigError, match="split is 20; CUHK01 has splits 0 to 19"):
        load("cuhk01", root, split=20)


def test_cuhk01_strange_names(tmp_path, caplog):
    root = cuhk01(tmp_path / "cuhk01")
    picture(root, "campus", "0003009.png")
    picture(root, "campus", "me.png")
    (tmp_path / "cuhk01" / "campus" / "Thumbs.db").write_bytes(b"")
    assert len(load("cuhk01", root).train) == 12
    assert "2 entries" in caplog.text and "0003009.png" in caplog.text


def test_cuhk02(tmp_path):
    d = load("cuhk02", cuhk02(tmp_path / "cuhk02"))
    assert d.num_train_pids == 12 and d.num_cams == 8 and len(d.train) == 48
    pairs = [int(r.path.split("Dataset")[1][2]) for r in d.train]
    views = [int(r.path.split("cam")[-1][0]) for r in d.train]
    want = [2 * (pair - 1) + view - 1 for pair, view in zip(pairs, views, strict=True)]
    assert [r.camid for r in d.train] == want
    own = [3 * (p - 1) + int(f[:3]) - 1 for p, f in zip(pairs, files(d.train), strict=True)]
    assert [r.pid for r in d.train] == own  # the same number is another person in another pair
    assert labels(d.query) == [(p, 8) for p in (1, 1, 2, 2, 3, 3)]
    assert labels(d.gallery) == [(p, 9) for p in (1, 1, 2, 2, 3, 3)]


def test_cuhk02_incomplete(tmp_path):
    root = cuhk02(tmp_path / "cuhk02")
    for name in os.listdir(os.path.join(root, "Dataset/P3/cam2")):
        os.remove(os.path.join(root, "Dataset/P3/cam2", name))
    os.rmdir(os.path.join(root, "Dataset/P3/cam2"))
    with pytest.raises(DataError, match=r"(?s)incomplete, it has no Dataset/P3/cam2.*CUHK_identification"):
        load("cuhk02", root)
    with open(os.path.join(root, "Dataset/P3/cam2"), "w"):
        pass
    with pytest.raises(DataError, match=r"cannot read the folder .*P3/cam2"):
        load("cuhk02", root)


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_new_protocol(tmp_path, boxes, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)  # not needed where the pictures are out
    root = cuhk03(tmp_path / "cuhk03", mat=False, images=[boxes])
    d = load("cuhk03", tmp_path, variant=boxes)
    assert d.protocol == "market" and d.camera_names == ("c1", "c2")
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 0, 1, 1)]
    assert labels(d.query) == labels(d.gallery) == [(p, c) for p in (4, 5, 6) for c in (0, 1)]
    names = cuhk03_names()
    assert (
        files(d.train) == names[:12] and files(d.query) == names[12::2] and files(d.gallery) == names[13::2]
    )
    with pytest.raises(ConfigError, match=rf"split is 1; CUHK03 \({boxes}\) has splits 0 to 0"):
        load("cuhk03", root, variant=boxes, split=1)


def test_cuhk03_out_of_the_mat(tmp_path, monkeypatch):
    root = cuhk03(tmp_path / "cuhk03")
    d = load("cuhk03", root)
    assert len(d.train) == 12 and "cuhk03_release/images_detected" in d.train[0].path
    for record, (pair, pid) in ((d.train[2], (1, 1)), (d.gallery[-1], (5, 1))):
        index = int(record.path[-6:-4])
        np.testing.assert_array_equal(np.asarray(Image.open(record.path)), cuhk03_pixels(pair, pid, index))
    assert sorted(os.listdir(tmp_path / "cuhk03/cuhk03_release/images_detected")) == sorted(cuhk03_names())
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert load("cuhk03", root) == d
    with pytest.raises(DataError, match=r"h5py.*reid_jax\[datasets\]"):
        load("cuhk03", root, variant="labeled")


def test_cuhk03_extraction_goes_on(tmp_path, monkeypatch):
    root = cuhk03(tmp_path / "cuhk03")
    save, saved = reader.save_cell, []

    def fail_at(count):
        def save_cell(cell, path):
            if len(saved) == count:
                raise KeyboardInterrupt
            save(cell, path)
            if os.path.exists(path):
                saved.append(path)

        return save_cell

    monkeypatch.setattr(reader, "save_cell", fail_at(5))
    with pytest.raises(KeyboardInterrupt):
        load("cuhk03", root)
    folder = tmp_path / "cuhk03/cuhk03_release/images_detected"
    assert not folder.exists() and len(saved) == 5
    monkeypatch.setattr(reader, "save_cell", fail_at(-1))
    load("cuhk03", root)
    assert len(saved) == len(set(saved)) == 24  # nothing twice
    assert len(os.listdir(folder)) == 24 and os.listdir(folder.parent).count("images_detected.part") == 0


def test_cuhk03_classic(tmp_path, monkeypatch):
    root = cuhk03(tmp_path / "cuhk03")
    d = load("cuhk03", root, variant="classic-labeled")
    assert d.protocol == "single-shot" and d.num_train_pids == 3
    assert d.query == d.gallery and len(d.query) == 12
    assert sorted({r.pid for r in d.query}) == [200002, 300001, 500001]
    assert {f[:5] for f in files(d.train)} == {"1_001", "1_002", "2_001"}
    monkeypatch.setitem(sys.modules, "h5py", None)
    other = load("cuhk03", root, variant="classic-labeled", split=1)
    assert {f[:5] for f in files(other.query)} == {"1_001", "1_002", "2_001"}
    with pytest.raises(ConfigError, match="splits 0 to 19"):
        load("cuhk03", root, variant="classic-labeled", split=20)
    assert len(json.loads((tmp_path / "cuhk03/cuhk03_release/classic_splits.json").read_text())) == 20
    (tmp_path / "cuhk03/cuhk03_release/classic_splits.json").write_text("[[1")
    with pytest.raises(DataError, match="classic_splits.json.*remove it"):
        load("cuhk03", root, variant="classic-labeled")


def test_cuhk03_faults(tmp_path):
    root = cuhk03(tmp_path / "cuhk03", images=["detected"])
    config = os.path.join(root, "cuhk03_new_protocol_config_detected.mat")
    os.remove(os.path.join(root, "images_detected", "5_001_2_07.png"))
    with pytest.raises(DataError, match="1 of 24 listed images are missing .*5_001_2_07"):
        load("cuhk03", root)
    with open(config, "r+b") as f:
        f.truncate(300)
    with pytest.raises(DataError, match="cannot read .*config_detected.mat.*copy the file again"):
        load("cuhk03", root)
    os.remove(config)
    with pytest.raises(DataError, match="config_detected.mat is missing.*classic-detected"):
        load("cuhk03", root)
    mat = os.path.join(root, "cuhk03_release", "cuhk-03.mat")
    with open(mat, "r+b") as f:
        f.truncate(2000)
    with pytest.raises(DataError, match="cannot read .*cuhk-03.mat.*unpack it again"):
        load("cuhk03", root, variant="labeled")
    os.remove(mat)
    with pytest.raises(DataError, match="cuhk-03.mat is missing, and there is no folder images_labeled"):
        load("cuhk03", root, variant="labeled")
    with pytest.raises(ConfigError, match="'detected', 'labeled', 'classic-detected', 'classic-labeled'"):
        load("cuhk03", root, variant="drawn")


def test_cuhk03_disk_full(tmp_path, monkeypatch):
    root = cuhk03(tmp_path / "cuhk03")

    def save(self, path, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(DataError, match=r"cannot write .*_0[1267].png: No space left.*free space"):
        load("cuhk03", root)
    monkeypatch.undo()
    assert len(load("cuhk03", root).train) == 12
