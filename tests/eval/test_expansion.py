"""Average query expansion against loops in float64."""

import numpy as np
import pytest

from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import expansion


def naive(x, gallery, k, alpha):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    pool = x if gallery is None else gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    out = []
    for i, row in enumerate(x):
        near = sorted((-(row @ g), j) for j, g in enumerate(pool) if gallery is not None or j != i)[:k]
        mean = row + sum((max(-s, 0) ** alpha if alpha else 1) * pool[j] for s, j in near)
        out.append(mean / np.linalg.norm(mean))
    return np.array(out)


@pytest.mark.parametrize("alpha", [0, 1, 3.5])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_loops(alpha, k):
    rng = np.random.default_rng(k)
    x, g = rng.standard_normal((30, 8)) + 0.3, 3 * rng.standard_normal((60, 8))
    np.testing.assert_allclose(expansion.average(x, g, k=k, alpha=alpha), naive(x, g, k, alpha), atol=2e-6)
    for tile in (16, 2048):
        got = expansion.average(g, k=k, alpha=alpha, tile=tile)
        np.testing.assert_allclose(got, naive(g, None, k, alpha), atol=2e-6)


@pytest.mark.parametrize("k,alpha,times", [(1, 3, 1), (5, 3, 2), (200, 2.5, 1), (4, 0, 3)])
def test_joint_expansion_by_loops(k, alpha, times):
    rng = np.random.default_rng(k)
    q, g = 2 * rng.standard_normal((12, 6)) + 0.2, rng.standard_normal((30, 6))
    x = np.concatenate([q, g])
    for _ in range(times):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        near = [sorted((-(a @ b), j) for j, b in enumerate(unit))[: min(k, 42)] for a in unit]
        power = [[(-s if alpha % 1 == 0 else max(-s, 0)) ** alpha for s, _ in row] for row in near]
        terms = [[w * x[j] for w, (_, j) in zip(*ab, strict=True)] for ab in zip(power, near, strict=True)]
        x = np.mean(terms, axis=1)
    got = expansion.joint(q, g, k=k, alpha=alpha, times=times)
    np.testing.assert_allclose(np.concatenate(got), x, atol=3e-6)


def test_more_copies_than_neighbours():
    """An image that is not in its own list of neighbours still counts once."""
    x = np.ones((6, 3))
    x[5] = [1, 0, 0]
    np.testing.assert_allclose(expansion.average(x, k=2)[:5], np.full((5, 3), 3**-0.5), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expansion.average(x, k=2), axis=1), 1, atol=1e-6)


def test_opposite_features_leave_zero():
    got = expansion.average(np.array([[1.0, 0]]), np.array([[-1.0, 0]]), k=1)
    np.testing.assert_array_equal(got, [[0, 0]])


def test_errors():
    x = np.ones((4, 3))
    with pytest.raises(ConfigError, match="k is 0"):
        expansion.average(x, k=0)
    for alpha in (-1, np.nan, np.inf):
        with pytest.raises(ConfigError, match="alpha"):
            expansion.average(x, alpha=alpha)
    with pytest.raises(ConfigError, match="times is 0"):
        expansion.joint(x, x, times=0)
    with pytest.raises(DataError, match="dimensions"):
        expansion.average(x, x[:, :2])
    x[1] = np.nan
    with pytest.raises(DataError, match="row 1"):
        expansion.average(x)
