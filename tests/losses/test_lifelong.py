"""Losses against forgetting by hand; distillation and stability have recorded cases."""

import jax
import numpy as np
from scipy.special import rel_entr, softmax

from reid_jax.losses import identity, lifelong


def test_agreement_is_half_of_both_divergences_from_the_mixture():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)) * 3
    p, q, m = softmax(a / 2, 1), softmax(b / 2, 1), softmax((a + b) / 4, 1)
    expected = 4 / 2 * (rel_entr(p, m).sum(1) + rel_entr(q, m).sum(1)).mean()
    value, grads = jax.jit(jax.value_and_grad(lifelong.agreement, (0, 1)))(a, b)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert not np.any(grads[0]) and np.abs(grads[1]).max() > 1e-3


def test_smoothing_by_a_number_of_classes():
    logits, labels = np.float32(np.random.default_rng(1).normal(size=(4, 5))), np.array([0, 3, 4, 1])

    @jax.jit
    def values(logits):
        usual = identity.cross_entropy(logits, labels, label_smooth=0.1)
        even = lifelong.smoothed_by(np.zeros((1, 500)), np.array([7]), 2494, label_smooth=0.1)
        return usual, lifelong.smoothed_by(logits, labels, 5, label_smooth=0.1), even

    usual, same, even = values(logits)
    np.testing.assert_allclose(same, usual, rtol=1e-5)
    np.testing.assert_allclose(even, (0.9 + 500 * 0.1 / 2494) * np.log(500), rtol=1e-5)  # targets sum to 0.92
