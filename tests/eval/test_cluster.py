"""Jaccard distances and clusterings against NumPy code, recorded labels and dense scikit-learn."""

import json
import pathlib

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import DBSCAN, AgglomerativeClustering

from reid_jax.benchmarks import cluster as benchmark
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import cluster, reciprocal, rerank

CASES = pathlib.Path(__file__).parents[1] / "cases"


def people(seed, count=160, ids=12, dim=16):
    """Unit features around identity centres, f64."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ids, dim))[rng.integers(0, ids, count)] + 0.5 * rng.standard_normal((count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def partition(labels):
    """Labels by first appearance, outliers -1."""
    known = {}
    return [-1 if x == -1 else known.setdefault(x, len(known)) for x in labels.tolist()]


@pytest.mark.parametrize("k1, k2", [(30, 6), (20, 1), (5, 8), (2, 2), (1, 1)])
def test_distances_against_numpy(k1, k2):
    x = people(k1)
    found = cluster.jaccard(2 * x, k1=k1, k2=k2, tile=64)
    np.testing.assert_allclose(found.dense(), benchmark.numpy_form(x, k1=k1, k2=k2), atol=2e-6)


def test_fewer_images_than_k1():
    x = people(1, 7)
    np.testing.assert_allclose(cluster.jaccard(x).dense(), benchmark.numpy_form(x), atol=2e-6)
    assert cluster.jaccard(x[:1]).dense() == 0


def test_recorded_distances_and_labels():
    case = np.load(CASES / "eval__jaccard_dbscan.npz")
    config = json.loads(str(case["meta"]))["config"]
    for k1, k2 in config["settings"]:
        found = cluster.jaccard(case["in/features"], k1=k1, k2=k2)
        np.testing.assert_allclose(found.dense(), case[f"out/jaccard_k1_{k1}_k2_{k2}"], atol=2e-6)
        for eps in config["eps"]:
            labels = cluster.dbscan(found, eps, config["min_samples"])
            assert partition(labels) == partition(case[f"out/dbscan_k1_{k1}_k2_{k2}_eps_{eps}"])


def test_the_graph_is_what_scikit_learn_takes():
    """Symmetric, stored zeros on the diagonal; sparse and dense give the same labels."""
    found = cluster.jaccard(people(2), k1=12, k2=3)
    graph, dense = found.graph, found.dense()
    np.testing.assert_array_equal(dense, dense.T)
    stored = sparse.csr_matrix((np.ones(graph.nnz), graph.indices, graph.indptr), graph.shape)
    assert (stored.diagonal() == 1).all() and graph.nnz < dense.size
    several = set()
    for eps in (0.2, 0.45, 0.7, 0.95):
        for least in (1, 4, 9):
            model = DBSCAN(eps=eps, min_samples=least, metric="precomputed")
            want = model.fit(dense).labels_
            np.testing.assert_array_equal(model.fit(graph).labels_, want)
            np.testing.assert_array_equal(cluster.dbscan(found, eps, least), want)
            several.add(tuple(want))
    assert len(several) > 4


def test_copies_and_images_in_no_list():
    """Twelve copies of one image and lists of three: most copies are in nobody's list, so V is empty."""
    x = np.concatenate([np.tile(np.eye(1, 8), (12, 1)), people(3, 40, dim=8)])
    found = cluster.jaccard(x, k1=3, k2=1)
    dense = found.dense()
    lonely = np.flatnonzero(np.diag(dense) == 1)
    assert len(lonely) and set(lonely) <= set(range(12))
    np.testing.assert_allclose(dense, benchmark.numpy_form(x, k1=3, k2=1), atol=2e-6)
    for least in (1, 2):
        want = DBSCAN(eps=0.5, min_samples=least, metric="precomputed").fit(dense).labels_
        np.testing.assert_array_equal(cluster.dbscan(found, 0.5, least), want)
        assert (want[lonely] == -1).all()


def test_a_limit_drops_what_is_farther():
    x = people(4)
    whole, near = cluster.jaccard(x, k1=10), cluster.jaccard(x, k1=10, limit=0.6)
    dense = whole.dense()
    np.testing.assert_array_equal(near.dense(), np.where(dense <= 0.6, dense, 1))
    assert near.graph.nnz == np.count_nonzero(dense <= 0.6) < whole.graph.nnz
    np.testing.assert_array_equal(cluster.dbscan(near, 0.6), cluster.dbscan(whole, 0.6))
    with pytest.raises(ConfigError, match="limit"):
        cluster.dbscan(near, 0.61)


def test_pairs_exactly_at_eps_and_at_the_limit_belong():
    x = people(9, 60)
    whole = cluster.jaccard(x, k1=10)
    dense = whole.dense()
    different = 0
    for eps in np.unique(dense)[5:400:40].astype(float):
        near = cluster.jaccard(x, k1=10, limit=eps)
        assert near.graph.nnz == np.count_nonzero(dense <= eps)
        model = DBSCAN(eps=eps, min_samples=3, metric="precomputed")
        want = model.fit(dense).labels_
        for found in (whole, near):
            np.testing.assert_array_equal(cluster.dbscan(found, eps, 3), want)
        below = DBSCAN(eps=np.nextafter(np.float32(eps), np.float32(0)), min_samples=3, metric="precomputed")
        different += (below.fit(dense).labels_ != want).any()
    assert different


def test_sizes_of_blocks_change_nothing(monkeypatch):
    x = people(5)
    want = cluster.jaccard(x, k1=10).dense()
    monkeypatch.setattr(reciprocal, "_TERMS", 40)
    monkeypatch.setattr(reciprocal, "_TABLE", 400)
    np.testing.assert_array_equal(cluster.jaccard(x, k1=10, progress=True).dense(), want)


def test_average_linkage_reads_the_upper_triangle():
    """Of an asymmetric matrix; against scikit-learn."""
    distance = np.random.default_rng(6).random((50, 50))
    for settings in ({"n_clusters": 7}, {"n_clusters": None, "distance_threshold": 0.4}):
        model = AgglomerativeClustering(metric="precomputed", linkage="average", **settings)
        want = partition(model.fit(np.triu(distance) + np.triu(distance).T).labels_)
        ours = {"clusters": 7} if settings["n_clusters"] else {"threshold": 0.4}
        assert cluster.agglomerate(distance, **ours).tolist() == want
        assert cluster.agglomerate(np.triu(distance), **ours).tolist() == want


def test_average_linkage_of_sparse_distances():
    found = cluster.jaccard(people(7), k1=10)
    for settings in ({"clusters": 12}, {"threshold": 0.8}):
        want = cluster.agglomerate(found.dense(), **settings)
        np.testing.assert_array_equal(cluster.agglomerate(found, **settings), want)
        assert len(set(want)) > 3
    np.testing.assert_allclose(cluster.quantile(found, 0.05), cluster.quantile(found.dense(), 0.05))


def test_exact_numbers_of_clusters_with_ties():
    distance = np.ones((6, 6)) - np.eye(6)
    for clusters in range(1, 7):
        assert len(set(cluster.agglomerate(distance, clusters=clusters))) == clusters
    assert len(set(cluster.agglomerate(distance, threshold=1.0))) == 6  # a merge at the threshold is not made
    assert len(set(cluster.agglomerate(distance, threshold=np.nextafter(1, 2)))) == 1
    assert cluster.agglomerate(np.zeros((1, 1)), clusters=1).tolist() == [0]


def test_quantile_by_hand():
    distance = np.array([[9, 0, 5, 2], [9, 9, 4, 3], [9, 9, 9, 1], [9, 9, 9, 9.0]])  # 1 2 3 4 5 above
    assert [cluster.quantile(distance, q) for q in (0, 0.2, 0.5, 0.7, 1)] == [1, 2, 3, 5, 5]


def test_recorded_iics_clusters():
    case = np.load(CASES / "adl__cluster.npz")
    config = json.loads(str(case["meta"]))["config"]
    settings = {k: config[k] for k in ("k1", "k2", "lambda_value")}
    unit = case["in/feature"].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    stages = [("intra", str(c), 1 - unit[own] @ unit[own].T) for c in range(3)
              for own in [case["in/camera"] == c]]  # fmt: skip
    stages += [("inter", f"_{m}", case[f"out/inter_distance_{m}"].astype(float)) for m in config["mix"]]
    for stage, name, distance in stages:
        found = rerank.square(distance, **settings)
        np.testing.assert_allclose(found, case[f"out/{stage}_rank_distance{name}"], rtol=1e-5, atol=1e-7)
        labels = cluster.agglomerate(found, clusters=config[f"n_{stage}"])
        np.testing.assert_array_equal(labels, case[f"out/{stage}_fixed{name}"])
        threshold = cluster.quantile(found, config[f"quantile_{stage}"])
        labels = cluster.agglomerate(found, threshold=threshold)
        np.testing.assert_array_equal(labels, case[f"out/{stage}_threshold{name}"])


def test_errors(monkeypatch):
    x = people(8, 20)
    for setting in ({"k1": 0}, {"k2": 0}, {"limit": 0}, {"limit": 1.1}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            cluster.jaccard(x, **setting)
    found, distance = cluster.jaccard(x), np.zeros((5, 5))
    for eps in (0, 1, np.nan):
        with pytest.raises(ConfigError, match="eps"):
            cluster.dbscan(found, eps)
    with pytest.raises(ConfigError, match="min_samples"):
        cluster.dbscan(found, 0.5, 0)
    for settings in ({}, {"clusters": 2, "threshold": 0.5}, {"clusters": 0}, {"clusters": 6}):
        with pytest.raises(ConfigError, match="clusters"):
            cluster.agglomerate(distance, **settings)
    with pytest.raises(ConfigError, match="share"):
        cluster.quantile(distance, 2)
    with pytest.raises(DataError, match="all distances are 0"):
        cluster.quantile(distance, 0.5)
    with pytest.raises(DataError, match="shape"):
        cluster.agglomerate(distance[:3], clusters=1)
    with pytest.raises(DataError, match="finite"):
        cluster.agglomerate(distance + np.nan, clusters=1)
    monkeypatch.setattr(cluster, "MOST_TO_AGGLOMERATE", 4)
    with pytest.raises(DataError, match="DBSCAN"):
        cluster.agglomerate(distance, clusters=2)
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3"):
        cluster.jaccard(x)


def test_quality_of_labels():
    """Perfect, renamed, merged and absent labels; by camera, a label of another camera means nothing."""
    pid, camid = np.repeat([5, 6, 7], 4), np.tile([0, 1], 6)
    perfect = cluster.quality(np.repeat([2, 0, 9], 4), pid)
    assert perfect == {"clusters": 3, "labelled": 100.0, "ari": 100.0, "nmi": pytest.approx(100.0)}
    merged = cluster.quality(np.repeat([0, 0, 1], 4), pid)
    # pairs together in both 18 of 66, in the labels 34, in the identities 18: expected 34 * 18 / 66
    expected = 34 * 18 / 66
    assert merged["ari"] == pytest.approx(100 * (18 - expected) / ((34 + 18) / 2 - expected))
    half = cluster.quality(np.where(pid == 5, 0, -1), pid)
    assert (half["clusters"], half["labelled"]) == (1, pytest.approx(100 / 3))
    assert cluster.quality(np.full(12, -1), pid)["ari"] == 0
    mixed = np.where(camid == 0, np.repeat([0, 1, 2], 4), np.repeat([2, 0, 1], 4))
    assert cluster.quality(mixed, pid)["ari"] < 50
    by_camera = cluster.quality(mixed, pid, camid)
    assert (by_camera["clusters"], by_camera["ari"]) == (6, 100.0)


def test_labels_of_people_whom_nobody_knows():
    """They count as clusters and labelled, and rate nothing."""
    labels, pid = np.repeat([0, 1, 2], 4), np.repeat([5, 6, -1], 4)
    known = cluster.quality(labels, pid)
    assert known == {"clusters": 3, "labelled": 100.0, "ari": 100.0, "nmi": pytest.approx(100.0)}
    mixed = np.where(pid == -1, 0, labels)  # they are in a cluster with somebody known
    assert cluster.quality(mixed, pid)["ari"] == 100.0 and cluster.quality(mixed, pid)["clusters"] == 2
    assert cluster.quality(labels, np.full(12, -1)) == {"clusters": 3, "labelled": 100.0}
    assert cluster.quality(labels, pid, np.arange(12) % 2)["clusters"] == 6


def test_distances_to_a_source_join():
    """(1 - L) J + L (d_i + d_j), an image being away from itself too; DBSCAN counts it as that."""
    rng, people = np.random.default_rng(0), np.arange(20) // 5
    centres = rng.normal(size=(5, 6))
    features, source = centres[people] + 0.1 * rng.normal(size=(20, 6)), rng.normal(size=(7, 6))
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (features, source))
    d = np.min(1 - np.exp(-(2 - 2 * x @ y.T)), 1)
    d /= d.max()
    np.testing.assert_allclose(cluster.source_distance(features, source), d, atol=1e-5)
    plain = cluster.jaccard(features, k1=6, k2=2, form="torchreid")
    mixed = cluster.with_source(plain, d, 0.2)
    want = 0.8 * plain.dense() + 0.2 * (d[:, None] + d)
    np.fill_diagonal(want, 0.4 * d)
    stored = mixed.graph.toarray()
    np.testing.assert_allclose(stored[stored > 0], want[stored > 0], atol=1e-5)
    assert (want[(stored == 0) & (plain.dense() == 1)] > mixed.limit - 1e-6).all()
    eps = float(np.quantile(want[people[:, None] == people], 0.9))
    labels = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(want).labels_
    assert np.array_equal(cluster.dbscan(mixed, eps, 4), labels) and len(set(labels.tolist())) > 1


def test_a_share_of_the_smallest_distances():
    graph = cluster.jaccard(np.eye(6) + 0.3 * np.eye(6)[[1, 0, 3, 2, 5, 4]], k1=2, k2=1)
    dense = graph.dense()[np.triu_indices(6, 1)]
    found = np.sort(dense[dense > 1e-6])
    assert cluster.mean_of_smallest(graph, 1.0) == pytest.approx(found.mean(), rel=1e-6)
    assert cluster.mean_of_smallest(graph, 0.2) == pytest.approx(found[: round(0.2 * len(found))].mean())
    with pytest.raises(DataError, match="a share of 0.001"):
        cluster.mean_of_smallest(graph, 0.001)
