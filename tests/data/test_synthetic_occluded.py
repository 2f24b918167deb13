"""The synthetic set of half hidden queries: what hides them, the table, body points behind it."""

import csv

import numpy as np
import pytest
from PIL import Image

from reid_jax.data.datasets import read_synthetic
from reid_jax.data.synthetic import generate, occluded, truth

SMALL = dict(train_ids=1, test_ids=2, cameras=2, height=64, width=32, distractors=0, junk=0, progress=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {kind: generate(str(root / kind), kind=kind, **SMALL) for kind in ("image", "occluded")}


def pixels(folder, path):
    return np.asarray(Image.open(f"{folder}/{path}")).astype(int)


def test_every_query_is_hidden_by_a_board_and_nobody_else(folders):
    rows = {r["path"]: r for r in csv.DictReader(open(f"{folders['occluded']}/{occluded.TABLE}"))}
    dataset = read_synthetic(folders["occluded"])
    queries = {truth.relative(r.path, folders["occluded"]) for r in dataset.query}
    assert set(rows) == queries and len(queries) == 4
    for path, row in rows.items():
        assert 0.39 < float(row["visible"]) < 0.66
        left, top, right, bottom = (int(row[k]) for k in ("left", "top", "right", "bottom"))
        board = pixels(folders["occluded"], path)[top:bottom, left:right]
        assert board.mean(0).std(0).mean() < 40 and board.shape[0] * board.shape[1] > 0.3 * 64 * 32
        assert np.abs(board - pixels(folders["image"], path)[top:bottom, left:right]).mean() > 10


def test_points_behind_the_board_are_hidden(folders):
    rows = {r["path"]: r for r in csv.DictReader(open(f"{folders['occluded']}/{occluded.TABLE}"))}
    for path, found in truth.points(folders["occluded"]).items():
        x, y, confidence = found.T
        if path not in rows:
            assert (confidence[1:14] != truth.HIDDEN).all()  # nothing stands in front
            continue
        left, top, right, bottom = (int(rows[path][k]) for k in ("left", "top", "right", "bottom"))
        behind = (left <= x) & (x < right) & (top <= y) & (y < bottom)
        assert behind.any() and (confidence[behind] == truth.HIDDEN).all()
