"""The commands check and list: every fault that is planted is found, a whole copy has none."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from reid_jax import cli
from reid_jax.data import __main__ as command
from reid_jax.data import check
from reid_jax.data.check import files, output
from reid_jax.data.loaders import LAYOUTS
from reid_jax.errors import ConfigError, DataError


def picture(path, seed):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 8, 3), np.uint8)).save(path)


@pytest.fixture
def market(tmp_path):
    """Train ids 2, 7, test ids 1, 3, cameras 1 and 3, two images each; junk and a distractor."""
    root, seed = tmp_path / "market1501", itertools.count()
    for part, ids in (("bounding_box_train", (2, 7)), ("query", (1, 3)), ("bounding_box_test", (1, 3))):
        for pid, cam in itertools.product(ids, (1, 3)):
            for i in range(1 if part == "query" else 2):
                picture(str(root / part / f"{pid:04d}_c{cam}s1_{i:06d}_00.jpg"), next(seed))
    for pid in ("-1", "0000"):
        picture(str(root / "bounding_box_test" / f"{pid}_c2s1_000009_00.jpg"), next(seed))
    return root


def kinds(found):
    return {p["kind"]: p for p in found["problems"] if p["kind"] != "count"}


def test_a_whole_copy(market):
    found = check.check("market1501", str(market))
    assert kinds(found) == {} and found["notes"] == [] and found["files"] == 8 + 4 + 9
    assert found["counts"] == {
        "train ids": 2, "train images": 8, "query ids": 2, "query images": 4,
        "gallery ids": 3, "gallery images": 9, "images": 21, "cameras": 3,
    }  # fmt: skip
    assert found["cameras"] == {"train": 2, "query": 2, "gallery": 3}
    assert found["published"] == LAYOUTS["market1501"].counts
    (count,) = found["problems"]
    assert "8 train images instead of 12936" in count["items"] and "unpack" in count["advice"]


def test_planted_faults(market):
    train, test = market / "bounding_box_train", market / "bounding_box_test"
    whole = (train / "0002_c1s1_000000_00.jpg").read_bytes()
    (train / "0002_c1s1_000000_00.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "0002_c1s1_000001_00.jpg").write_bytes(b"")
    (test / "0003_c1s1_000001_00.jpg").write_text("no picture")
    picture(str(train / "strange.jpg"), 50)
    picture(str(train / "0003_c1s1_000000_00.jpg"), 51)  # a test identity
    shutil.copy(train / "0007_c1s1_000000_00.jpg", train / "0002_c3s1_000005_00.jpg")  # two identities
    shutil.copy(train / "0007_c1s1_000001_00.jpg", test / "0001_c3s1_000005_00.jpg")  # two sides
    shutil.copy(market / "query/0001_c1s1_000000_00.jpg", test / "0001_c3s1_000006_00.jpg")  # two cameras
    shutil.copy(market / "query/0003_c1s1_000000_00.jpg", test / "0003_c1s1_000006_00.jpg")  # harmless
    found = check.check("market1501", str(market), threads=3)
    by_kind = kinds(found)
    assert by_kind["name"]["items"] == ["bounding_box_train/strange.jpg"]
    assert by_kind["overlap"]["items"] == ["id 3"]
    broken = by_kind["unreadable"]["items"]
    assert [b.split(" ")[0] for b in broken] == [
        "bounding_box_train/0002_c1s1_000000_00.jpg",
        "bounding_box_train/0002_c1s1_000001_00.jpg",
        "bounding_box_test/0003_c1s1_000001_00.jpg",
    ]
    assert "runcated" in broken[0] and broken[1].endswith("(empty)") and broken[2].endswith("(no image)")
    doubled = {p["message"]: p["items"] for p in found["problems"] if p["kind"] == "duplicate"}
    assert doubled == {
        "1 groups of identical files with different identities": [
            "bounding_box_train/0002_c3s1_000005_00.jpg = bounding_box_train/0007_c1s1_000000_00.jpg"
        ],
        "1 groups of identical files in train and in test": [
            "bounding_box_train/0007_c1s1_000001_00.jpg = bounding_box_test/0001_c3s1_000005_00.jpg"
        ],
        "1 groups of identical files in query and gallery with different cameras": [
            "query/0001_c1s1_000000_00.jpg = bounding_box_test/0001_c3s1_000006_00.jpg"
        ],
    }
    assert len(found["notes"]) == 1 and "never match each other" in found["notes"][0]
    quick = kinds(check.check("market1501", str(market), quick=True))
    assert [b.split("/")[1] for b in quick["unreadable"]["items"]] == ["0002_c1s1_000001_00.jpg (empty)"]


def test_command(market, tmp_path, capsys, monkeypatch):
    counts = check.check("market1501", str(market))["counts"]
    layout = LAYOUTS["market1501"]
    monkeypatch.setitem(LAYOUTS, "market1501", check.dataclasses.replace(layout, counts=counts))
    args = ["check", "market1501", "--root", str(tmp_path), "--quiet", "--threads=2"]
    assert command.main(args) == 0
    shown = capsys.readouterr().out
    assert "no problem found" in shown and "train images" in shown
    for i in range(9):
        picture(str(market / "query" / f"odd{i}.jpg"), i)
    assert command.main([*args, "--show=2", f"--json={tmp_path / 'found.json'}"]) == 1
    shown = capsys.readouterr().out
    assert "9 entries do not follow" in shown and "odd1.jpg" in shown and "odd2.jpg" not in shown
    assert "and 7 more" in shown and "remove what does not belong" in shown
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["problems"][0]["items"]) == 9 and found["root"] == str(market)
    assert cli.exit_code(command.main, [*args, f"--json={tmp_path}"]) == 2
    assert cli.exit_code(command.main, ["check", "msmt17", "--root", str(tmp_path)]) == 2
    assert "Expected layout" in capsys.readouterr().err


def test_video(tmp_path):
    """Frames are read too; query tracklets that lie in the gallery again are fine."""
    seed = itertools.count()
    for split, pids in (("train", (1, 2)), ("query", (5, 6)), ("gallery", (5, 6))):
        for pid, cam in itertools.product(pids, (1, 2)):
            if split == "query" and cam == 2:
                continue
            for frame in range(3):
                folder = tmp_path / "d" / split / f"{pid:04d}" / f"{cam:04d}"
                picture(str(folder / f"{pid:04d}_C{cam}_F{frame:04d}_X{frame:05d}.jpg"), next(seed))
    for pid in (5, 6):
        shutil.rmtree(tmp_path / "d" / "gallery" / f"{pid:04d}" / "0001")
        shutil.copytree(*(tmp_path / "d" / s / f"{pid:04d}" / "0001" for s in ("query", "gallery")))
    found = check.check("duke_video", str(tmp_path / "d"))
    assert kinds(found) == {} and found["kind"] == "video"
    assert found["frames"] == {"train": 12, "query": 6, "gallery": 12} and found["files"] == 30
    assert found["notes"] == [f"6 groups of identical files {files.HARMLESS[0]}"]
    assert "train tracklets" in output.describe(found, 3) and "train frames" in output.describe(found, 3)
    frame = tmp_path / "d/train/0002/0001/0002_C1_F0001_X00001.jpg"
    frame.write_bytes(frame.read_bytes()[:300])
    broken = kinds(check.check("duke_video", str(tmp_path / "d")))["unreadable"]["items"]
    assert len(broken) == 1 and broken[0].startswith("train/0002/0001/0002_C1_F0001_X00001.jpg")


def test_turned_and_deep_pictures_are_counted(market):
    tag, query = Image.Exif(), market / "query"
    tag[0x0112] = 6
    Image.open(query / "0001_c1s1_000000_00.jpg").save(query / "0001_c1s1_000000_00.jpg", exif=tag)
    grey = np.arange(128, dtype=np.uint16).reshape(16, 8)
    for name, factor in (("0001_c3s1_000000_00.jpg", 30), ("0003_c1s1_000000_00.jpg", 500)):
        Image.fromarray(grey * factor).save(query / name, "PNG")
    turned, deep = check.check("market1501", str(market))["notes"]
    assert turned.startswith("1 pictures have an EXIF orientation") and "config.data.exif" in turned
    assert deep.startswith("2 pictures have grey values of more than 8 bits, from 0 to 63500; white is")
    assert "4095 in 1" in deep and "65535 in 1" in deep and "config.data.grey=BLACK,WHITE" in deep
    assert check.check("market1501", str(market), quick=True)["notes"] == [turned]


def test_names_that_are_not_utf8(market, tmp_path):
    """They are printed escaped, wherever the output goes."""
    name = "0003_c3s1_000009_\u884c\u4eba.jpg".encode("gbk")
    broken = bytes(market / "bounding_box_test") + b"/" + name
    with open(broken, "wb") as f:
        f.write(b"\xff\xd8 cut")
    args = ["check", "market1501", "--root", str(market), "--quiet", f"--json={tmp_path / 'found.json'}"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-m", "reid_jax.data", *args], env=env, capture_output=True)
    assert done.returncode == 1, done.stderr
    assert rb"bounding_box_test/0003_c3s1_000009_\udcd0\udcd0\udcc8\udccb.jpg (no image)" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    (items,) = [p["items"] for p in found["problems"] if p["kind"] == "unreadable"]
    assert items[0].encode(errors="surrogateescape") == b"bounding_box_test/" + name + b" (no image)"


def test_synthetic_has_no_published_counts(tmp_path):
    from reid_jax.data.synthetic import generate

    generate(str(tmp_path), train_ids=2, test_ids=1, cameras=2, images=2, height=32, width=16)
    found = check.check("synthetic", str(tmp_path))
    assert found["problems"] == [] and found["published"] == {}


def own(root, cameras=(1, 2), name="{:04d}_c{}_{}.jpg"):
    """People 1 to 3 train, 4 to 6 are tested, one query for each camera."""
    seed = itertools.count()
    for pid, cam, i in itertools.product(range(1, 7), cameras, range(2)):
        split = "train" if pid < 4 else "gallery" if i else "query"
        picture(str(root / split / name.format(pid, cam, i)), next(seed))
    return str(root)


def test_people_without_a_match(tmp_path, capsys):
    """One camera; nobody in query and gallery; some queries without a match are no fault."""
    args = ["check", "folder", "--root", own(tmp_path / "one", cameras=(1,)), "--quiet"]
    assert command.main(args) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM: none of the 3 queries has a match" in shown and "--protocol=all-pairs" in shown
    assert "is not started" in shown and "all training pictures come from one camera" in shown
    assert command.main([*args, "--protocol=all-pairs"]) == 0
    assert "no problem found" in capsys.readouterr().out
    root = own(tmp_path / "two")
    for path in (tmp_path / "two" / "gallery").iterdir():
        path.rename(path.with_name("9" + path.name))
    (match,) = check.check("folder", root)["problems"]
    assert (match["kind"], "nobody in query is in gallery" in match["message"]) == ("match", True)
    root = own(tmp_path / "three")
    picture(str(tmp_path / "three" / "query" / "0009_c1_0.jpg"), 99)
    found = check.check("folder", root)
    assert not found["problems"] and "1 of 7 queries have no match in the gallery" in found["notes"][0]


def test_unknown_people_and_no_test_set(tmp_path):
    """Notes: there are methods for such sets, and sets for such methods."""
    root = own(tmp_path / "x")
    for i in range(4):
        picture(str(tmp_path / "x" / "train" / f"box{i}.jpg"), 50 + i)
    found = check.check("folder", root)
    assert [p["kind"] for p in found["problems"]] == ["name"]  # a typing error, or somebody unknown
    assert "nobody is known on 4 of 16 training pictures" in found["notes"][0]
    assert (found["counts"]["train ids"], found["counts"]["train images"]) == (3, 16)
    shutil.rmtree(tmp_path / "x" / "query")
    shutil.rmtree(tmp_path / "x" / "gallery")
    for path in (tmp_path / "x" / "train").glob("0*"):
        path.unlink()
    found = check.check("folder", root)
    assert not found["problems"] and "nobody is known on 4 of 4" in found["notes"][0]
    assert any("there is nobody to test on" in note for note in found["notes"])
    root = own(tmp_path / "y")
    shutil.rmtree(tmp_path / "y" / "train")
    found = check.check("folder", root)
    assert not found["problems"] and any("there is nothing to train on" in note for note in found["notes"])
    with pytest.raises(DataError, match="no usable image for train"):
        shutil.rmtree(tmp_path / "y" / "query")
        shutil.rmtree(tmp_path / "y" / "gallery")
        check.check("folder", root)


def test_nothing_to_count(tmp_path):
    for name, match in (("market1501", "does not hold Market-1501"), ("synthetic", "holds no synthetic set")):
        with pytest.raises(DataError, match=match):
            check.check(name, str(tmp_path))


def test_list(capsys):
    assert command.main(["list"]) == 0
    shown = capsys.readouterr().out
    for name, layout in LAYOUTS.items():
        assert f"\n{name}: {layout.title} (" in "\n" + shown
        assert layout.terms or name == "folder"
    words = " ".join(shown.split())
    assert "authors have withdrawn the data set" in words and "12936 train images" in words
    assert "https://www.pkuvmc.com/dataset.html" in words and "signed release agreement" in words
    assert command.main(["list", "market1501"]) == 0
    shown = capsys.readouterr().out
    assert "bounding_box_train/" in shown and "500k" in shown and "msmt17" not in shown
    assert command.main(["list", "synthetic"]) == 0
    with pytest.raises(ConfigError):
        command.main(["list", "nothing"])
