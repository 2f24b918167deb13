"""bfloat16 on CPUs, whatever version of jax: finite, and near float32, in both modes and in the gradient.

Newer compilers join sums in float32 with the convolutions before them, and once read what they should not.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.models import heads, layers

SMALL = dict(backbone="narrow", narrow_widths=(16, 64, 64), neck="none", pool="avg")


def pooled(x, w):
    """Two convolutions and a mean in float32: the smallest form in which that was seen."""
    y = jax.nn.relu(layers.conv(x, w, padding=1))
    return jax.nn.relu(layers.conv(y, w, padding=1)).astype(jnp.float32).mean(-2)


@pytest.mark.parametrize("form", ["cpu", "plain"])
def test_a_mean_behind_convolutions(form):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 8, 4, 64)).astype(np.float32)
    w = (0.05 * rng.standard_normal((3, 3, 64, 64))).astype(np.float32)
    with layers.form(form):
        exact = jax.jit(pooled)(x, w)
        got = jax.jit(lambda x, w: pooled(x, w))(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    np.testing.assert_allclose(got, exact, atol=0.02 * np.abs(exact).max())


def outcome(dtype, train, compiled, **fields):
    """(vectors f64[B,D], gradient f64[P]) of a narrow net."""
    model = namespace(defaults()["model"] | SMALL | dict(dtype=dtype) | fields)
    net = heads.encoder(heads.build(model, 3))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64, 32, 3)), jnp.float32)
    variables = jax.jit(net.init)(jax.random.key(1), x)

    def loss(params):
        vectors = net.apply({**variables, "params": params}, x, train)[0].before_bn[0]
        return jnp.square(vectors).sum(), vectors

    descend = jax.value_and_grad(loss, has_aux=True)
    (_, vectors), gradient = (jax.jit(descend) if compiled else descend)(variables["params"])
    gradient = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient["base"])])
    return np.asarray(vectors, np.float64), gradient.astype(np.float64)


@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("fields, compiled", [
    ({}, True), *(pytest.param(*p, marks=pytest.mark.slow) for p in (
        ({}, False), ({"pool": "gem"}, True), ({"norm": "aibn"}, True))),
], ids=str)  # fmt: skip
def test_a_net(fields, compiled, train):
    """Compiled as a whole, and operation by operation."""
    exact, exact_gradient = outcome("float32", train, True, **fields)
    got, gradient = outcome("bfloat16", train, compiled, **fields)
    assert np.abs(got - exact).max() < 0.05 * np.abs(exact).max()
    assert np.isfinite(gradient).all()
    cos = gradient @ exact_gradient / np.linalg.norm(gradient) / np.linalg.norm(exact_gradient)
    assert cos > 0.9
