"""Norms of the gradients of single losses, on request."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.methods import _steps


def loss(nets):
    w = nets["net"]["params"]["w"]
    ce, triplet = (w**2).sum(), 3 * w[0]
    return ce + 0.1 * triplet, {}, {"ce": ce, "triplet": triplet, "accuracy": jnp.float32(0.5)}, None


def test_norms_of_single_losses():
    nets = {"net": {"params": {"w": jnp.array([1.0, 2.0])}}}
    plain = _steps.gradient(loss, nets, ("net",), None)
    assert set(plain[2]) == {"ce", "triplet", "accuracy"}
    with _steps.gradient_norms(True):
        found = jax.jit(lambda nets: _steps.gradient(loss, nets, ("net",), None))(nets)
    np.testing.assert_allclose(found[0]["net"]["w"], plain[0]["net"]["w"])
    norms = {k.partition("/")[2]: float(v) for k, v in found[2].items() if k.startswith("gradient/")}
    np.testing.assert_allclose(norms["ce"], 2 * 5**0.5, rtol=1e-6)
    assert norms["triplet"] == 3 and norms["accuracy"] == 0
    assert set(_steps.gradient(loss, nets, ("net",), None)[2]) == {"ce", "triplet", "accuracy"}


def test_variance_of_the_global_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    np.testing.assert_allclose(_steps.variance(x), np.var(x, 0), rtol=1e-5)
