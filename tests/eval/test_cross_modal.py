"""Visible against infrared: persons are counted as plain loops count them, galleries are drawn per camera."""

import numpy as np
import pytest

from reid_jax.errors import DataError
from reid_jax.eval import cross_modal


def problem(seed, queries=12, gallery=25):
    """Features, pids and cameras: infrared 3 and 6, visible 1, 2, 4, 5; person 6 is in no gallery."""
    rng = np.random.default_rng(seed)
    features = [rng.standard_normal((n, 5)).astype(np.float32) for n in (queries, gallery)]
    pids = rng.integers(1, 7, queries), rng.integers(1, 6, gallery)
    return *features, *pids, rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], gallery)


def by_loops(q, g, q_pid, g_pid, q_cam, g_cam, max_rank):
    """(CMC by persons, mean AP)"""
    places, ap = [], []
    for i in range(len(q)):
        score = g @ q[i] / np.linalg.norm(g, axis=1)
        order = [j for j in np.argsort(-score) if not (q_cam[i] == 3 and g_cam[j] == 2)]
        listed = [g_pid[j] for j in order]
        if q_pid[i] in listed:
            places.append(list(dict.fromkeys(listed)).index(q_pid[i]))
            hits = np.flatnonzero(np.array(listed) == q_pid[i])
            ap.append(np.mean((np.arange(len(hits)) + 1) / (hits + 1)))
    return [np.mean(np.array(places) < k) for k in range(1, max_rank + 1)], np.mean(ap)


@pytest.mark.parametrize("seed", range(3))
def test_persons_are_counted_and_the_camera_at_the_same_place_is_left_out(seed):
    arrays = problem(seed)
    cmc, ap = by_loops(*arrays, 6)
    found = cross_modal.rank(*arrays, max_rank=6)
    np.testing.assert_allclose(found.cmc, cmc)
    assert found.mAP == pytest.approx(ap) and found.valid.sum() == np.isin(arrays[2], arrays[3]).sum()
    assert not np.isclose(cross_modal.rank(*arrays, same_place=()).mAP, ap)
    with pytest.raises(DataError, match="no query has a match"):
        cross_modal.rank(*arrays[:2], arrays[2] + 9, *arrays[3:])


def test_trials_are_means_over_drawn_galleries():
    """One image of each identity and camera that there is, in their order; another trial, other images."""
    q, g, q_pid, g_pid, q_cam, g_cam = problem(4, gallery=80)
    path = np.array(
        [f"cam{c}/{p:04d}/{i:04d}.jpg" for i, (p, c) in enumerate(zip(g_pid, g_cam, strict=True))]
    )
    for protocol, cameras in cross_modal.CAMERAS.items():
        drawn = [cross_modal.draw(g_pid, g_cam, path, cameras, t) for t in range(3)]
        there = sorted({(p, c) for p, c in zip(g_pid, g_cam, strict=True) if c in cameras})
        assert all(list(zip(g_pid[d], g_cam[d], strict=True)) == there for d in drawn)
        assert len({tuple(d) for d in drawn}) == 3
        alone = [cross_modal.rank(q, g[d], q_pid, g_pid[d], q_cam, g_cam[d]) for d in drawn]
        found = cross_modal.trials(q, g, q_pid, g_pid, q_cam, g_cam, path, protocol=protocol, count=3)
        np.testing.assert_allclose(found.cmc, np.mean([a.cmc for a in alone], 0))
        assert found.figures()["mAP"] == pytest.approx(100 * np.mean([a.mAP for a in alone]))
