"""What a run keeps for pictures, and how the report shows it."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from runs import load, tiny, train

from reid_jax import report
from reid_jax.eval import store
from reid_jax.report import look, strips
from reid_jax.train import checkpoint, pictures


@pytest.mark.slow
def test_dsanet_run_shows_where_it_looks(tmp_path):
    """Heat maps and weights belong to the frames that are shown; camera features to the test images."""
    config = tiny("dsanet", report__enabled=True, train__eval_every=0, eval__swap=3)
    workdir = str(tmp_path / "run")
    dataset = load(config, tmp_path / "data")
    train(config, dataset, workdir)
    stored = look.read(tmp_path / "run" / "eval" / "look.npz")
    count, frames = len(stored["pid"]), config.data.frames
    assert 1 < count <= pictures.CLIPS and stored["image"].shape == (count, frames, 32, 16, 3)
    for name in ("map/F_ID", "map/F_t", "map/F_cam"):
        assert stored[name].shape == (count, frames, 8, 4)
        np.testing.assert_allclose(stored[name].max((1, 2, 3)), 1, atol=1e-6)  # one scale for a strip
        np.testing.assert_allclose(stored[name].min((1, 2, 3)), 0, atol=1e-6)
        np.testing.assert_array_equal(stored[name.replace("map", "rows")], 4 * np.arange(8))
        np.testing.assert_array_equal(stored[name.replace("map", "columns")], 4 * np.arange(4))
    np.testing.assert_allclose(stored["weight"].sum(1), 1, atol=1e-5)
    pids = {r.pid: r for r in dataset.query}
    assert all(int(p) in pids for p in stored["pid"])
    features = store.load(tmp_path / "run" / "eval" / "camera.npz")
    final = store.load(tmp_path / "run" / "eval" / "final.npz")
    np.testing.assert_array_equal(features.path, final.path)
    shown = strips.read_frames(tmp_path / "run" / "eval" / "frames.npz")
    assert set(shown) == set(final.path)
    for record in [*dataset.query, *dataset.gallery]:
        absolute = [os.path.join(dataset.root, p) for p in shown[os.path.relpath(record.path, dataset.root)]]
        assert len(absolute) == pictures.FRAMES and absolute == sorted(absolute)
        assert absolute[0] == record.path and set(absolute) <= set(record.frames)
    assert not np.allclose(features.feature, final.feature)
    checkpoint.write_json(str(tmp_path / "run" / "summary.json"), {"data_root": dataset.root})
    page = open(report.build(workdir, queries=1)).read()
    assert page.count('alt="camera map, frame') == count * frames
    drawn = json.loads((tmp_path / "run" / "eval" / "drawn.json").read_text())
    assert all(-1 <= drawn[f"pointing/{n}"] <= 1 for n in ("F_ID", "F_t", "F_cam"))
    assert 0 <= drawn["swap/mAP"] <= 100 and "swap/rank1_before" in drawn
    assert "Rank-1 on another background" in page and "Pointing of F_cam" in page
    assert "four frames of each" in page and "Where the network looks" in page and "camera network" in page


def test_what_sets_a_clip_apart():
    """The squared distance to the mean over clips and frames, cell by cell: what all clips have is none."""
    rng = np.random.default_rng(0)
    pattern = rng.uniform(5, 9, (8, 4, 6))
    clips = np.repeat(pattern[None, None], 3, 0).repeat(2, 1)  # [N,T,h,w,C]
    clips[1, :, 2, 3] += [0, 3, 0, 0, -6, 0]  # a third of the cells there: the mean moves by a third
    looked = [{"map/F": clip[None], "weight": np.ones((1, 2))} for clip in clips]
    means = pictures.mean_features(iter(looked), ["map/F", "map/absent"])
    maps = np.stack([pictures.deviations(out, means)["map/F"] for out in looked])
    assert maps.shape == (3, 2, 8, 4) and set(means) == {"map/F"}
    np.testing.assert_allclose(maps[1, :, 2, 3], 45 * (2 / 3) ** 2, rtol=1e-5)
    np.testing.assert_allclose(maps[0, :, 2, 3], 45 / 9, rtol=1e-5)
    maps[:, :, 2, 3] = 0
    np.testing.assert_allclose(maps, 0, atol=1e-10)
    assert pictures.deviations(looked[0], {})["map/F"].shape == (2, 8, 4, 6)


def test_overlay_is_half_frame_half_jet():
    frame = np.full((8, 4, 3), 100, np.uint8)
    heat = np.zeros((2, 1), np.float32)
    heat[0] = 1
    shown = look.overlay(frame, heat)
    np.testing.assert_array_equal(
        shown[0, 0], (0.5 * 100 + 0.5 * 255 * np.array([0.5, 0, 0])).astype(np.uint8)
    )
    np.testing.assert_array_equal(
        shown[-1, 0], (0.5 * 100 + 0.5 * 255 * np.array([0, 0, 0.5])).astype(np.uint8)
    )
    middle = np.asarray(Image.fromarray(heat).resize((4, 8), Image.Resampling.BILINEAR))
    assert 0 < middle[4, 0] < 1


def test_a_damaged_file_is_left_out(tmp_path):
    (tmp_path / "look.npz").write_bytes(b"no archive")
    assert look.build(tmp_path / "look.npz", {}) is None and look.build(tmp_path / "absent.npz", {}) is None
