"""Samplers: invariants on even, uneven and extreme sets, against the rules they are to follow."""

import pickle
import time
from collections import Counter

import numpy as np
import pytest

from reid_jax.data.samplers.domains import Cameras, Domains
from reid_jax.data.samplers.groups import EveryCamera, Gallery, Uniform
from reid_jax.data.samplers.identities import PK, Pairs, longest
from reid_jax.data.samplers.images import Shuffled
from reid_jax.errors import ConfigError, DataError


def batches_of(sampler, pids, e=0):
    """Rows [M,P,K] and their pids [M,P]; checks that every group shows one identity."""
    rows = sampler.epoch(e)
    assert rows.dtype == np.int32
    assert rows.shape == (sampler.batches_per_epoch, sampler.ids * sampler.instances)
    rows = rows.reshape(-1, sampler.ids, sampler.instances)
    of = np.asarray(pids)[rows]
    assert (of == of[..., :1]).all()
    return rows, of[..., 0]


def random_pids(rng):
    counts = rng.integers(1, rng.integers(2, 40), rng.integers(3, 30))
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def naive_longest(groups, p):
    best = 0
    for m in range(1, int(sum(groups)) + 1):
        if sum(min(g, m) for g in groups) >= p * m:
            best = m
    return best


@pytest.mark.parametrize("case", range(40))
def test_distinct_batches(case):
    rng = np.random.default_rng(case)
    pids, k = random_pids(rng), int(rng.integers(1, 6))
    p = int(rng.integers(1, len(set(pids)) + 1))
    sampler = PK(pids, p, k, seed=case)
    groups = [max(n // k, 1) for n in Counter(pids.tolist()).values()]
    assert sampler.batches_per_epoch == naive_longest(groups, p) == longest(np.array(groups), p)
    for e in range(3):
        rows, of = batches_of(sampler, pids, e)
        assert all(len(set(b)) == p for b in of.tolist())
        taken = Counter(of.ravel().tolist())
        for pid, n in Counter(pids.tolist()).items():
            assert taken[pid] <= min(max(n // k, 1), sampler.batches_per_epoch)
            own = rows[of == pid].ravel()
            if n >= k:
                assert len(set(own.tolist())) == len(own)  # no image twice in an epoch


def test_all_groups_are_used_when_they_fit():
    pids = np.repeat(np.arange(8), 12)
    rows, _ = batches_of(PK(pids, 4, 3, seed=1), pids)
    assert sorted(rows.ravel()) == list(range(96))


def test_an_identity_in_every_batch():
    pids = [0] * 40 + [1] * 2 + [2] * 2 + [3] * 2  # id 0 could fill 20 batches, its partners one each
    sampler = PK(pids, 2, 2, seed=0)
    assert sampler.batches_per_epoch == 3
    for e in range(5):
        _, of = batches_of(sampler, pids, e)
        assert all(0 in b for b in of.tolist()) and sorted(of.ravel()) == [0, 0, 0, 1, 2, 3]


def test_few_images_are_repeated_and_remainders_dropped():
    pids = [0] * 1 + [1] * 3 + [2] * 9
    sampler = PK(pids, 3, 4)
    seen = set()
    for e in range(30):
        rows, of = batches_of(sampler, pids, e)
        assert sampler.batches_per_epoch == 1 and set(of[0]) == {0, 1, 2}
        assert set(rows[of == 0].ravel()) == {0} and set(rows[of == 1].ravel()) <= {1, 2, 3}
        assert len(set(rows[of == 2].ravel())) == 4
        seen |= set(rows.ravel().tolist())
    assert seen == set(range(13))


def test_not_distinct():
    pids = np.repeat([5, 6, 7], [40, 4, 4])
    sampler = PK(pids, 4, 4, seed=2, distinct=False)
    assert sampler.batches_per_epoch == 3
    rows, of = batches_of(sampler, pids)
    assert sorted(rows.ravel()) == list(range(48)) and Counter(of.ravel().tolist()) == {5: 10, 6: 1, 7: 1}


def test_pure_function_of_seed_and_epoch():
    pids = np.repeat(np.arange(10), 7)
    a, b = PK(pids, 4, 2, seed=3), PK(pids, 4, 2, seed=3)
    backwards = [b.epoch(e) for e in (5, 4, 3, 2, 1, 0)][::-1]
    for e in range(6):
        np.testing.assert_array_equal(a.epoch(e), backwards[e])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(a)).epoch(2), backwards[2])
    assert not np.array_equal(a.epoch(0), a.epoch(1))
    assert not np.array_equal(a.epoch(0), PK(pids, 4, 2, seed=4).epoch(0))
    assert PK(pids, 4, 2, seed=-1).epoch(0) is not None


def test_the_draws_stay_as_they_are():
    """Drawn by an earlier version: a finished run can be repeated."""
    pids = np.repeat(np.arange(4), (5, 1, 4, 6))
    assert PK(pids, 3, 2, seed=3).epoch(1).tolist() == [[10, 15, 8, 9, 3, 0], [13, 14, 6, 7, 5, 5]]
    free = PK(pids, 3, 2, seed=3, distinct=False).epoch(1).tolist()
    assert free == [[6, 7, 12, 11, 13, 14], [8, 9, 3, 0, 5, 5]]
    cameras = Cameras(np.arange(16) % 3, 2, seed=3).epoch(1).tolist()
    assert cameras == [[6, 13, 11, 0, 7, 5], [3, 4, 2, 15, 1, 8]]


def test_dropped_groups_change_between_epochs():
    pids = np.repeat(np.arange(7), 4)  # 7 groups, 2 batches of 3: one identity sits out
    sampler = PK(pids, 3, 4)
    out = {(set(range(7)) - set(batches_of(sampler, pids, e)[1].ravel().tolist())).pop() for e in range(60)}
    assert out == set(range(7))


def test_errors():
    with pytest.raises(DataError, match="data.ids"):
        PK([0, 0, 1, 1], 3, 2)
    with pytest.raises(DataError, match="data.ids"):
        PK([0, 0, 1, 1], 3, 2, distinct=False)
    with pytest.raises(ConfigError, match="at least 1"):
        PK([0, 1], 0, 2)


def test_msmt17_size_is_fast():
    pids = np.random.default_rng(0).integers(0, 1041, 32621)
    sampler = PK(pids, 16, 16)
    begin = time.process_time()
    sampler.epoch(0)
    assert time.process_time() - begin < 0.5


def test_camera_batches():
    """Image j of camera c at row j * C + c; no image twice; the smallest camera ends the epoch."""
    camids = np.repeat([0, 1, 2], [10, 25, 9])
    sampler = Cameras(camids, 4, seed=3)
    assert (sampler.ids, sampler.batches_per_epoch) == (3, 2)
    batches = sampler.epoch(0)
    assert batches.shape == (2, 12) and batches.dtype == np.int32
    assert np.array_equal(camids[batches], np.tile([0, 1, 2], (2, 4)))
    assert len(np.unique(batches)) == 24
    assert not np.array_equal(batches, sampler.epoch(1))
    assert np.array_equal(batches, Cameras(camids, 4, seed=3).epoch(0))


def test_small_and_unlabelled_cameras():
    camids = np.repeat([0, 1], [2, 12])
    sampler = Cameras(camids, 4)
    assert sampler.batches_per_epoch == 1  # camera 0 is drawn with replacement
    assert set(sampler.epoch(0)[0, ::2].tolist()) <= {0, 1}
    labels = np.where(np.arange(14) < 8, 0, -1)
    assert Cameras(camids, 4, labels=labels).epoch(0).max() < 8
    with pytest.raises(DataError, match="camera 1 has a label"):
        Cameras(camids, 4, labels=np.where(camids, -1, 0))


def test_unlabelled_images_stay_out():
    labels = np.tile([0, 1, -1, 2], 6)
    batches = PK(labels, 3, 2).epoch(0)
    assert batches.shape == (3, 6)
    assert set(labels[batches].ravel().tolist()) == {0, 1, 2}


# ---- whatever the sampler ---------------------------------------------------------------------------------
def everything():
    """A sampler of each sort over 60 images of 9 groups by 4 cameras, in 3 domains."""
    rng = np.random.default_rng(0)
    groups, camids = np.repeat(np.arange(9), (1, 2, 9, 8, 12, 7, 5, 10, 6)), rng.integers(0, 4, 60)
    domains = groups // 3
    apart = [PK(np.where(domains == d, groups, -1), 2, 2, seed=d) for d in range(3)]
    return {
        "pk": PK(groups, 4, 3, seed=5),
        "uniform": Uniform(groups, 4, 3, seed=5),
        "gallery": Gallery(groups, camids, 4, 3, seed=5),
        "every camera": EveryCamera(groups, camids, 4, 3, seed=5),
        "shuffled": Shuffled(groups, 12, seed=5),
        "cameras": Cameras(camids, 3, seed=5),
        "domains": Domains(apart, 2, steps=4),
        "pairs": Pairs(groups % 3, domains, 2, 2, seed=5),
    }


@pytest.mark.parametrize("name", everything())
def test_every_sampler_is_a_pure_function_of_the_step(name):
    sampler, other = everything()[name], pickle.loads(pickle.dumps(everything()[name]))
    m = sampler.batches_per_epoch
    for step in (3 * m + 1, 0, m, m - 1, 2 * m):
        batch = sampler.batch(step)
        assert batch.shape == (sampler.size,) and batch.dtype == np.int32
        np.testing.assert_array_equal(batch, other.epoch(step // m)[step % m])
    assert sampler.epoch(1).shape == (m, sampler.size) and sampler.size % sampler.unit == 0
    assert any((sampler.epoch(e) != sampler.epoch(0)).any() for e in (1, 2))
    assert 0 <= sampler.epoch(0).min() and sampler.epoch(0).max() < 60


# ---- gallery ----------------------------------------------------------------------------------------------
def allowed(row, groups, camids, cross):
    """Rows that may follow a group's first row, by the rule read from the top."""
    others = [r for r in range(len(groups)) if groups[r] == groups[row] and r != row]
    elsewhere = [r for r in others if camids[r] != camids[row]]
    return elsewhere if cross and elsewhere else others


@pytest.mark.parametrize("case", range(30))
def test_gallery_follows_its_rule(case):
    """Reads an epoch group by group; `cross`: cameras count."""
    rng, cross = np.random.default_rng(case), case % 3 > 0
    groups = random_pids(rng) - (case % 2)  # odd cases: group 0 is left out
    camids, k, p = rng.integers(0, rng.integers(1, 5), len(groups)), int(rng.integers(1, 6)), 2
    counts = {g: n for g, n in Counter(groups.tolist()).items() if g >= 0}
    total = sum(k if n > 1 else 1 for n in counts.values())
    if total < p * k:
        with pytest.raises(DataError, match="do not fill a batch.*config.data.ids"):
            Gallery(groups, camids if cross else None, p, k)
        return
    sampler = Gallery(groups, camids if cross else None, p, k, seed=case)
    assert sampler.batches_per_epoch == total // (p * k)
    for e in range(3):
        rows, seen = sampler.epoch(e).ravel().tolist(), []
        while rows:
            first = rows[0]
            seen.append(groups[first])
            length = k if counts[groups[first]] > 1 else 1
            following, rows = rows[1:length], rows[length:]
            candidates = allowed(first, groups, camids, cross)
            assert set(following) <= set(candidates)
            if len(candidates) >= k:
                assert len(set(following)) == len(following)
        assert len(set(seen)) == len(seen) and -1 not in seen


def test_gallery_draws_evenly():
    """First images, and the others of another camera, equally often; K - 1 candidates: with replacement."""
    groups, camids = np.zeros(6, int), np.array([0, 0, 1, 1, 1, 2])
    sampler, firsts, pairs = Gallery(groups, camids, 1, 3, seed=1), Counter(), Counter()
    for e in range(6000):
        first, *others = sampler.epoch(e)[0].tolist()
        firsts[first] += 1
        pairs.update((first, o) for o in others)
    assert all(abs(firsts[i] - 1000) < 150 for i in range(6))
    assert all(abs(pairs[0, o] - 2 * firsts[0] / 4) < 130 for o in (2, 3, 4, 5))
    twice = Gallery(np.zeros(3, int), None, 1, 3, seed=1)  # 2 candidates for 2 places
    assert any(len(set(twice.epoch(e)[0].tolist())) == 2 for e in range(20))


@pytest.mark.parametrize("case", range(12))
def test_every_camera_of_a_group_comes_first(case):
    rng, k = np.random.default_rng(case), 1 + case % 5
    groups = random_pids(rng) - case % 2
    camids, counts = rng.integers(0, 1 + case % 4, len(groups)), Counter(groups[groups >= 0].tolist())
    if len(counts) < 2:
        return
    sampler = EveryCamera(groups, camids if case % 3 else None, 2, k, seed=case)
    assert sampler.batches_per_epoch == len(counts) // 2
    for e in range(4):
        drawn = sampler.epoch(e).reshape(-1, k)
        assert len({int(g) for g in groups[drawn[:, 0]]}) == len(drawn)  # each group once
        for rows in drawn:
            (group,) = set(groups[rows].tolist())
            of = camids if case % 3 else np.zeros_like(camids)
            cameras = len(np.unique(of[groups == group]))
            assert len(set(of[rows].tolist())) >= (min(k, cameras) if counts[group] > cameras else 1)
            if counts[group] >= k and (counts[group] > cameras or k <= cameras):
                assert len(set(rows.tolist())) == k  # no image twice


def test_every_camera_draws_evenly():
    """Six images by cameras of 2, 3 and 1 of them, four of them a time: 1 / n, then evenly of the others."""
    groups, camids = np.zeros(6, int), np.array([0, 0, 1, 1, 1, 2])
    sampler, seen = EveryCamera(groups, camids, 1, 4, seed=1), Counter()
    for e in range(3000):
        seen.update(sampler.epoch(e)[0].tolist())
    want = [(1 / 2 + 1 / 2 / 3) * 3000] * 2 + [(1 / 3 + 2 / 3 / 3) * 3000] * 3 + [3000]
    assert all(abs(seen[i] - n) < 150 for i, n in enumerate(want))


# ---- uniform, shuffled, groups ----------------------------------------------------------------------------
@pytest.mark.parametrize("case", range(10))
def test_uniform(case):
    rng = np.random.default_rng(case)
    groups, k, p = random_pids(rng) - case % 2, int(rng.integers(1, 6)), 2
    counts = Counter(groups[groups >= 0].tolist())
    sampler, left_out = Uniform(groups, p, k, seed=case), set()
    assert sampler.batches_per_epoch == len(counts) // p
    for e in range(20):
        of = groups[sampler.epoch(e)].reshape(-1, k)
        assert (of == of[:, :1]).all() and (of >= 0).all()
        assert len(set(of[:, 0].tolist())) == len(of)  # each group once
        for rows in sampler.epoch(e).reshape(-1, k).tolist():
            n = counts[groups[rows[0]]]
            assert max(Counter(rows).values()) <= (1 if n >= k else k)
        left_out |= set(counts) - set(of[:, 0].tolist())
    assert len(left_out) > 1 or len(counts) % p == 0


def test_uniform_repeats_a_small_group_evenly():
    sampler, alone = Uniform([0, 0], 1, 3), 0
    for e in range(4000):
        alone += len(set(sampler.epoch(e)[0].tolist())) == 1
    assert abs(alone / 4000 - 2 / 20) < 0.02  # three of the same among 2 x 3: 2 of the C(6, 3) = 20 choices


@pytest.mark.parametrize("size", [1, 4, 7, 25])
def test_shuffled(size):
    labels = np.where(np.arange(30) % 6 == 5, -1, 0)
    sampler = Shuffled(labels, size, seed=2)
    assert sampler.batches_per_epoch == 25 // size
    rows = sampler.epoch(0).ravel()
    assert len(set(rows.tolist())) == len(rows) == 25 // size * size and (labels[rows] == 0).all()
    assert set(np.concatenate([sampler.epoch(e).ravel() for e in range(40)]).tolist()) == set(
        np.flatnonzero(labels == 0).tolist()
    )
    with pytest.raises(
        DataError, match="25 training images do not fill a batch of 26: lower config.data.ids"
    ):
        Shuffled(labels, 26)


# ---- domains ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", range(8))
def test_layout_of_domains(case):
    """Row (p S + s) K + k, read by loops; every domain in its own epochs; shares hold all domains."""
    rng = np.random.default_rng(case)
    s_count, p, k = int(rng.integers(2, 5)), 4, int(rng.integers(1, 4))
    domain = np.repeat(np.arange(s_count), rng.integers(60, 200, s_count))
    pid = domain * 10 + rng.integers(0, 6, len(domain))
    pid[rng.permutation(len(pid))[:5]] = -1
    apart = [PK(np.where(domain == d, pid, -1), p, k, seed=d) for d in range(s_count)]
    sampler = Domains(apart, k)
    assert sampler.size == s_count * p * k
    assert sampler.batches_per_epoch == max(a.batches_per_epoch for a in apart)
    for step in range(0, 3 * sampler.batches_per_epoch, 2):
        batch = sampler.batch(step)
        for s, alone in enumerate(apart):
            e, b = divmod(step, alone.batches_per_epoch)
            for i in range(p):
                for j in range(k):
                    row = batch[(i * s_count + s) * k + j]
                    assert row == alone.epoch(e)[b][i * k + j]
                    assert domain[row] == s and pid[row] == pid[batch[(i * s_count + s) * k]] >= 0
        for n in (1, 2, 4):
            for share in np.split(batch, n):
                for s in range(s_count):
                    assert len(set(pid[share[domain[share] == s]].tolist())) == p // n
    assert Domains(apart, k, steps=3).batches_per_epoch == 3
    np.testing.assert_array_equal(Domains(apart, k, steps=3).epoch(2)[1], sampler.batch(7))


@pytest.mark.parametrize("distinct", [True, False])
def test_pairs(distinct):
    """The same identities from every domain, in the same order; unshared ones and -1 stay out."""
    rng = np.random.default_rng(3)
    pid, domain = rng.integers(-1, 6, 200), rng.integers(0, 3, 200)
    pid[(pid == 4) & (domain == 1)] = 0
    keep = ~((pid == 2) & (domain == 0)) | (np.cumsum((pid == 2) & (domain == 0)) == 1)  # one image there
    pid, domain = pid[keep], domain[keep]
    sampler = Pairs(pid, domain, 3, 2, seed=1, distinct=distinct)
    most = [max(((pid == i) & (domain == d)).sum() for d in range(3)) for i in (0, 1, 2, 3, 5)]
    groups = [max(n // 2, 1) for n in most]
    assert sampler.batches_per_epoch == (naive_longest(groups, 3) if distinct else sum(groups) // 3)
    seen = set()
    for step in range(2 * sampler.batches_per_epoch):
        batch = sampler.batch(step).reshape(3, 3, 2)
        for p in range(3):
            assert len(set(pid[batch[p]].ravel().tolist())) == 1 and pid[batch[p, 0, 0]] in (0, 1, 2, 3, 5)
            for d in range(3):
                assert (domain[batch[p, d]] == d).all()
                several = ((pid == pid[batch[p, 0, 0]]) & (domain == d)).sum() > 1
                assert len(set(batch[p, d].tolist())) == 1 + several
        assert not distinct or len(set(pid[batch[:, 0, 0]].tolist())) == 3
        seen |= set(batch.ravel().tolist())
    assert len(seen) > 0.9 * np.isin(pid, (0, 1, 2, 3, 5)).sum()
    with pytest.raises(DataError, match="pair_ids is set, but no identity"):
        Pairs([0, 0, 1, 1], [0, 0, 1, 1], 1, 2)


def test_samplers_side_by_side_must_be_alike():
    with pytest.raises(ValueError, match="cannot alternate"):
        Domains([PK([0, 0], 1, 2), PK([0, 1, 2], 3, 1)], 1)
