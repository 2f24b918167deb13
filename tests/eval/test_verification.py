"""ROC, thresholds and distributions of pairs, against scikit-learn on all pairs written out."""

import jax
import numpy as np
import pytest
from sklearn import metrics

from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import ranking, scoring, verification


def people(queries=37, gallery=210, ids=9, spread=0.9, seed=0):
    """Arguments of `count`: people around directions of their own, with junk and distractors."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((ids + 1, 16))
    q_pid, g_pid = rng.integers(1, ids + 1, queries), rng.integers(-1, ids + 1, gallery)
    q_cam, g_cam = rng.integers(0, 3, queries), rng.integers(0, 3, gallery)
    features = [centre[p] + spread * rng.standard_normal((len(p), 16)) for p in (q_pid, g_pid)]
    return *(f.astype(np.float32) for f in features), q_pid, g_pid, q_cam, g_cam


def written_out(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, distance="cosine", camera_filter=True):
    """(bool[P] same person, f64[P] similarity) of all pairs that count, by a loop over them."""
    same, similarity = [], []
    for f, pid, cam in zip(q_feat.astype(float), q_pid, q_cam, strict=True):
        for g, other, camera in zip(g_feat.astype(float), g_pid, g_cam, strict=True):
            if other == -1 or pid == -1 or (camera_filter and other == pid and cam == camera):
                continue
            same.append(other == pid)
            cosine = f @ g / np.linalg.norm(f) / np.linalg.norm(g)
            similarity.append(cosine if distance == "cosine" else -np.linalg.norm(f - g))
    return np.array(same), np.array(similarity)


@pytest.mark.parametrize("camera_filter", [True, False])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_against_scikit_learn(distance, camera_filter):
    sides = people()
    rule = dict(distance=distance, camera_filter=camera_filter)
    pairs = verification.count(*sides, **rule, block=8)
    same, similarity = written_out(*sides, **rule)
    assert (pairs.same.sum(), pairs.other.sum()) == (same.sum(), (~same).sum())
    assert pairs.auc == pytest.approx(metrics.roc_auc_score(same, similarity), abs=1e-5)
    fpr, tpr, threshold = metrics.roc_curve(same, similarity, drop_intermediate=False)
    width = (pairs.high - pairs.low) / verification.BINS
    for rate in (0.5, 0.1, 0.02, 0.003):
        found, share = pairs.at(rate)
        at = np.searchsorted(fpr, rate, side="right") - 1
        assert abs(found - threshold[at]) < 2 * width + 1e-5  # the features are float32
        assert share == pytest.approx(tpr[at], abs=1 / same.sum() + 1e-9)
        assert (similarity[~same] >= found).mean() <= rate + 1 / (~same).sum()
    equal = np.argmin(abs(fpr - (1 - tpr)))
    assert pairs.eer == pytest.approx((fpr[equal] + 1 - tpr[equal]) / 2, abs=2 / same.sum())
    edges, ones, twos = pairs.shares(40)
    for shares, values in ((ones, similarity[same]), (twos, similarity[~same])):
        wanted = np.histogram(values, edges)[0] / len(values)
        np.testing.assert_allclose(shares, wanted, atol=1.5 / len(values))
        assert shares.sum() == pytest.approx(1)


def test_the_curve_is_the_roc_thinned_out():
    pairs = verification.count(*people(spread=1.5))
    fpr, tpr, threshold = pairs.roc()
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1) and np.isinf(threshold[0])
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all() and (np.diff(threshold) < 0).all()
    curve = pairs.curve(30)
    assert len(curve["fpr"]) <= 30 and curve["fpr"][-1] == curve["tpr"][-1] == 1
    every = set(zip(fpr, tpr, threshold, strict=True))
    assert every.issuperset(zip(*curve.values(), strict=True))
    assert metrics.auc(fpr, tpr) == pytest.approx(pairs.auc, abs=1e-9)


def test_pairs_that_all_are_as_similar():
    sides = people()
    pairs = verification.count(*(np.ones_like(f) for f in sides[:2]), *sides[2:])
    assert pairs.auc == 0.5 and pairs.eer == 0.5 and pairs.at(0.1) is None
    assert pairs.figures() == {"auc": 50.0, "eer": 50.0}
    zeros = verification.count(*(0 * f for f in sides[:2]), *sides[2:], distance="euclidean")
    assert zeros.auc == 0.5


def test_rates_that_too_few_pairs_can_tell():
    pairs = verification.count(*people())
    figures = pairs.figures((0.01, 1e-3, 1e-6))
    assert set(figures) == {"auc", "eer", "tpr@0.01", "threshold@0.01", "tpr@0.001", "threshold@0.001"}
    for wrong in (0, 1, -1, 2.0, "0.1", True, float("nan")):
        with pytest.raises(ConfigError, match="false_match_rates has"):
            verification.check_rates((0.1, wrong))


def test_given_distances_are_counted_alike(tmp_path):
    q, g, *labels = people()
    distance = np.linalg.norm(q[:, None] - g[None], axis=2)
    kept = np.memmap(tmp_path / "d", np.float32, "w+", shape=distance.shape)
    kept[:] = distance
    given = verification.count_distances(kept, *labels, block=16)
    own = verification.count(q, g, *labels, distance="euclidean")
    assert (given.same.sum(), given.other.sum()) == (own.same.sum(), own.other.sum())
    assert given.auc == pytest.approx(own.auc, abs=1e-5)
    assert given.at(0.01) == pytest.approx(own.at(0.01), abs=1e-3)


def test_one_person_alone():
    q, g, q_pid, g_pid, *cameras = people()
    with pytest.raises(DataError, match="no pairs of two persons"):
        verification.count(q, g, 0 * q_pid + 1, 0 * g_pid + 1, *cameras)


def test_memory_grows_with_the_pictures(monkeypatch):
    """No array of all pairs: the largest is a block of score rows, whatever the number of queries."""
    monkeypatch.setattr(ranking, "_SCORE_BYTES", 1 << 16)
    shapes, buffer = [], scoring.buffer
    monkeypatch.setattr(scoring, "buffer", lambda *a: shapes.append(buffer(*a).shape) or buffer(*a))
    traced = []
    count = verification._count
    monkeypatch.setattr(verification, "_count", lambda rows, *a: traced.append(rows.shape) or count(rows, *a))
    pairs = verification.count(*people(queries=400))
    assert pairs.other.sum() > 50_000
    assert {*shapes, *traced} == {(67, 256)}
    text = jax.jit(count.__wrapped__).lower(*_example(67, 256)).compile().memory_analysis()
    assert text is None or text.temp_size_in_bytes < 16 * 67 * 256 * 4 + 16 * verification.BINS


def _example(rows, columns):
    spec = jax.ShapeDtypeStruct
    return (
        spec((rows, columns), np.float32),
        None,
        spec((rows,), np.int32),
        spec((columns,), np.int32),
        -1.0,
        1.0,
    )
