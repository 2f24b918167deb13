"""Re-ranking against sets and loops in float64, the NumPy code of the benchmark and recorded values."""

import json
import pathlib

import numpy as np
import pytest

from reid_jax.benchmarks import rerank as benchmark
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import neighbours, reciprocal, rerank

CASES = pathlib.Path(__file__).parents[1] / "cases"


def naive(joint, form, k1, k2, lambda_value):
    """Rows of the published result for all images of a square distance matrix, entry by entry."""
    n = len(joint)
    x = joint**2 if form != "iics" else joint - joint.min(0)
    original = (x / x.max(0)).T
    lists = [sorted(range(n), key=lambda j, i=i: (original[i, j], j)) for i in range(n)]

    def reciprocal_set(i, depth):
        return {j for j in lists[i][: depth + 1] if i in lists[j][: depth + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        base = reciprocal_set(i, k1)
        expanded = set(base)
        for c in base:
            near = reciprocal_set(c, int(np.around(k1 / 2)))
            if len(near & base) > 2 / 3 * len(near):
                expanded |= near
        total = sum(np.exp(-original[i, j]) for j in expanded)
        for j in expanded:
            v[i, j] = np.exp(-original[i, j]) / total
    if k2 != 1:
        v = np.array([np.mean([v[j] for j in lists[i][:k2]], axis=0) for i in range(n)])
    s = np.minimum(v[:, None], v[None]).sum(2)
    return (1 - lambda_value) * np.maximum(0, 1 - s / (2 - s)) + lambda_value * original


def problem(seed, q, g, dim=3, copies=0, whole=False):
    """Features of query and gallery; `copies` gallery rows repeat others; whole: many distances tie."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (q + g, dim)) if whole else rng.standard_normal((q + g, dim))
    x = x + (0.0 if whole else 4.0)  # far from the origin: cosines differ little, as features' do
    x[q + g - copies :] = x[:copies]
    return x[:q].astype(float), x[q:].astype(float)


def euclidean(a, b):
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))


def matrices(q, g):
    return euclidean(q, g), euclidean(q, q), euclidean(g, g)


@pytest.mark.parametrize("form", ["original", "iics"])
@pytest.mark.parametrize(
    "k1, k2, lambda_value", [(20, 6, 0.3), (20, 6, 0), (7, 1, 0.3), (5, 9, 0.5), (1, 1, 0.3), (3, 2, 1)]
)
def test_distances_against_loops(form, k1, k2, lambda_value):
    settings = dict(form=form, k1=k1, k2=k2, lambda_value=lambda_value)
    for seed, kind in enumerate(({}, {"copies": 12}, {"whole": True})):
        q, g = problem(seed, 14, 46, **kind)
        joint = euclidean(np.concatenate([q, g]), np.concatenate([q, g]))
        want = naive(joint, **settings)
        got = rerank.from_distances(*matrices(q, g), **settings)
        np.testing.assert_allclose(got, want[:14, 14:], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(rerank.square(joint, **settings), want, rtol=1e-10, atol=1e-12)
        dense = benchmark.numpy_form(*matrices(q, g), **settings)
        np.testing.assert_allclose(dense, want[:14, 14:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["original", "iics"])
def test_asymmetric_and_negative_distances(form):
    """Entry (j, i) is what row i reads."""
    rng = np.random.default_rng(5)
    joint = np.abs(rng.standard_normal((40, 40))) if form == "original" else rng.standard_normal((40, 40))
    want = naive(joint, form, 8, 3, 0.3)
    np.testing.assert_allclose(rerank.square(joint, form=form, k1=8, k2=3), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 4)])
def test_fewer_images_than_k1(size):
    q, g = problem(3, *size)
    joint = euclidean(np.concatenate([q, g]), np.concatenate([q, g]))
    want = naive(joint, "original", 20, 6, 0.3)[: size[0], size[0] :]
    np.testing.assert_allclose(rerank.from_distances(*matrices(q, g)), want, rtol=1e-10)


def test_equal_images_are_at_distance_zero_of_each_other():
    """All distances zero: nothing to divide by."""
    zero = rerank.from_distances(np.zeros((3, 5)), np.zeros((3, 3)), np.zeros((5, 5)))
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("form", ["original", "iics"])
def test_features_against_loops(form, distance):
    q, g = problem(7, 25, 70, dim=12)
    if distance == "cosine":
        q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    joint = euclidean(np.concatenate([q, g]), np.concatenate([q, g]))
    if (form, distance) == ("iics", "cosine"):
        joint = joint**2 / 2
    settings = dict(form=form, k1=10, k2=4, lambda_value=0.3)
    want = naive(joint, **settings)[:25, 25:]
    for tile in (32, 2048):
        got = rerank.from_features(
            3 * q if distance == "cosine" else q, g, distance=distance, tile=tile, **settings
        )
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_sizes_of_blocks_change_nothing(monkeypatch):
    q, g = problem(8, 30, 80, dim=6)
    want = rerank.from_distances(*matrices(q, g))
    monkeypatch.setattr(rerank, "_BLOCK_BYTES", 8 * 80 * 7)
    monkeypatch.setattr(reciprocal, "_TERMS", 50)
    monkeypatch.setattr(reciprocal, "_TABLE", 300)
    monkeypatch.setattr(neighbours, "_MATRIX_BYTES", 8 * 110 * 9)
    np.testing.assert_array_equal(rerank.from_distances(*matrices(q, g)), want)
    blocks = list(rerank.blocks(q, g, progress=True))
    assert [start for start, _ in blocks] == list(range(0, 30, 14))  # float32: twice the rows
    monkeypatch.undo()
    np.testing.assert_allclose(np.concatenate([b for _, b in blocks]), rerank.from_features(q, g), atol=1e-6)


def test_an_image_in_no_list_is_far_from_all():
    """More copies than a list is long: the last of them is not even in its own list."""
    x = np.zeros((9, 2))
    x[6:] = [[5, 0], [0, 7], [6, 6]]
    joint = euclidean(x, x)
    got = rerank.square(joint, form="original", k1=2, k2=1, lambda_value=0)
    assert (got[5] == 1).all() and (got[:, 5] == 1).all() and got[0, 0] == 0


def test_recorded_iics_values():
    case = np.load(CASES / "adl__rerank.npz")
    for i, settings in enumerate(json.loads(str(case["meta"]))["config"]["settings"]):
        got = rerank.square(case["in/distance"].astype(np.float64), **settings)
        np.testing.assert_allclose(got, case[f"out/final{i}"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got, case[f"out/final{i}_half"], atol=6e-3)
        got = rerank.square(case["in/distance"], **settings)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, case[f"out/final{i}"], atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_recorded_original_values(kind):
    case = np.load(CASES / "eval__kreciprocal_rerank.npz")
    for k1, k2, weight in json.loads(str(case["meta"]))["config"]["settings"]:
        inputs = [case[f"in/{name}"].astype(kind) for name in ("q_g", "q_q", "g_g")]
        got = rerank.from_distances(*inputs, k1=k1, k2=k2, lambda_value=weight)
        np.testing.assert_allclose(got, case[f"out/k1_{k1}_k2_{k2}_lambda_{weight}"], atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_torchreids_form_is_the_original_on_its_own_distances(distance):
    q, g = problem(7, 25, 70, dim=12)
    if distance == "cosine":
        q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    given = [d**2 / (2 if distance == "cosine" else 1) for d in matrices(q, g)]
    got = rerank.from_features(2 * q if distance == "cosine" else q, g, distance=distance, form="torchreid")
    np.testing.assert_allclose(got, rerank.from_distances(*given, form="torchreid"), atol=3e-6)
    assert np.abs(got - rerank.from_features(q, g, distance=distance)).max() > 1e-2


def test_errors():
    q_g, q_q, g_g = matrices(*problem(9, 4, 6))
    with pytest.raises(ConfigError, match="'fast'"):
        rerank.from_distances(q_g, q_q, g_g, form="fast")
    with pytest.raises(ConfigError, match="'fastreid'"):
        rerank.square(q_q, form="fastreid")
    for setting in ({"k1": 0}, {"k2": 0}, {"k1": 2.5}, {"lambda_value": 1.5}, {"lambda_value": np.nan}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            rerank.from_distances(q_g, q_q, g_g, **setting)
    with pytest.raises(DataError, match="shapes"):
        rerank.from_distances(q_g.T, q_q, g_g)
    with pytest.raises(DataError, match="shapes"):
        rerank.square(q_g)
    with pytest.raises(DataError, match="shapes"):
        rerank.square(q_g[0])
    g_g[1, 2] = np.nan
    with pytest.raises(DataError, match="finite"):
        rerank.from_distances(q_g, q_q, g_g)
    q, g = problem(10, 4, 6)
    with pytest.raises(DataError, match="dimensions"):
        rerank.from_features(q, g[:, :2])
    g[2] = np.inf
    with pytest.raises(DataError, match="row 6"):
        rerank.from_features(q, g)
