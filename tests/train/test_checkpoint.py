"""Checkpoints: exact, latest and best kept, another config refused, a damaged one passed over."""

import errno
import json
import os
import shutil
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from reid_jax import methods
from reid_jax.errors import CheckpointError
from reid_jax.train import checkpoint


class State(NamedTuple):
    step: np.ndarray
    nets: dict


def state(value):
    rng = np.random.default_rng(value)
    return State(
        np.int32(value), {"a": {"w": rng.standard_normal((3, 4), np.float32)}, "b": rng.integers(0, 9, 5)}
    )


LINES = 3  # of metrics.jsonl at each evaluation


def meta(step):
    return {"step": step, "layout": checkpoint.LAYOUT}


def evaluated(step):
    """What `restore` gives of a checkpoint whose evaluation is finished."""
    return meta(step) | {"lines": LINES * step}


def shapes(s):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), s)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture
def saved(tmp_path):
    """Four checkpoints, the second the best by mAP."""
    c = checkpoint.Checkpoints(tmp_path, "train")
    for step, value in ((1, 10.0), (2, 90.0), (3, 30.0), (4, None)):
        c.save(step, state(step), meta(step))
        if value is not None:
            c.add_figures(step, {"mAP": value}, LINES * step)
    c.close()
    again = checkpoint.Checkpoints(tmp_path, "train")  # as a new process finds them
    yield again
    again.close()


def test_latest_two_and_best_are_kept_exactly(saved):
    assert saved.steps() == [2, 3, 4]
    assert saved.best() == 2
    for step in (2, 3, 4):
        restored, kept = saved.restore(shapes(state(0)), step)
        assert kept == (evaluated(step) if saved.evaluated(step) else meta(step))
        assert same(restored, state(step))
    newest, _ = saved.restore(shapes(state(0)))
    assert int(newest.step) == 4


def test_figures_are_added_to_what_was_saved(tmp_path):
    """Until then it counts as not evaluated; the best is kept from then on, also by a new process."""
    c = checkpoint.Checkpoints(tmp_path, "train")
    for step in (1, 2):
        c.save(step, state(step), meta(step))
    c.wait()
    assert c.best() == 2 and not c.evaluated(1) and not c.evaluated(2)
    c.add_figures(1, {"mAP": 50.0, "rank1": 70.0}, 7)
    assert c.best() == 1 and c.evaluated(1) and c.restore(shapes(state(0)), 1)[1]["lines"] == 7
    c.add_figures(2, None, 9)  # of a run without a test set of its own
    assert c.best() == 1 and c.evaluated(2)
    for step in (3, 4):
        c.save(step, state(step), meta(step), wait=True)
    assert c.steps() == [1, 3, 4]
    c.close()
    c = checkpoint.Checkpoints(tmp_path, "train")
    c.save(5, state(5), meta(5), wait=True)
    assert (c.steps(), c.best()) == ([1, 4, 5], 1)
    c.close()


def test_figures_as_older_versions_wrote_them(saved):
    """With the state, and without the number of lines: the meta's then holds."""
    with open(os.path.join(saved.folder, "4", "metrics", "metrics"), "w") as f:
        json.dump({"mAP": 95.0}, f)
    assert saved.best() == 4 and saved.evaluated(4) and saved.restore(shapes(state(0)))[1] == meta(4)


def test_nothing_to_restore(tmp_path):
    c = checkpoint.Checkpoints(tmp_path, "train")
    assert c.restore(shapes(state(0))) == (None, None)
    c.close()


def test_damaged_newest_falls_back(saved):
    folder = os.path.join(saved.folder, "4", "state")
    for root, _, files in os.walk(folder):
        for f in files:
            with open(os.path.join(root, f), "wb") as out:
                out.write(b"damaged")
    restored, kept = saved.restore(shapes(state(0)))
    assert kept == evaluated(3) and same(restored, state(3))


def damages(path):
    """(name, bytes or None) of the ways in which a file gets damaged; None: it is gone."""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    return {"cut": whole[: len(whole) // 2], "garbage": b"damaged", "flipped": bytes(flipped), "gone": None}


def test_any_damage_to_any_file_is_noticed_or_harmless(tmp_path):
    """Every file of the newest checkpoint in turn, also the one of a large array, with one changed bit."""
    rng = np.random.default_rng(0)
    states = {s: {"w": rng.standard_normal((200, 300), np.float32), "n": np.int32(s)} for s in (1, 2)}
    c = checkpoint.Checkpoints(tmp_path / "run", "train")
    for step, tree in states.items():
        c.save(step, tree, {"step": step})
        c.add_figures(step, {"mAP": 10.0 * step}, 5)
    c.close()
    newest, fell_back = tmp_path / "run" / "checkpoints" / "train" / "2", set()
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    for file in files:
        for how, content in damages(newest / file).items():
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "run", copy)
            path = copy / newest.relative_to(tmp_path / "run") / file
            path.unlink() if content is None else path.write_bytes(content)
            c = checkpoint.Checkpoints(copy, "train")
            restored, meta = c.restore(shapes(states[1]))
            assert same(restored, states[meta["step"]]), (file, how)
            assert meta.get("lines", 5) == 5
            assert c.steps() == list(range(1, meta["step"] + 1))  # room to save that step again
            fell_back |= {how} if meta["step"] == 1 else set()
            c.close()
            shutil.rmtree(copy)
    assert fell_back == {"cut", "garbage", "flipped", "gone"}


def test_kill_in_a_removal(saved):
    """A checkpoint of which only a part is left is never the best."""
    shutil.rmtree(os.path.join(saved.folder, "2", "metrics"))
    again = checkpoint.Checkpoints(os.path.join(saved.folder, "..", ".."), "train")
    assert again.best() == 3
    assert same(again.restore(shapes(state(0)))[0], state(4))
    with pytest.raises(CheckpointError, match="checkpoint 3 in .* cannot be read"):
        shutil.rmtree(os.path.join(saved.folder, "3", "state"))
        again.read_arrays(3)
    with pytest.raises(CheckpointError, match="checkpoint 3 in .* cannot be read"):
        shutil.rmtree(os.path.join(saved.folder, "3", "meta"))
        again.read_meta(3)
    again.close()


def test_all_damaged_is_an_error(saved):
    for step in (2, 3, 4):
        shutil.rmtree(os.path.join(saved.folder, str(step), "state"))
    with pytest.raises(CheckpointError, match="can be read"):
        saved.restore(shapes(state(0)))


def test_another_model_is_refused(saved):
    """By the arrays that differ; what an earlier layout holds is told apart by its meta."""
    other = State(np.int32(0), {"a": {"w": np.zeros((9, 4), np.float32)}, "b": np.zeros(5, int)})
    with pytest.raises(CheckpointError, match=r"does not fit this model \(1 arrays differ\):\n  nets/a/w"):
        saved.restore(shapes(other))
    saved.save(5, state(5), {"step": 5}, wait=True)  # as layout 1 wrote it
    with pytest.raises(CheckpointError, match="was written by an earlier version of reid_jax"):
        saved.restore(shapes(other))
    assert same(saved.restore(shapes(state(0)))[0], state(5))  # where the arrays fit it is read


def config(**fields):
    tree = {
        "method": "baseline",
        "seed": 0,
        "data": {"root": "x", "ids": 4, "area": (0.1, 0.2)},
        "report": {"queries": 3},
    }
    for name, value in fields.items():
        section, field = name.split("__")
        tree[section][field] = value
    return json.loads(json.dumps(tree))


def test_workdir_of_another_config_is_refused_with_the_fields(tmp_path):
    checkpoint.claim_workdir(tmp_path / "run", config())
    checkpoint.claim_workdir(tmp_path / "run", config(data__root="elsewhere", report__queries=9))
    with pytest.raises(CheckpointError, match=r"data\.ids: 4 there, 8 now"):
        checkpoint.claim_workdir(tmp_path / "run", config(data__ids=8))


def test_damaged_config_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        checkpoint.claim_workdir(tmp_path, config())
    with pytest.raises(CheckpointError, match="holds no run"):
        checkpoint.check_config(tmp_path / "none", config())


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.claim_workdir(tmp_path / "file" / "run", config())


def test_full_disk_is_said_and_earlier_checkpoints_stay(saved, monkeypatch):
    """Before a save there is no room; in the middle of one the disk fills up."""
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        CheckpointError, match=r"no space left on the device.*Readable checkpoints: \[2, 3, 4\]"
    ):
        saved.save(5, state(5), {"step": 5})
    monkeypatch.undo()

    def fill(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saved.manager, "save", fill)
    with pytest.raises(CheckpointError, match="no space left"):
        saved.save(5, state(5), {"step": 5})
    assert same(saved.restore(shapes(state(0)))[0], state(4))


def test_fields_that_only_one_version_has():
    """A field newer than a run counts as its default, a method's too; one that is gone for nothing."""
    tree = methods.defaults("efl")
    older = json.loads(json.dumps(tree))
    del older["model"]["norm"], older["efl"]["alpha"]
    older["train"]["backend"] = "jit"
    assert checkpoint.differences(older, tree) == []
    default = tree["model"]["norm"]
    tree["model"]["norm"], tree["efl"]["alpha"] = "aibn", 0.5
    assert checkpoint.differences(older, tree) == [("efl.alpha", None, 0.5), ("model.norm", None, "aibn")]
    assert default != "aibn" and checkpoint.differences(tree, methods.defaults("efl")) == [
        ("efl.alpha", 0.5, methods.defaults("efl")["efl"]["alpha"]),
        ("model.norm", "aibn", default),
    ]
