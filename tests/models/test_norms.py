"""Norms of residual nets: where each one stands, gates, refusals (recorded outputs: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import backbones
from reid_jax.models.norms import bin as gated

X = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def build(**fields):
    slim = dict(backbone="slim", slim_width=2, slim_blocks=(2, 1, 2, 2))
    return backbones.build(namespace(defaults()["model"] | slim | fields))


def params(**fields):
    return jax.eval_shape(lambda: build(**fields).init(jax.random.key(0), X, False))["params"]


def having(tree, *path):
    """Names of the modules of a net that have something below them."""

    def inside(module):
        for name in path:
            module = module.get(name, {}) if isinstance(module, dict) else {}
        return bool(module) or module == 0

    return {name for name, module in tree.items() if inside(module)}


def test_places_of_instance_norms():
    a, b, dual = params(norm="ibn_a"), params(norm="ibn_b"), params(norm="dualnorm")
    assert having(a, "bn1", "IN") == {"layer1_0", "layer1_1", "layer2_0", "layer3_0", "layer3_1"}
    assert a["layer3_0"]["bn1"]["IN"]["scale"].shape == (4,) and "IN" not in a["layer3_0"]["bn2"]
    assert having(b, "IN") == {"layer1_1"}  # layer2 has one block, its first
    assert having(dual, "IN") == {"layer1_1", "layer2_0", "layer3_1"}
    stats = jax.eval_shape(lambda: build(norm="ibn_b").init(jax.random.key(0), X, False))["batch_stats"]
    assert "bn1" not in stats and "bn1" in b
    every = jax.eval_shape(lambda: build(norm="instance").init(jax.random.key(0), X, False))
    assert "batch_stats" not in every and set(every["params"]["layer1_0"]["bn1"]) == {"scale", "bias"}
    some = params(norm="dualnorm", norm_stages=(4,))
    assert having(some, "IN") == {"layer4_1"}


@pytest.mark.slow
@pytest.mark.parametrize("norm,inner", [("bin", ()), ("metabin", ("bat_n",))])
def test_gates_are_everywhere(norm, inner):
    net = build(norm=norm, slim_blocks=(1, 1))
    variables = jax.jit(lambda: net.init(jax.random.key(0), X, False))()
    tree = variables["params"]
    norms = [tree["bn1"], *(tree["layer2_0"][n] for n in ("bn1", "bn2", "bn3", "downsample_1"))]
    for one in norms:
        assert (one["gate"] == 1).all()
        for name in inner:
            one = one[name]
        assert set(one) >= {"scale", "bias"}
    # gates of 1 are batch norm
    plain = build(slim_blocks=(1, 1))
    fresh = jax.jit(lambda: plain.init(jax.random.key(0), X, False))()
    want, got = (
        jax.jit(lambda v, n=n: n.apply(v, X, True, mutable=["batch_stats"])[0])(v)
        for n, v in ((plain, fresh), (net, variables))
    )
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_gate_of_0_is_instance_norm_and_one_pixel_gives_0():
    x = jnp.asarray(X)
    for module in (gated.BatchInstanceNorm(), gated.GatedNorm()):
        v = module.init(jax.random.key(0), x, False)
        v = {**v, "params": {**v["params"], "gate": jnp.zeros(3)}}
        y = module.apply(v, x, False)
        want = (X - X.mean((1, 2), keepdims=True)) / X.std((1, 2), keepdims=True)
        np.testing.assert_allclose(y, want, atol=1e-4)
        assert not module.apply(v, x[:, :1, :1], False).any()


def test_half_is_a_gate_of_a_half_and_not_a_parameter():
    x, free, half = jnp.asarray(X), gated.GatedNorm(), gated.GatedNorm(fixed=0.5)
    v = free.init(jax.random.key(0), x, False)
    v["params"]["gate"] = jnp.full(3, 0.5)
    want = free.apply(v, x, True, mutable=["batch_stats"])[0]
    assert "gate" not in half.init(jax.random.key(0), x, False)["params"] and not gated.BinHalf.bounds
    np.testing.assert_array_equal(half.apply(v, x, True, mutable=["batch_stats"])[0], want)


def test_virtual_gates_are_clipped_straight_through():
    gate, gradient = jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 2.0, -3.0])
    np.testing.assert_allclose(gated.virtual_gate(gate, gradient, 0.1), [0, 0.3, 1], atol=1e-7)
    slope = jax.grad(lambda g: gated.virtual_gate(g, gradient, 0.1).sum())(gate)
    np.testing.assert_allclose(slope, 1)


@pytest.mark.parametrize("fields,message", [
    (dict(norm="bin", norm_stages=(1,)), "norm_stages"), (dict(norm="aibn", bn_rows=2), "bn_rows"),
    (dict(norm="ibn_b", backbone="resnet50_ibn_a"), "resnet50_ibn_a"),
    (dict(norm="ibn_a", backbone="resnest50"), "resnest50"),
])  # fmt: skip
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_alias():
    assert jax.tree.structure(params(backbone="resnet50_ibn_a")) == jax.tree.structure(
        params(backbone="resnet50", norm="ibn_a")
    )
