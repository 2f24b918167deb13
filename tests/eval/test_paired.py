"""Differences of two nets against a loop over replicates, on equal runs and on a planted effect."""

import numpy as np
import pytest

from reid_jax.errors import DataError
from reid_jax.eval import paired, ranking


def run(rng, people=60, each=4, lift=0.0, prefix=""):
    """Queries whose people differ in how hard they are."""
    pid = np.repeat(np.arange(people), each)
    ap = np.clip(np.repeat(rng.normal(0.5, 0.2, people), each) + rng.normal(lift, 0.05, len(pid)), 0, 1)
    kind = np.where(rng.random(len(pid)) < ap, 0, rng.integers(1, 3, len(pid)))
    return paired.Queries(np.array([f"{prefix}{i}" for i in range(len(pid))]), pid, ap, kind)


def naive(ours, theirs, replicates=400):
    """The interval of mAP and prop. by drawing people and seeds one after another."""
    rng, rows = np.random.default_rng(5), []
    of = [{p: np.flatnonzero(q.pid == p) for p in np.unique(q.pid)} for q in ours]
    for _ in range(replicates):
        gaps = []
        drawn = rng.choice(list(of[0]), len(of[0]))
        for s in rng.integers(len(ours), size=len(ours)):
            at = np.concatenate([of[s][p] for p in drawn])
            gap = 100 * (ours[s].ap[at].mean() - theirs[s].ap[at].mean())
            kinds = [q.kind[at] for q in (ours[s], theirs[s])]
            shares = [100 * (k == 1).sum() / (k > 0).sum() for k in kinds]
            gaps.append((gap, shares[0] - shares[1]))
        rows.append(np.mean(gaps, 0))
    return np.quantile(rows, (0.025, 0.975), axis=0).T


def test_interval_is_that_of_a_naive_bootstrap():
    rng = np.random.default_rng(0)
    theirs, ours = ([run(rng, lift=x) for _ in range(4)] for x in (0.0, 0.03))
    found = paired.differences(ours, theirs)
    want = naive(ours, theirs)
    for name, (low, high) in zip(("mAP", "prop"), want, strict=True):
        width = high - low
        assert abs(found[name].low - low) < 0.15 * width and abs(found[name].high - high) < 0.15 * width
    point = [100 * (a.ap.mean() - b.ap.mean()) for a, b in zip(ours, theirs, strict=True)]
    assert found["mAP"].mean == pytest.approx(np.mean(point))
    assert found["mAP"][3:] == (sum(p > 0 for p in point), 4, 60)


def test_equal_runs_and_a_planted_effect():
    rng = np.random.default_rng(1)
    theirs = [run(rng) for _ in range(3)]
    same = paired.differences(theirs, theirs)
    assert all(gap.holds_zero and gap.mean == 0 and gap.ahead == 0 for gap in same.values())
    lifted = [q._replace(ap=q.ap + rng.normal(0.02, 0.02, len(q.ap))) for q in theirs]
    gap = paired.differences(lifted, theirs)["mAP"]
    assert not gap.holds_zero and gap.low < 2 < gap.high and gap.ahead == 3
    assert str(gap).startswith("+2.1 [+1.") and "ahead in 3 of 3" in str(gap)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Nets that differ by nothing but noise of people, queries and seeds: few intervals leave zero out."""
    left_out = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        hard = np.repeat(rng.normal(0, 0.1, 30), 3)
        sides = []
        for _ in range(2):
            base = run(rng, 30, 3)
            own = [rng.normal(0, 0.02) + hard * rng.normal() + rng.normal(0, 0.05, 90) for _ in range(6)]
            sides.append([base._replace(ap=0.5 + x) for x in own])
        left_out += not paired.differences(*sides, replicates=400)["mAP"].holds_zero
    assert left_out <= 8


def test_seeds_of_other_data_have_people_of_their_own():
    """With a set for each seed the noise of people averages out over seeds; with one set it does not."""
    rng = np.random.default_rng(3)
    gap = np.repeat(rng.normal(0, 0.2, 30), 3)
    widths = []
    for prefixes in (("", "", "", ""), ("a", "b", "c", "d")):
        theirs = [run(rng, 30, 3, prefix=p) for p in prefixes]
        ours = [q._replace(ap=q.ap + gap) for q in theirs]
        found = paired.differences(ours, theirs)["mAP"]
        widths.append(found.high - found.low)
    assert widths[1] < 0.75 * widths[0]


def test_queries_of_a_ranking_and_back_from_disk(tmp_path):
    """Kinds of first hits are those of the breakdown; a query without a match counts nowhere."""
    rng = np.random.default_rng(2)
    pid, cam = np.arange(24) % 5, np.arange(24) % 3
    sides = (rng.normal(size=(10, 4)), rng.normal(size=(24, 4)), np.append(pid[:9], 77), pid)
    labels = (cam[:10], cam)
    retrieval = ranking.rank(*sides, *labels)
    queries = paired.Queries.of(retrieval, np.array(list("abcdefghij")), sides[2], *labels[:1], pid, cam)
    figures = retrieval.figures()
    nothing = queries._replace(ap=0 * queries.ap, kind=np.where(queries.kind < 0, -1, 0))
    gaps = paired.differences([queries], [nothing])
    assert gaps["mAP"].mean == pytest.approx(figures["mAP"])
    assert gaps["rank1"].mean == pytest.approx(figures["rank1"] - 100)
    for name in ("other_id_same_cam", "prop"):
        assert gaps[name].mean == pytest.approx(figures[name])
    np.savez(tmp_path / "q.npz", **paired.arrays({"m1": queries}))
    back = paired.read(tmp_path / "q.npz", "m1")
    assert all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(back, queries, strict=True)
    )
    assert (
        paired.read(tmp_path / "q.npz", "m2") is None and paired.read(tmp_path / "absent.npz", "m1") is None
    )
    with pytest.raises(DataError, match="other queries"):
        paired.differences([queries], [queries._replace(pid=queries.pid + 1)])


def test_queries_of_a_set_that_is_joined_with_others_are_the_same():
    """Its folder is one more than where it lies alone; other names, or people, are other queries."""
    path, pid = np.array([f"query/{i}.jpg" for i in range(6)]), np.arange(6) // 2
    alone = paired.Queries(path, pid, np.linspace(0, 1, 6), np.zeros(6, int))
    joined = alone._replace(path=np.array([f"Market-1501-v15.09.15/{p}" for p in path]), ap=alone.ap - 0.25)
    assert paired.differences([alone], [joined])["mAP"].mean == pytest.approx(25)
    for other in (joined._replace(path=joined.path[::-1]), joined._replace(pid=pid + 1)):
        with pytest.raises(DataError, match="other queries"):
            paired.differences([alone], [other])
