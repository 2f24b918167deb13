"""Exact search against a stable sort of all products in float64."""

import numpy as np
import pytest

from reid_jax.serve import search


def naive(queries, matrix, k, rows=None):
    """Rows of the k best of each query, ties to the lower row."""
    score = queries.astype(float) @ matrix.astype(float).T
    if rows is not None:
        score[:, ~rows] = -np.inf
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return [o[np.isfinite(score[i, o])] for i, o in enumerate(order)]


@pytest.mark.parametrize("share", [None, 0.03, 0.3, 0.9, 0.0])
@pytest.mark.parametrize("k", [1, 7, 5000])
def test_nearest_equals_a_sort(monkeypatch, share, k):
    monkeypatch.setattr(search, "TILE_BYTES", 4 * 16 * 300)  # of 300 rows
    monkeypatch.setattr(search, "QUERIES", 4)
    rng = np.random.default_rng(0)
    matrix, queries = (search.unit(rng.standard_normal((n, 16))) for n in (1000, 6))
    rows = None if share is None else rng.random(1000) < share
    found = search.nearest(queries, matrix, k, rows)
    for (row, score), want, q in zip(found, naive(queries, matrix, k, rows), queries, strict=True):
        np.testing.assert_array_equal(row, want)
        np.testing.assert_allclose(score, matrix[row] @ q, atol=1e-6)


def test_equal_scores_go_to_the_lower_row_in_any_batch(monkeypatch):
    """Copies of a few rows, more than k of them, in every tile: their scores are equal to the last bit."""
    monkeypatch.setattr(search, "TILE_BYTES", 4 * 64 * 256)
    rng = np.random.default_rng(1)
    few = search.unit(rng.standard_normal((5, 64)))
    which = rng.integers(0, 5, 900)
    queries = search.unit(rng.standard_normal((9, 64)))
    together = search.nearest(queries, few[which], 30)
    for query, (row, score) in zip(queries, together, strict=True):
        best = np.argmax(few @ query)
        np.testing.assert_array_equal(row, np.flatnonzero(which == best)[:30])
        assert len(set(score)) == 1
        ((alone, same),) = search.nearest(query[None], few[which], 30)
        np.testing.assert_array_equal(alone, row)
        np.testing.assert_array_equal(same, score)
        ((some, same),) = search.nearest(query[None], few[which], 30, np.arange(900) < 150)
        inside = row[row < 150]
        np.testing.assert_array_equal(some[: len(inside)], inside)
        assert set(same[: len(inside)]) == set(score)


def test_unit_leaves_zeros():
    np.testing.assert_array_equal(search.unit([[3, 4], [0, 0]]), np.float32([[0.6, 0.8], [0, 0]]))
