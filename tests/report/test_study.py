"""The section on a degradation GAN: what it shows, and that damaged files only leave parts out."""

import types

import numpy as np
import pytest

from reid_jax.eval import store
from reid_jax.report import study


def line(step, **values):
    return {"kind": "study", "stage": "gan", "step": step, "epoch": 1.0, **values}


@pytest.fixture
def run(tmp_path):
    folder, rng = tmp_path / "eval" / "gan", np.random.default_rng(0)
    folder.mkdir(parents=True)
    arrays = {
        "level": np.linspace(1, 4, 7, dtype=np.float32),
        "level_score": rng.standard_normal((7, 5), np.float32),
        "clean_score": rng.standard_normal(6, np.float32),
        "poor_score": rng.standard_normal(6, np.float32),
        "code": rng.standard_normal((30, 4), np.float32),
        "code_score": rng.standard_normal(30, np.float32),
        "code_brightness": rng.uniform(0, 255, 30),
        "code_camid": np.zeros(30, np.int32),
        "grid/cross": rng.integers(0, 256, (3, 4, 16, 8, 3), np.uint8),
    }
    store.save_arrays(str(folder / "study.npz"), arrays)
    lines = [line(5, strength=0.1, psnr=20.0, psnr_nothing=21.0), line(9, strength=0.75, psnr=22.5)]
    return types.SimpleNamespace(workdir=tmp_path, studies=lines, arrays=arrays)


def test_first_and_last_figures(run):
    found = study.build(run)
    assert found["stage"] == "gan"
    assert [(r["title"], r["first"], r["last"]) for r in found["rows"]] == [
        ("Transfer strength", "0.1", "0.75"),
        ("PSNR, dB", "20", "22.5"),
    ]
    assert [c["title"] for c in found["charts"]] == ["Transfer strength", "PSNR, dB"]
    assert found["grid"].startswith("data:image/jpeg;base64,") and len(found["tsne"]) == 2
    assert "<svg" in found["levels"] and "<svg" in found["scores"]


def test_a_run_without_a_study(run):
    run.studies = []
    assert study.build(run) is None


def test_damaged_arrays_leave_the_pictures_out(run):
    path = run.workdir / "eval" / "gan" / "study.npz"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"junk"):
        path.write_bytes(damaged)
        found = study.build(run)
        assert found["grid"] is None and len(found["rows"]) == 2
    for name, wrong in (
        ("code_score", np.zeros(3)),
        ("level", np.full(7, np.nan)),
        ("code", np.zeros((0, 4))),
    ):
        store.save_arrays(str(path), {**run.arrays, name: wrong})
        assert study.build(run)["grid"] is None
