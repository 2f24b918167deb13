"""MixStyle and DSU: places, keys, coins, devices, against plain loops (recorded outputs: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import heads
from reid_jax.models.styles import dsu, mixstyle

X = np.random.default_rng(0).normal(1, 2, (8, 16, 8, 3)).astype(np.float32)


def build(**fields):
    slim = dict(backbone="slim", slim_width=2, slim_blocks=(1, 1), style_p=1.0, neck="none")
    return heads.build(namespace(defaults()["model"] | slim | fields), 3)


def quick(encoder):
    return encoder._replace(init=jax.jit(encoder.init), apply=jax.jit(encoder.apply, static_argnums=2))


@pytest.mark.slow
@pytest.mark.parametrize("style", ["mixstyle", "dsu"])
def test_acts_in_training_alone_and_needs_a_key(style):
    forms = (dict(style=style), {}, dict(style=style, style_p=0.0))
    net, plain, calm = (quick(heads.encoder(build(**form))) for form in forms)
    variables = plain.init(jax.random.key(0), X)
    same, _ = net.apply(variables, X, False)
    np.testing.assert_array_equal(same.test, plain.apply(variables, X, False)[0].test)
    with pytest.raises(ConfigError, match=f"{style}.*rng"):
        net.apply(variables, X, True)
    one, again, other = (net.apply(variables, X, True, jax.random.key(k))[0].test for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - plain.apply(variables, X, True)[0].test).max() > 1e-3
    never = calm.apply(variables, X, True, jax.random.key(0))[0]
    np.testing.assert_allclose(never.test, plain.apply(variables, X, True)[0].test, atol=1e-6)
    parts = heads.encoder(build(style=style), 2)
    shapes = jax.eval_shape(lambda v: parts.apply(v, X, True, jax.random.key(0))[0], variables)
    assert shapes.test.shape == one.shape


@pytest.mark.slow
@pytest.mark.parametrize("layer", [
    mixstyle.MixStyle(1.0, 0.5, 1), mixstyle.MixStyle(1.0, 0.5, 2), dsu.Dsu(1.0),
])  # fmt: skip
def test_devices_draw_as_one(layer):
    """A permutation or noise of the global batch; with two domains only the own side of a draw is fixed."""
    fields = dict(axis_name="d") | (dict(batch_axis="d") if isinstance(layer, dsu.Dsu) else {})
    many, rngs = layer.clone(**fields), {"style": jax.random.key(3)}
    one = jax.jit(lambda x: layer.apply({}, x, True, rngs=rngs))(X)
    four = jax.pmap(lambda x: many.apply({}, x, True, rngs=rngs), axis_name="d")(X.reshape(4, 2, 16, 8, 3))
    if getattr(layer, "domains", 1) == 1:
        np.testing.assert_allclose(four.reshape(X.shape), one, atol=1e-4)
    assert np.isfinite(four).all() and np.abs(one - X).max() > 0.01


def test_partners():
    assert sorted(mixstyle.partners(jax.random.key(0), 9).tolist()) == list(range(9))
    for devices, domains in ((1, 2), (1, 3), (2, 3)):
        others = np.asarray(mixstyle.partners(jax.random.key(1), 12, devices, domains))
        assert sorted(others) == list(range(12))
        block = np.arange(12) % (12 // devices) // (12 // devices // domains)
        np.testing.assert_array_equal(block[others], (block + 1) % domains)
    others = np.asarray(mixstyle.partners(jax.random.key(1), 12, 2, 3, run=2))  # as samplers.domains.Domains
    assert sorted(others) == list(range(12))
    np.testing.assert_array_equal(others // 2 % 3, (np.arange(12) // 2 + 1) % 3)


def test_dsu_against_a_loop():
    noise = np.random.default_rng(1).normal(size=(2, 8, 3)).astype(np.float32)
    mean, std = X.mean((1, 2)), np.sqrt(X.var((1, 2), ddof=1) + 1e-6)
    want = np.empty_like(X)
    for i in range(8):
        for c in range(3):
            beta = mean[i, c] + noise[0, i, c] * np.sqrt(mean[:, c].var(ddof=1) + 1e-6)
            gamma = std[i, c] + noise[1, i, c] * np.sqrt(std[:, c].var(ddof=1) + 1e-6)
            want[i, ..., c] = (X[i, ..., c] - mean[i, c]) / std[i, c] * gamma + beta
    np.testing.assert_allclose(dsu.perturb(jnp.asarray(X), *noise), want, atol=1e-4)


def test_places():
    def places(**fields):
        net = build(**fields).base
        return [p for p in net.places if net.style(p) is not None]

    assert places(style="dsu") == ["stem", "pool", 1, 2] and places(style="mixstyle") == [1, 2]
    assert places(style="mixstyle", style_at=("pool", 2)) == ["pool", 2]


@pytest.mark.parametrize("fields,message", [
    (dict(style="x"), "model.style"), (dict(style="dsu", style_at=(3,)), "style_at"),
    (dict(style="dsu", style_p=2.0), "style_p"), (dict(style="mixstyle", style_alpha=0.0), "style_alpha"),
    (dict(style="mixstyle", style_mix="y"), "style_mix"),
])  # fmt: skip
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_batches_that_cannot_be():
    rngs = {"style": jax.random.key(0)}
    with pytest.raises(ConfigError, match="two or more images"):
        dsu.Dsu(1.0).apply({}, X[:1], True, rngs=rngs)
    with pytest.raises(ConfigError, match="style_domains 3"):
        mixstyle.MixStyle(1.0, 0.1, 3).apply({}, X, True, rngs=rngs)
