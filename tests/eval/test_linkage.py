"""Average linkage of sparse distances against the dense one."""

import numpy as np
import pytest

from reid_jax.errors import ConfigError
from reid_jax.eval import cluster, linkage


def sparse_problem(seed, count=120, share=0.15):
    """Pairs of a random symmetric matrix that is 1 at most places: (i, j, distance, matrix)."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 14, count)
    upper = np.triu(rng.random((count, count)) * np.where(group[:, None] == group, 0.7, 1), 1)
    i, j = np.nonzero(np.triu((rng.random((count, count)) < share) | (group[:, None] == group), 1))
    matrix = np.ones((count, count))
    matrix[i, j] = upper[i, j]
    swapped = rng.random(len(i)) < 0.5  # either order of a pair will do
    i, j = np.where(swapped, j, i), np.where(swapped, i, j)
    return i, j, matrix[np.minimum(i, j), np.maximum(i, j)], matrix


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings", [dict(clusters=14), dict(clusters=60), dict(threshold=0.5), dict(threshold=0.8)]
)
def test_the_same_as_dense(seed, settings):
    i, j, distance, matrix = sparse_problem(seed)
    found = linkage.average(i, j, distance, len(matrix), **settings)
    np.testing.assert_array_equal(found, cluster.agglomerate(matrix, **settings))
    assert 2 < len(set(found)) < len(matrix)


def test_groups_without_a_pair_stay_apart():
    found = linkage.average([0, 3], [1, 2], [0.2, 0.4], 5, clusters=1)
    assert found.tolist() == [0, 0, 1, 1, 2]
    assert linkage.average([0], [1], [0.5], 2, threshold=0.5).tolist() == [0, 1]
    assert linkage.average([], [], [], 3, clusters=1).tolist() == [0, 1, 2]
    assert linkage.average([0, 1], [1, 2], [0.2, 0.2], 3, clusters=3).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="either"):
        linkage.average([], [], [], 3)


def test_equal_distances_end():
    """A ring of equal distances: every choice of pairs is right, and there is an end."""
    i = np.arange(40)
    found = linkage.average(i, (i + 1) % 40, np.full(40, 0.25), 40, clusters=10)
    assert len(set(found)) == 10
