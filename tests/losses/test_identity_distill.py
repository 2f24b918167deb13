"""Cross entropy and distillation against loops over rows and recorded PyTorch values."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.losses import distill, identity

CASES = pathlib.Path(__file__).parents[1] / "cases"
FORMS = {
    "kl": distill.kl,
    "soft_ce": distill.soft_cross_entropy,
}


def value_and_grad(fn, **options):
    """Compiled, which is faster here than one small kernel after the other."""
    return jax.jit(jax.value_and_grad(fn, **options))


def naive_ce(logits, labels, smooth):
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        for k, v in enumerate(log_p):
            total -= ((1 - smooth) * (k == label) + smooth / len(row)) * v
    return total / len(labels)


@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_cross_entropy_is_the_loop(smooth):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 4)).astype(np.float32) * 3, np.array([0, 3, 1, 1, 2])
    got = identity.cross_entropy(jnp.asarray(logits), labels, label_smooth=smooth)
    np.testing.assert_allclose(got, naive_ce(logits, labels, smooth), rtol=1e-6)


def test_kl_is_the_loop_and_zero_for_equal_logits():
    rng = np.random.default_rng(1)
    t, s = rng.standard_normal((2, 6, 5)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (t, s))
    by_hand = sum(p[i, k] * np.log(p[i, k] / q[i, k]) for i in range(6) for k in range(5)) / 6
    np.testing.assert_allclose(distill.kl(t, s), by_hand, rtol=1e-5)
    assert abs(float(distill.kl(s, s))) < 1e-6
    assert not np.asarray(jax.grad(distill.kl)(t, s)).any()  # the teacher gets no gradient


@pytest.mark.parametrize("name", ["ce", "ce_smooth", "kl", "soft_ce"])
def test_padding_changes_nothing(name):
    rng = np.random.default_rng(2)
    t, s = (jnp.asarray(x, jnp.float32) for x in rng.standard_normal((2, 7, 5)))
    labels = jnp.array([0, 1, 2, 3, 4, -1, -1])

    def loss(z, mask=None):
        keep = len(z)
        if name in FORMS:
            return FORMS[name](t[:keep], z, mask)
        smooth = 0.1 if name == "ce_smooth" else 0.0
        return identity.cross_entropy(z, labels[:keep], label_smooth=smooth, mask=mask)

    value, grad = value_and_grad(loss)(s, jnp.arange(7) < 5)
    expected, expected_grad = value_and_grad(loss)(s[:5])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad[:5], expected_grad, rtol=1e-5, atol=1e-7)
    assert not np.asarray(grad[5:]).any()
    value, grad = value_and_grad(loss)(s, jnp.zeros(7, bool))
    assert value == 0 and not np.asarray(grad).any()
