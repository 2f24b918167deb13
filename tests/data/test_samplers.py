"""PK batches: invariants on even, uneven and extreme sets."""

import pickle
import time
from collections import Counter

import numpy as np
import pytest

from reid_jax.data.samplers import PK, Cameras, longest
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
