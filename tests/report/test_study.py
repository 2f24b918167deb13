"""The section on a study: what is said of it, how it is drawn; damaged files only leave parts out."""

import base64
import io
import json
import types

import numpy as np
import pytest
from PIL import Image
from report.arrays import study_arrays

from reid_jax.eval import store
from reid_jax.methods.direid import STUDY
from reid_jax.report import look, study
from reid_jax.train import pictures


def line(step, **values):
    return {"kind": "study", "stage": "gan", "step": step, "epoch": 1.0, **values}


@pytest.fixture
def run(tmp_path):
    folder, arrays = tmp_path / "eval" / "gan", study_arrays()
    folder.mkdir(parents=True)
    store.save_arrays(str(folder / "study.npz"), arrays)
    lines = [line(5, strength=0.1, psnr=20.0, psnr_nothing=21.0), line(9, strength=0.75, psnr=22.5)]
    words = {"study": json.loads(json.dumps(STUDY))}
    return types.SimpleNamespace(workdir=tmp_path, studies=lines, arrays=arrays, titles=words)


def test_first_and_last_figures(run):
    found = study.build(run)
    assert found["title"] == "What stage gan learned of degradation" and found["link"] == "Degradation"
    assert [(r["title"], r["first"], r["last"]) for r in found["rows"]] == [
        ("Transfer strength", "0.1", "0.75"),
        ("PSNR, dB", "20", "22.5"),
    ]
    assert [c["title"] for c in found["charts"]] == ["Transfer strength", "PSNR, dB"]
    (grid,) = found["grids"]
    assert grid["title"] == "Content of the row, degradation of the column" and grid["step"] == 9
    assert grid["src"].startswith("data:image/jpeg;base64,")
    assert [(p["title"], p["legend"]) for p in found["plots"]] == [
        ("Degradation score of D_deg at known levels", []),
        ("Scores of clean and degraded pictures", [(0, "clean"), (1, "degraded")]),
    ]
    kinds = ("brightness", "sharpness", "degradation score")
    assert [s["title"] for s in found["scatters"]] == [f"Degradation codes by {k}" for k in kinds]
    assert all("<svg" in p["svg"] for p in [*found["plots"], *found["scatters"]])


def decoded(uri):
    """u8[H,W,3] of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_grids_over_training(run):
    """The first and the middle one of those before the last step, whatever else lies in the folder."""
    folder, grid = run.workdir / "eval" / "gan", run.arrays["grid/cross"]
    for step in (9, 1, 3, 5, 7):
        pictures.save_study(str(folder), step, {**run.arrays, "grid/cross": np.full_like(grid, 20 * step)})
    store.save_arrays(str(folder / "study.npz"), run.arrays)
    for name in ("notes.txt", "cross_000002.txt", "cross_x.png"):
        (folder / "grids" / name).write_bytes(b"junk")
    (found,) = study.build(run)["grids"]
    assert found["step"] == 9 and [g["step"] for g in found["earlier"]] == [1, 5]
    for g in found["earlier"]:
        sheet = decoded(g["src"])
        assert sheet.shape == (3 * 96, 4 * 48, 3) and np.abs(sheet.astype(int) - 20 * g["step"]).max() < 4
    assert decoded(found["src"]).shape == (3 * 192, 4 * 96, 3)
    (folder / "grids" / "cross_000001.png").write_bytes(b"junk")
    Image.new("RGB", (9, 9)).save(folder / "grids" / "cross_000005.png")  # another size
    (found,) = study.build(run)["grids"]
    assert found["src"] and found["earlier"] == []


def test_sheets_keep_small_pixels_and_shrink_large_ones():
    grid = np.zeros((2, 3, 8, 4, 3), np.uint8)
    grid[0, 1], grid[1, 2, :4] = 200, 100
    image = study.side_by_side(grid)
    assert image.size == (12, 16)
    large = decoded(study.sheet(image, 2, 96))
    assert large.shape == (192, 144, 3)
    assert np.abs(large[::12, ::12].astype(int) - np.asarray(image)).max() < 4
    assert np.abs(large[11::12, 11::12].astype(int) - np.asarray(image)).max() < 4
    assert decoded(study.sheet(image, 2, 4)).shape == (8, 6, 3)


def test_maps_of_a_row_have_one_scale(run, monkeypatch):
    """Clean and degraded pictures under one scale of colours, each network's own."""
    monkeypatch.setattr(look, "uri", lambda frame: frame)
    shown = study.build(run)["maps"]
    people = shown["people"]
    assert shown["columns"] == ["clean", "degraded"]
    assert [[r["title"] for r in rows] for rows in people] == [
        ["picture", "content (E_con)", "teacher (E_id)"]
    ] * 2
    for i, rows in enumerate(people):
        np.testing.assert_array_equal(rows[0]["frames"], run.arrays["map/image"][i])
        for row, name in zip(rows[1:], ("content", "teacher"), strict=True):
            both = run.arrays[f"map/{name}"][i]
            for j in range(2):
                scaled = (both[j] - both.min()) / (both.max() - both.min())
                want = look.overlay(run.arrays["map/image"][i, j], scaled)
                assert np.abs(row["frames"][j].astype(int) - want).max() <= 1


def test_maps_without_a_teacher_and_constant_ones(run):
    arrays = {n: a for n, a in run.arrays.items() if n != "map/teacher"}
    arrays["map/content"] = np.ones_like(arrays["map/content"])
    store.save_arrays(str(run.workdir / "eval" / "gan" / "study.npz"), arrays)
    assert [len(rows) for rows in study.build(run)["maps"]["people"]] == [2, 2]
    without = {n: a for n, a in arrays.items() if not n.startswith("map/")}
    store.save_arrays(str(run.workdir / "eval" / "gan" / "study.npz"), without)
    found = study.build(run)
    assert found["maps"] is None and len(found["grids"]) == 1


def test_a_run_without_a_study(run):
    run.studies = []
    assert study.build(run) is None


def test_a_study_that_nothing_is_said_of(run):
    """Names stand for titles; damaged descriptions are as none."""
    for words in ({}, {"figures": 3, "arrays": [], "title": None, "levels": [1]}, {"arrays": {"map": 7}}):
        run.titles["study"] = words
        found = study.build(run)
        assert found["title"] == "What stage gan measured" and [r["title"] for r in found["rows"]] == [
            "strength",
            "psnr",
        ]
        assert [g["title"] for g in found["grids"]] == ["cross"] and found["maps"]["columns"] == []
        assert [s["title"] for s in found["scatters"]] == [
            f"code by {k}" for k in ("brightness", "sharpness", "score")
        ]


@pytest.mark.slow
def test_damaged_arrays_leave_the_pictures_out(run):
    path = run.workdir / "eval" / "gan" / "study.npz"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"junk"):
        path.write_bytes(damaged)
        found = study.build(run)
        assert len(found["rows"]) == 2 and not (found["grids"] or found["maps"] or found["plots"])
    shown = {"grids": 1, "plots": 2, "scatters": 3}
    for name, wrong, missing in (
        ("scatter/code/score", np.zeros(3), {"scatters": 2}),
        ("scatter/code/sharpness", np.full(30, np.nan), {"scatters": 2}),
        ("scatter/code/points", np.zeros((0, 4)), {"scatters": 0}),
        ("band/score/x", np.full(7, np.nan), {"plots": 1}),
        ("hist/score/clean", np.array(["a"]), {"plots": 2}),
        ("grid/cross", np.zeros((3, 4, 16, 8), np.uint8), {"grids": 0}),
        ("map/image", np.zeros((2, 16, 8, 3), np.uint8), {"maps": None}),
        ("map/content", np.zeros((3, 2, 4, 2)), {"rows": 2}),
        ("map/teacher", np.full((2, 2, 2, 1), np.inf), {"rows": 2}),
    ):
        store.save_arrays(str(path), {**run.arrays, name: wrong})
        found = study.build(run)
        want = shown | {k: n for k, n in missing.items() if k in shown}
        assert {k: len(found[k]) for k in shown} == want, name
        if "maps" in missing:
            assert found["maps"] is None
        else:
            assert [len(rows) for rows in found["maps"]["people"]] == [missing.get("rows", 3)] * 2, name


def test_centres_of_cells_are_used_where_they_fit():
    arrays = {"map/a": np.ones((1, 2, 3, 2), np.float32), "rows/a": np.float32([0, 8, 16])}
    assert study.centres(arrays, "a") == (None, None)
    arrays["columns/a"] = np.float32([0, 8])
    rows, columns = study.centres(arrays, "a")
    assert rows is arrays["rows/a"] and columns is arrays["columns/a"]
    for wrong in (np.float32([8, 0]), np.float32([0, np.nan]), np.float32([0]), np.array(["x", "y"])):
        assert study.centres(arrays | {"columns/a": wrong}, "a") == (None, None)
