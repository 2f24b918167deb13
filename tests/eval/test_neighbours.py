"""Neighbour search against a stable argsort of float64 distances, whatever the tiles."""

import numpy as np
import pytest

from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import neighbours


def squared(a, b):
    return ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(2)


def whole_numbers(seed, count, dim=5):
    """Features whose distances are exact in float32 and tie often; some rows are equal."""
    return np.random.default_rng(seed).integers(-2, 3, (count, dim))


def same_norm(seed, count):
    """Rows of one 3 and one 4, up to sign and place: length 5, exact cosines of which many tie."""
    rng = np.random.default_rng(seed)
    out = np.zeros((count, 6))
    place = rng.permuted(np.tile(np.arange(6), (count, 1)), axis=1)
    out[np.arange(count), place[:, 0]] = rng.choice([-3, 3], count)
    out[np.arange(count), place[:, 1]] = rng.choice([-4, 4], count)
    return out


def check(found, distance, k, **tolerance):
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.index, order)
    np.testing.assert_allclose(found.distance, np.take_along_axis(distance, order, 1), **tolerance)
    np.testing.assert_allclose(found.farthest, distance.max(1), **tolerance)
    assert found.index.dtype == np.int32


@pytest.mark.parametrize("tile", [1, 7, pytest.param(16, marks=pytest.mark.slow), 50, 2048])
@pytest.mark.parametrize("k", [1, pytest.param(9, marks=pytest.mark.slow), 60])
def test_euclidean_with_ties(tile, k):
    """k = 60 is wider than most tiles."""
    x = whole_numbers(0, 103)
    check(neighbours.search(x, k, distance="euclidean", tile=tile), squared(x, x), k, rtol=1e-6)


@pytest.mark.parametrize("tile", [8, 33, 2048])
def test_a_gallery_of_its_own(tile):
    x, y = whole_numbers(1, 40), whole_numbers(2, 95)
    found = neighbours.search(x, 12, gallery=y, distance="euclidean", tile=tile)
    check(found, squared(x, y), 12, rtol=1e-6)


@pytest.mark.parametrize("tile", [8, 2048])
def test_cosine_with_ties(tile):
    """The order among ties is open here: 3 / 5 is rounded."""
    x = same_norm(3, 70)
    distance = 2 - 2 * x @ x.T / 25
    scale = 2.0 ** np.random.default_rng(0).integers(-3, 4, (70, 1))
    found = neighbours.search(x * scale, 11, tile=tile)
    np.testing.assert_allclose(found.distance, np.sort(distance, 1)[:, :11], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(distance, found.index, 1), found.distance, atol=1e-6)


def test_floats_in_any_tiles():
    x = np.random.default_rng(4).standard_normal((300, 24)).astype(np.float32)
    unit = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    for tile in (40, 128, 2048):
        check(neighbours.search(x, 21, tile=tile), squared(unit, unit), 21, atol=1e-6)


def test_zero_rows_are_orthogonal_to_all():
    x = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = neighbours.search(x, 3)
    np.testing.assert_array_equal(found.index, [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    np.testing.assert_allclose(found.distance, [[2, 2, 2], [0, 2, 4], [0, 2, 4]])


def test_k_beyond_the_rows():
    x = whole_numbers(5, 6)
    check(neighbours.search(x, 20, distance="euclidean"), squared(x, x), 6, rtol=1e-6)


@pytest.mark.parametrize("distance", neighbours.DISTANCES)
def test_pairs_and_blocks(distance):
    x = np.random.default_rng(6).standard_normal((90, 10)).astype(np.float32)
    want = squared(x, x)
    if distance == "cosine":
        unit = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        want = squared(unit, unit)
    rows = neighbours.Features(x[:30], x[30:], distance=distance, tile=32)
    i, j = np.random.default_rng(7).integers(0, 90, (2, 700))
    np.testing.assert_allclose(rows.pairs(i, j), want[i, j], atol=1e-5)
    assert (rows.pairs(i, i) == 0).all()
    for start, stop, first in ((0, 90, 0), (5, 29, 30), (80, 90, 64), (0, 1, 89)):
        np.testing.assert_allclose(rows.block(start, stop, first), want[start:stop, first:], atol=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 13, 1000])
def test_rows_of_a_matrix(monkeypatch, kind, rows):
    """Whole numbers tie; float64 entries also differ by less than float32 can tell."""
    rng = np.random.default_rng(8)
    distance = rng.integers(-3, 4, (61, 61)).astype(kind)
    if kind == np.float64:
        distance += 1e-12 * rng.integers(-1, 2, distance.shape)
    distance[distance == 0] *= rng.choice([-1, 1], np.count_nonzero(distance == 0))  # both zeros
    monkeypatch.setattr(neighbours, "_MATRIX_BYTES", 8 * 61 * rows)
    found = neighbours.smallest(lambda a, b: distance[a:b], 61, 17)
    check(found, distance, 17, rtol=0)
    assert found.distance.dtype == kind


def test_errors():
    x = whole_numbers(9, 10).astype(np.float32)
    with pytest.raises(ConfigError, match="k is 0"):
        neighbours.search(x, 0)
    with pytest.raises(ConfigError, match="tile"):
        neighbours.search(x, 1, tile=0)
    with pytest.raises(ConfigError, match="manhattan"):
        neighbours.search(x, 1, distance="manhattan")
    with pytest.raises(DataError, match="shape"):
        neighbours.search(x[0], 1)
    with pytest.raises(DataError, match="shape"):
        neighbours.search(x[:0], 1)
    with pytest.raises(DataError, match="5 and 4 dimensions"):
        neighbours.search(x, 1, gallery=x[:, :4])
    x[7, 2] = np.nan
    with pytest.raises(DataError, match="row 7"):
        neighbours.search(x, 1)
    for bad in (np.nan, np.inf, -np.inf):
        distance = np.zeros((9, 9))
        distance[4, 4] = bad
        with pytest.raises(DataError, match="not all finite"):
            neighbours.smallest(lambda a, b, d=distance: d[a:b], 9, 2)
