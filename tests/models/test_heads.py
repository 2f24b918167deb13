"""Heads and poolings by name, against plain arithmetic; what belongs to them and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax import models
from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import backbones, heads, layers, pooling

X = np.random.default_rng(0).uniform(0.1, 1, (3, 32, 16, 3)).astype(np.float32)


def build(**fields):
    small = dict(backbone="narrow", narrow_widths=(4, 6), narrow_stripes=2, narrow_dim=5, stripes_parts=2)
    return heads.build(namespace(defaults()["model"] | small | fields), 7)


def run(net, x=X, train=False, **rngs):
    variables = jax.jit(lambda x: net.init(jax.random.key(1), x, False))(x)

    @jax.jit
    def apply(variables, x):
        if not train:
            return net.apply(variables, x, False)
        return net.apply(variables, x, True, mutable=["batch_stats"], rngs=rngs)[0]

    return apply(variables, x), variables


def test_narrow_is_its_map_in_stripes():
    """The vector that narrow gave before it gave maps: stripe means, joined, projected."""
    net = build()
    out, variables = run(net)
    base = {k: v["base"] for k, v in variables.items()}
    maps = np.asarray(jax.jit(lambda v: net.base.apply(v, X, False))(base), np.float64)
    assert maps.shape == (3, 16, 8, 6)
    rows = np.stack([maps[:, :8].mean((1, 2)), maps[:, 8:].mean((1, 2))], 1).reshape(3, -1)
    dense = variables["params"]["base"]["project"]  # its place, so that older weights and draws fit
    np.testing.assert_allclose(out.before_bn[0], rows @ dense["kernel"] + dense["bias"], atol=1e-5)


def test_generalised_mean_lies_between_mean_and_maximum():
    x = jnp.asarray(X)
    gem = {p: pooling.Gem(p).apply({"params": {"p": jnp.full(1, p)}}, x) for p in (1.0, 3.0, 90.0)}
    np.testing.assert_allclose(gem[1.0], pooling.Average()(x), rtol=1e-5)
    np.testing.assert_allclose(gem[90.0], pooling.Maximum()(x), rtol=0.1)
    np.testing.assert_allclose(gem[3.0], (X.astype(np.float64) ** 3).mean((1, 2)) ** (1 / 3), rtol=1e-5)


def test_contrast_head_gives_unit_features_without_classifier():
    net = build(head="contrast", pool="gem")
    out, variables = run(net)
    assert out.logits == () and set(variables["params"]) == {"base", "pooling", "neck"}
    np.testing.assert_allclose(np.linalg.norm(out.test, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(out.test, out.after_bn[0] / np.linalg.norm(out.after_bn[0], axis=1)[:, None])
    assert variables["params"]["pooling"]["p"] == 3 and net.frozen == ("^neck/bias$",)


def test_stripes_head():
    """Branches of the right shapes; the test feature is g_i at unit length; clips are means of frames."""
    net = build(head="stripes", stripes_dim=4, stripes_dropout=0.0)
    out, variables = run(net)
    shapes = [[a.shape for a in branch] for branch in out[:3]]
    assert shapes == [[(3, 7)] * 2, [(3, 6)] * 2, [(3, 4)] * 2]
    unit = np.concatenate([g / np.linalg.norm(g, axis=1)[:, None] for g in out.before_bn], 1)
    np.testing.assert_allclose(out.test, unit, rtol=1e-5)
    clip = jax.jit(lambda v: net.apply(v, X[None], False))(variables)
    frames = [np.asarray(g).mean(0) for g in out.before_bn]
    np.testing.assert_allclose([g[0] for g in clip.before_bn], frames, rtol=1e-4)
    small = build(head="stripes", stripes_dim=4, stripes_test="reduced", stripes_shared=True)
    tree = {**variables["params"], "instance1": variables["params"]["instance0"]}
    other = jax.jit(lambda v: small.apply(v, X, False))({**variables, "params": tree})
    unit = np.concatenate([h / np.linalg.norm(h, axis=1)[:, None] for h in out.after_bn], 1)
    np.testing.assert_allclose(other.test, unit, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.logits[0], out.logits[0], rtol=1e-4)
    one = variables["params"]["instance0"]
    np.testing.assert_allclose(other.logits[1], out.after_bn[1] @ one["kernel"] + one["bias"], atol=1e-4)
    assert small.top.classifiers == ("instance0",)
    vectors = jax.jit(lambda v: net.apply(v, X[None], False, method="vectors"))(variables)
    again = net.apply(variables, vectors.mean(1), False, method="head")
    np.testing.assert_allclose(again.test, clip.test, rtol=1e-5)


@pytest.mark.slow
def test_dropout_needs_a_key_and_draws_by_global_row():
    net = build(head="stripes", stripes_dropout=0.5)
    with pytest.raises(ConfigError, match="dropout"):
        run(net, train=True)
    one, other = (run(net, train=True, dropout=jax.random.key(k))[0].logits[0] for k in (0, 1))
    assert np.abs(one - other).max() > 0

    def drop(x, axis=None):
        layer = layers.Dropout(0.5, axis)
        return layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)})

    x = jnp.ones((8, 50))
    several = jax.pmap(lambda x: drop(x, "d"), axis_name="d")(x.reshape(4, 2, 50))
    np.testing.assert_array_equal(several.reshape(8, 50), drop(x))
    assert 150 < (drop(x) == 2).sum() < 250 and len(np.unique(drop(x), axis=0)) > 1


def test_bn_rows_are_devices():
    """Statistics of each part of the batch; the running ones move once for each part, in order."""
    net, alone = build(neck="none", bn_rows=2), build(neck="none")
    x = np.concatenate([X, 2 * X[:1]])
    out, variables = run(net, x, train=True)
    want, stats = [], variables["batch_stats"]
    train = jax.jit(lambda v, x, net: net.apply(v, x, True, mutable=["batch_stats"]), static_argnums=2)
    for part in (x[:2], x[2:]):
        all_ = {**variables, "batch_stats": stats}
        features, changed = train(all_, part, alone)
        want.append(features.test)
        stats = changed["batch_stats"]
    np.testing.assert_allclose(out.test, np.concatenate(want), atol=1e-5)
    _, changed = train(variables, x, net)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), changed["batch_stats"], stats)
    with pytest.raises(ConfigError, match="bn_rows"):
        run(net, X, train=True)
    with pytest.raises(ConfigError, match="bn_group=device"):
        build(bn_rows=2, bn_group="global")


@pytest.mark.slow
def test_stages_are_called_one_by_one():
    """Stem and stages have trees of their own; together they are the net."""
    base = backbones.build(namespace(defaults()["model"] | dict(backbone="slim", slim_width=2)))
    init = jax.jit(functools.partial(base.init, method="maps"), static_argnums=(2, 3, 4))
    apply = jax.jit(functools.partial(base.apply, method="maps"), static_argnums=(2, 3))
    whole = init(jax.random.key(0), X, False)
    maps = apply(whole, X, False)
    assert [m.shape[1:3] for m in maps] == [(16, 8), (8, 4), (4, 2), (2, 1), (2, 1)]
    parts = [init(jax.random.key(0), X, False, 0, 3), init(jax.random.key(0), maps[3], False, 4)]
    names = [set(p["params"]) for p in parts]
    assert names[1] == {"layer4_0"} and names[0] | names[1] == set(whole["params"])
    joined = {k: {**parts[0][k], **parts[1][k]} for k in whole}
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
    top = apply(parts[1], maps[3], False, 4)
    np.testing.assert_array_equal(top[0], maps[4])


def test_all_fields_have_one_owner():
    owners = [models.FIELDS]
    for package in ("backbones", "norms", "styles", "pooling", "heads", "classifiers"):
        owners += [getattr(m, "FIELDS", {}) for m in models.modules(f"reid_jax.models.{package}")]
    names = [name for fields in owners for name in fields]
    assert len(names) == len(set(names)) and set(names) == set(models.fields())
    assert {"slim_width", "narrow_dim", "ap3d_temperature", "stripes_parts", "style_p"} <= set(names)


@pytest.mark.parametrize("fields,message", [
    (dict(head="x"), "model.head"), (dict(head="stripes", stripes_parts=0), "stripes_parts"),
    (dict(head="stripes", stripes_dropout=1.0), "stripes_dropout"),
    (dict(slim_blocks=(2,), backbone="slim"), "slim"),
])  # fmt: skip
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_the_map_must_divide_into_stripes():
    with pytest.raises(ConfigError, match="stripes_parts is 3"):
        run(build(head="stripes", stripes_parts=3))
