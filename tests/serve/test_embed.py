"""The command embed on files, lists and cameras, and pictures that cannot be read."""

import configparser
import importlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from reid_jax import __main__ as program
from reid_jax.commands import embed
from reid_jax.data import listed
from reid_jax.errors import ConfigError, DataError, WeightsError
from reid_jax.eval import store
from reid_jax.models import weights


def run(trained, out, *arguments):
    flags = ["--output", str(out), "--checkpoint", "latest"]
    assert embed.main([str(trained / "run"), *map(str, arguments), *flags]) == 0
    return store.load(out)


def test_files_lists_and_broken_ones(trained, files, tmp_path, capsys):
    for camera, path in zip(("door", "yard", "door"), files[:3], strict=True):
        os.makedirs(tmp_path / camera, exist_ok=True)
        shutil.copy(path, tmp_path / camera)
    names = [
        os.path.join(c, os.path.basename(f)) for c, f in zip(("door", "yard", "door"), files[:3], strict=True)
    ]
    (tmp_path / "list.txt").write_text("\n".join(["# three", *names, ""]))
    (tmp_path / "yard" / "cut.jpg").write_bytes(b"\xff\xd8")
    flags = ["--camera-from", "folder", "--on-broken=nan", "--unit"]
    found = run(trained, tmp_path / "f.npz", tmp_path / "list.txt", tmp_path / "yard" / "cut.jpg", *flags)
    assert found.path.tolist() == [*names, "yard/cut.jpg"] and found.camid.tolist() == [0, 1, 0, 1]
    assert np.isnan(found.feature[3]).all()
    np.testing.assert_allclose(np.linalg.norm(found.feature[:3], axis=1), 1, atol=1e-6)
    assert "cameras: 0 door, 1 yard" in capsys.readouterr().out


def test_one_own_folder_without_training_pictures(trained, tmp_path):
    shutil.copytree(trained / "pictures", tmp_path / "mine" / "query")
    shutil.copytree(trained / "pictures", tmp_path / "mine" / "gallery")
    found = run(trained, tmp_path / "f.npz", f"folder:{tmp_path / 'mine'}")
    assert set(found.split) == {"query", "gallery"}


def test_cameras_by_a_pattern(tmp_path):
    from reid_jax.data.records import Record

    records = tuple(Record(f"/x/{name}.jpg", -1, 0) for name in ("a_c3_1", "b_c12_1", "c_c3_2"))
    changed, cameras = listed.with_cameras(records, "/x", r"_c(\d+)_")
    assert [r.camid for r in changed] == [3, 12, 3] and cameras == {"12": 12, "3": 3}
    changed, cameras = listed.with_cameras(records, "/x", r"^(?P<camera>\w)")
    assert [r.camid for r in changed] == [0, 1, 2] and cameras == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(DataError, match="a_c3_1.jpg: --camera-from=z does not match"):
        listed.with_cameras(records, "/x", "z")
    with pytest.raises(ConfigError, match="no regular expression"):
        listed.with_cameras(records, "/x", "(")


def test_sources_that_do_not_go_together(trained, files, tmp_path):
    with pytest.raises(ConfigError, match="several SOURCEs must be pictures"):
        run(trained, tmp_path / "f.npz", files[0], trained / "pictures")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="names no picture"):
        run(trained, tmp_path / "f.npz", tmp_path / "empty.txt")


def test_help_lists_commands_and_fields(capsys):
    assert program.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*program.COMMANDS, "data.height", "optim.lr", "model.backbone"))


def test_console_script():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parent.parent.parent / "setup.cfg")
    name, place = config["options.entry_points"]["console_scripts"].split("=")
    module, function = place.strip().split(":")
    assert name.strip() == "reid_jax"
    assert getattr(importlib.import_module(module), function) is program.run


def test_weights_that_are_not_read(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(WeightsError, match="ONNX files are not read.*convert the .pth"):
        weights.read(str(tmp_path / "x.onnx"))
    like = {"params": {"base": {"conv1": {"kernel": np.zeros((3, 3, 3, 4), np.float32)}}}}
    other = {"features.0.0.weight": np.zeros((4, 3, 3, 3)), "features.1.conv.0.1.bias": np.zeros(4)}
    with pytest.raises(WeightsError, match="its network is not known here"):
        weights.fill(other, like)
