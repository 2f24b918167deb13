"""AIBN against a loop, over devices, in bfloat16, and inside the nets (recorded outputs: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax import config as c
from reid_jax.errors import ConfigError
from reid_jax.models import heads, norms, weights
from reid_jax.models.norms import aibn


def naive(x, running, alpha, train, scale, bias):
    """Image by image and channel by channel, as section 2 of the specification says it."""
    n, height, width, channels = x.shape
    y, new = np.zeros_like(x), [r.copy() for r in running]
    a = min(max(alpha, 0), 1)
    for k in range(channels):
        means = [x[i, :, :, k].mean() for i in range(n)]
        variances = [x[i, :, :, k].var(ddof=1) for i in range(n)]
        m_b, v_b = running[0][k], running[1][k]
        if train:
            m_b = sum(means) / n
            v_b = sum(v + m**2 for m, v in zip(means, variances, strict=True)) / n - m_b**2
            for r, value in zip(new, (m_b, v_b), strict=True):
                r[k] = 0.9 * r[k] + 0.1 * value
        for i in range(n):
            m, v = (1 - a) * means[i] + a * m_b, (1 - a) * variances[i] + a * v_b
            y[i, :, :, k] = scale[k] * (x[i, :, :, k] - m) / np.sqrt(v + 1e-5) + bias[k]
    return y, new


def variables(seed=0, channels=3):
    rng = np.random.default_rng(seed)
    draw = {k: rng.uniform(0.5, 1.5, channels) for k in ("scale", "bias", "mean", "var")}
    return {
        "params": {k: draw[k] for k in ("scale", "bias")},
        "batch_stats": {k: draw[k] for k in ("mean", "var")},
    }


@pytest.mark.parametrize("alpha", [0.1, 0.6, 1.3, -0.2])
@pytest.mark.parametrize("train", [True, False])
def test_against_a_loop(alpha, train):
    x, v = np.random.default_rng(1).normal(2, 3, (4, 5, 3, 3)), variables()
    want, stats = naive(x, list(v["batch_stats"].values()), alpha, train, *v["params"].values())
    module = aibn.AdaptiveNorm()
    y, changed = module.apply(
        jax.tree.map(jnp.float32, v), jnp.float32(x), train, jnp.float32(alpha), mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, want, atol=2e-5)
    for name, value in zip(("mean", "var"), stats, strict=True):
        np.testing.assert_allclose(changed["batch_stats"][name], value, rtol=1e-5)


def test_no_gradient_for_a_weight_outside_0_to_1():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 3, 2)), jnp.float32)
    module = aibn.AdaptiveNorm()
    v = module.init(jax.random.key(0), x, False, 0.5)

    def loss(alpha):
        return (module.apply(v, x, True, alpha, mutable=["batch_stats"])[0] ** 3).sum()

    grads = [float(jax.grad(loss)(a)) for a in (-0.1, 0.5, 1.1)]
    assert grads[0] == grads[2] == 0 != grads[1]


def test_devices_and_types():
    """Over devices the statistics are those of all images; bfloat16 maps keep float32 statistics."""
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 2, 3, 2, 3)), jnp.float32)
    v = jax.tree.map(jnp.float32, variables())

    def run(x, axis_name=None):
        module = aibn.AdaptiveNorm(axis_name=axis_name)
        y, changed = module.apply(v, x, True, 0.5, mutable=["batch_stats"])
        return y, changed["batch_stats"]

    y, stats = run(x.reshape(16, 3, 2, 3))
    y8, stats8 = jax.pmap(lambda x: run(x, "d"), axis_name="d")(x)
    np.testing.assert_allclose(y8.reshape(y.shape), y, atol=1e-5)
    np.testing.assert_allclose(stats8["var"][5], stats["var"], rtol=1e-5)
    half, half_stats = run(x.reshape(16, 3, 2, 3).astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16 and half_stats["var"].dtype == jnp.float32
    np.testing.assert_allclose(half_stats["var"], stats["var"], rtol=0.01)


def build(**fields):
    tree = c.defaults()["model"] | dict(neck="none") | fields
    return heads.build(c.namespace(tree), 3)


def shapes(net, size=64):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: dict(net.init(jax.random.key(0), x, False)), image)


@pytest.mark.slow
def test_resnet50_has_nine_mixing_weights_and_takes_batch_norm_weights():
    plain, adaptive = shapes(build()), shapes(build(norm="aibn"))
    fresh = jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), adaptive)
    entries = weights.to_torch(jax.tree.map(lambda s: np.ones(s.shape, s.dtype), plain))
    filled, report = weights.load(entries, fresh)
    assert len(report["missing"]) == 9 and not report["unused"]
    assert all(k.endswith("adaptive_weight") and k[:6] in ("layer3", "layer4") for k in report["missing"])
    counts = [sum(x.size for x in jax.tree.leaves(s["params"])) for s in (plain, adaptive)]
    assert counts[1] - counts[0] == 9
    assert (filled["batch_stats"]["base"]["layer4_2"]["bn3"]["var"] == 1).all()


@pytest.mark.parametrize("fields, blocks", [
    (dict(backbone="slim", slim_blocks=(1, 1, 2, 1)), {"layer3_0", "layer3_1", "layer4_0"}),
    (dict(backbone="narrow", narrow_widths=(4, 4, 4, 4)), {"layer2_0", "layer3_0"}),
    (dict(backbone="resnet18"), {"layer3_0", "layer3_1", "layer4_0", "layer4_1"}),
])  # fmt: skip
def test_the_last_two_stages_have_it(fields, blocks):
    base = shapes(build(norm="aibn", **fields))["params"]["base"]
    assert {name for name, block in base.items() if "adaptive_weight" in block} == blocks


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="model.norm"):
        build(norm="layer")
    with pytest.raises(ConfigError, match="resnet50_ibn_a"):
        build(norm="aibn", backbone="resnet50_ibn_a")
    with pytest.raises(ConfigError, match="more than one pixel"):
        shapes(build(norm="aibn", backbone="slim"), 16)


def test_a_clipped_weight_can_come_back():
    """aibn_clip "straight": the numbers of "hard", and beyond 1 the gradient of the clipped value."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 3, 2)), jnp.float32)
    found = {}
    for straight in (False, True):
        layer = aibn.AdaptiveNorm(straight=straight)
        variables = layer.init(jax.random.key(0), x, True, jnp.float32(0.5))

        def total(alpha, layer=layer, variables=variables):
            return (layer.apply(variables, x, True, alpha, mutable=["batch_stats"])[0] ** 3).sum()

        found[straight] = [jax.value_and_grad(total)(jnp.float32(a)) for a in (0.3, 1.4)]
    assert found[False][1][1] == 0 != found[True][1][1]
    np.testing.assert_allclose(*([v for v, _ in found[s]] for s in (False, True)), rtol=1e-5)
    np.testing.assert_allclose(found[True][0][1], found[False][0][1], rtol=1e-5)
    model = c.namespace(c.defaults()["model"] | {"norm": "aibn", "aibn_clip": "straight"})
    assert norms.build(model).straight
    assert not norms.build(c.namespace(c.defaults()["model"] | {"norm": "aibn"})).straight
