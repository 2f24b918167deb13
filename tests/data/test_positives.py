"""Images with others of the same identity."""

import numpy as np
import pytest

from reid_jax.data.samplers.images import Positives
from reid_jax.errors import DataError

LABELS = np.array([3, 1, 3, -1, 1, 3, 7, 3, 1, -1, 3])


def test_every_image_once_with_another_of_its_identity():
    sampler = Positives(LABELS, 3, seed=5)
    seen = []
    for epoch in range(40):
        rows = sampler.epoch(epoch)
        assert rows.shape == (3, 6) and sampler.size == 6
        first, partner = rows[:, ::2].ravel(), rows[:, 1::2].ravel()
        assert sorted(first) == [0, 1, 2, 4, 5, 6, 7, 8, 10]
        assert (LABELS[first] == LABELS[partner]).all()
        alone = LABELS[first] == 7
        assert (partner[alone] == first[alone]).all() and (partner[~alone] != first[~alone]).all()
        seen += zip(first.tolist(), partner.tolist(), strict=True)
    others = {row: {b for a, b in seen if a == row} for row in (0, 1)}
    assert others == {0: {2, 5, 7, 10}, 1: {4, 8}}  # any of them


def test_batches_follow_from_seed_and_step():
    one, same, other = (Positives(LABELS, 4, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.batch(7), same.batch(7))
    assert any((one.batch(i) != other.batch(i)).any() for i in range(4))
    with pytest.raises(DataError, match=r"config\.data\.ids"):
        Positives(LABELS, 10)
