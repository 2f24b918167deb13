"""Single-shot figures against all possible galleries, hand numbers and recorded values."""

import itertools
import pathlib

import numpy as np
import pytest

from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import protocols, ranking

CASES = pathlib.Path(__file__).parents[1] / "cases"


def recorded(rows):
    case = np.load(CASES / "direid__evaluation.npz")
    q = [case[f"in/query_{k}"] for k in ("f", "id", "cam")]
    g = [case[f"in/gallery_{k}"][rows] for k in ("f", "id", "cam")]
    return [x for pair in zip(q, g, strict=True) for x in pair], case


def figures(found):
    return [*found.cmc[[0, 4, 9, 19]], found.mAP]


def small_problem(seed=0):
    """Six queries, 14 images of 4 persons and 2 distractors, 3 cameras."""
    rng = np.random.default_rng(seed)
    q, g = rng.standard_normal((6, 5)), rng.standard_normal((16, 5))
    g_pid = rng.permutation([1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 0, 0])
    return q, g, np.array([1, 2, 3, 4, 1, 9]), g_pid, rng.integers(0, 3, 6), rng.integers(0, 3, 16)


def every_gallery(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, max_rank):
    """Expected (CMC, AP of every query) when queries draw from their kept entries: all draws alike."""
    cmc, ap = np.zeros(max_rank), np.full(len(q_feat), np.nan)
    for i in range(len(q_feat)):
        distance = [-(q_feat[i] @ g) / np.linalg.norm(q_feat[i]) / np.linalg.norm(g) for g in g_feat]
        kept = [j for j in range(len(g_feat)) if not (g_pid[j] == q_pid[i] and g_cam[j] == q_cam[i])]
        persons = [[j for j in kept if g_pid[j] == p] for p in np.unique(g_pid[kept]) if p > 0]
        lost = [j for j in kept if g_pid[j] == 0]
        ranks = []
        for drawn in itertools.product(*persons):
            order = sorted([*drawn, *lost], key=lambda j: (distance[j], j))
            ranks += [r for r, j in enumerate(order) if g_pid[j] == q_pid[i]]
        if ranks:
            ap[i] = np.mean(1 / (np.array(ranks) + 1))
            cmc += [np.mean(np.array(ranks) < r) for r in range(1, max_rank + 1)]
    return cmc / np.isfinite(ap).sum(), ap


@pytest.mark.parametrize("seed", range(2))
def test_all_galleries(seed):
    problem = small_problem(seed)
    cmc, ap = every_gallery(*problem, 7)
    got = protocols.single_shot(*problem, trials=6000, max_rank=7)
    np.testing.assert_allclose(got.cmc, cmc, atol=0.015)
    np.testing.assert_allclose(got.ap, ap, atol=0.02)
    np.testing.assert_allclose(got.mAP, np.nanmean(ap), atol=0.01)
    np.testing.assert_array_equal(got.valid, np.isfinite(ap))
    assert got.figures()["rank5"] == 100 * got.cmc[4] and "rank10" not in got.figures()


def test_recorded_one_image_each():
    """Nothing to draw, so both ways and one trial give the recorded figures."""
    arrays, case = recorded(slice(22, 44))
    for draw in protocols.DRAWS:
        got = protocols.single_shot(*arrays, trials=2, draw=draw)
        np.testing.assert_allclose(figures(got), case["out/single_shot_one_per_id"], rtol=1e-5)
        np.testing.assert_array_equal(got.cmc_std, 0)


def test_recorded_many_trials():
    arrays, case = recorded(slice(22, None))
    got = protocols.single_shot(*arrays, trials=2000)
    np.testing.assert_allclose(figures(got), case["out/single_shot_many_trials"], atol=0.02)


def test_one_gallery_for_all_queries():
    """Twelve copies of one query: a trial's gallery is the same for all, or drawn for each."""
    rng = np.random.default_rng(3)
    q, g = np.repeat(rng.standard_normal((1, 5)), 12, axis=0), rng.standard_normal((40, 5))
    labels = np.ones(12, int), np.arange(40) % 8 + 1, np.zeros(12, int), np.ones(40, int)
    shared = protocols.single_shot(q, g, *labels, trials=400, draw="trial", max_rank=8)
    each = protocols.single_shot(q, g, *labels, trials=400, max_rank=8)
    np.testing.assert_allclose(shared.cmc_std**2, shared.cmc * (1 - shared.cmc), atol=1e-9)  # all or none
    np.testing.assert_allclose(each.cmc_std**2, each.cmc * (1 - each.cmc) / 12, atol=0.006)
    assert (shared.ap == shared.ap[0]).all() and 0.05 < shared.cmc[2] < 0.95
    np.testing.assert_allclose(shared.cmc, each.cmc, atol=0.08)


def test_a_match_drawn_from_the_own_camera():
    """One of two images is of the query's camera: about half the trials have no query left."""
    q, g, labels = np.eye(2)[:1], np.eye(2)[[0, 0, 1]], ([1], [1, 1, 2], [0], [0, 1, 0])
    got = protocols.single_shot(q, g, *labels, trials=400, draw="trial")
    assert 150 < got.trials < 250 and got.cmc[0] == 1
    assert protocols.single_shot(q, g, *labels, trials=400).trials == 400
    everything = protocols.single_shot(q, g, *labels, trials=400, draw="trial", camera_filter=False)
    assert everything.trials == 400


def test_distractors_are_always_there():
    """Three nearer distractors put the match on rank 4, unless a query has pid 0 and they are one person."""
    g = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [0, 1]])
    got = protocols.single_shot(np.array([[1, 0]]), g, [5], [0, 0, 0, 5, 7], [0], [1] * 5, trials=20)
    np.testing.assert_array_equal(got.cmc[:5], [0, 0, 0, 1, 1])
    np.testing.assert_allclose(got.mAP, 0.25)
    q, labels = np.array([[1, 0], [1, 0]]), ([5, 0], [0, 0, 0, 5, 7], [0, 0], [1] * 5)
    np.testing.assert_allclose(protocols.single_shot(q, g, *labels, trials=20).ap, [0.5, 1])


@pytest.mark.parametrize("draw", protocols.DRAWS)
def test_seeds_and_blocks(draw):
    problem = small_problem(4)
    one, other = (protocols.single_shot(*problem, trials=30, draw=draw, block=b) for b in (2, 100))
    np.testing.assert_array_equal(one.cmc, other.cmc)
    np.testing.assert_array_equal(one.ap, other.ap)
    assert (protocols.single_shot(*problem, trials=30, draw=draw, seed=1).ap != one.ap).any()


def test_masked_entries_and_ties():
    """Equal features rank by gallery index: person 3 (row 2) has person 1 before it; row 0 is masked."""
    labels = [3], [9, 1, 3, 4, 2], [0], [1] * 5
    mask = np.array([False, True, True, True, True])
    got = protocols.single_shot(np.ones((1, 2)), np.ones((5, 2)), *labels, trials=3, g_mask=mask)
    np.testing.assert_array_equal(got.cmc[:3], [0, 1, 1])


def test_bad_input():
    problem = small_problem()
    with pytest.raises(ConfigError, match="trials=0"):
        protocols.single_shot(*problem, trials=0)
    with pytest.raises(ConfigError, match="draw"):
        protocols.single_shot(*problem, draw="always")
    with pytest.raises(ConfigError, match="eval.distance"):
        protocols.single_shot(*problem, distance="manhattan")
    with pytest.raises(DataError, match="6 query features but 1 query pids"):
        protocols.single_shot(*problem[:2], [1], *problem[3:])
    g_pid, g_cam = np.full(4000, 1), np.zeros(4000, int)
    g_cam[0] = 1
    with pytest.raises(DataError, match="no query has a match in any trial"):
        protocols.single_shot(
            np.ones((1, 2)), np.ones((4000, 2)), [1], g_pid, [0], g_cam, trials=1, draw="trial"
        )


def test_agrees_with_rank_on_one_image_each():
    """A gallery of one image per identity is also a Market gallery."""
    rng = np.random.default_rng(8)
    q, g = rng.standard_normal((30, 6)), rng.standard_normal((50, 6))
    labels = rng.integers(1, 50, 30), rng.permutation(50) + 1, np.zeros(30, int), np.ones(50, int)
    for distance in ranking.DISTANCES:
        want = ranking.rank(q, g, *labels, distance=distance)
        got = protocols.single_shot(q, g, *labels, distance=distance, trials=1, block=7)
        np.testing.assert_allclose(got.cmc, want.cmc, rtol=1e-12)
        np.testing.assert_allclose(got.ap, want.ap, rtol=1e-12)
