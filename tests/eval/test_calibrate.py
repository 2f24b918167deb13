"""Thresholds: hand numbers, and a naive loop over queries and pairs."""

import numpy as np
import pytest

from reid_jax.errors import DataError
from reid_jax.eval import calibrate, store


def sides(seed=0, queries=60, gallery=300, people=12, cameras=3, noise=1.2):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((people, 8))
    pids = [rng.integers(0, people, n) for n in (queries, gallery)]
    pids[1][:5], pids[0][:1] = -1, -1
    features = [np.float32(centres[p] + noise * rng.standard_normal((len(p), 8))) for p in pids]
    return (*features, *pids, *(rng.integers(0, cameras, n) for n in (queries, gallery)))


def test_open_set_equals_a_loop():
    q, g, q_pid, g_pid, q_cam, g_cam = given = sides()
    points = calibrate.open_set(calibrate.search(*given), rates=(0.5, 0.2))
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    strangers, firsts = [], []
    for i in np.flatnonzero(q_pid != -1):
        score = g @ q[i]
        strangers.append(score[(g_pid != -1) & (g_pid != q_pid[i])].max())
        kept = (g_pid != -1) & ~((g_pid == q_pid[i]) & (g_cam == q_cam[i]))
        order = np.flatnonzero(kept)[np.argsort(-score[kept])]
        firsts.append((g_pid[order[0]] == q_pid[i], score[order[0]], (g_pid[order] == q_pid[i]).any()))
    assert [p[0] for p in points] == [0.5, 0.2]
    for rate, similarity, share in points:
        assert sum(s >= similarity for s in strangers) == int(rate * len(strangers))
        right = [r and s >= similarity for r, s, mated in firsts if mated]
        assert share == pytest.approx(np.mean(right))


def test_verification_equals_all_pairs():
    q, g, q_pid, g_pid, q_cam, g_cam = given = sides(1)
    points = calibrate.verification(calibrate.search(*given), rates=(0.1, 0.01))
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    score, known = q @ g.T, (q_pid[:, None] != -1) & (g_pid != -1)
    one = q_pid[:, None] == g_pid
    same, other = score[known & one & (q_cam[:, None] != g_cam)], score[known & ~one]
    for rate, similarity, share in points:
        assert np.mean(other >= similarity) <= rate + 1e-4
        assert np.mean(other >= similarity) >= rate - 2 / len(other) - 1e-3
        assert share == pytest.approx(np.mean(same >= similarity), abs=0.01)


def test_rates_with_few_events_are_left_out():
    found = calibrate.thresholds(*sides(2, queries=41, gallery=200))
    assert [p[0] for p in found["fpir"]] == [0.5]  # 20 events; 10 % are 4
    assert [p[0] for p in found["fmr"]] == [0.01]  # of about 7,000 pairs
    assert found["queries"] == 41


def test_hand_numbers():
    """Ten people alone on an axis each; every stranger scores 0, every match 1."""
    eye = np.eye(20, dtype=np.float32)
    pid = np.arange(20)
    found = calibrate.search(eye, eye, pid, pid, np.zeros(20), np.ones(20))
    assert found.right.all() and (found.first == 1).all() and (found.stranger == 0).all()
    ((rate, similarity, share),) = calibrate.open_set(found)
    assert rate == 0.5 and 0 < similarity < 1e-30 and share == 1


def test_without_anybody():
    eye, ones = np.eye(2, dtype=np.float32), np.ones(2, int)
    with pytest.raises(DataError, match="known people"):
        calibrate.search(eye, eye, -ones, ones, ones, ones)
    with pytest.raises(DataError, match="not finite"):
        calibrate.search(np.nan * eye, eye, ones, ones, ones, ones)
    empty = store.FeatureSet(eye, ones, ones, np.array(["a", "b"]), np.array(["images"] * 2))
    assert calibrate.of_features(empty) == {"fpir": [], "fmr": []}
