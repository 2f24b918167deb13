"""Norms by domain: every domain's rows as a norm of its own sees them; weights of and for nets with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import ConfigError
from reid_jax.models import heads, layers, weights
from reid_jax.models.norms import ibn
from reid_jax.train import warm

SMALL = dict(backbone="narrow", narrow_widths=(4, 8), narrow_stripes=1, narrow_dim=8, pool="avg")


def build(domains=2, test_domain=1, **fields):
    return heads.build(SMALL | {"head": "contrast"} | fields, 3, domains=domains, test_domain=test_domain)


def shapes(net):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 16, 8, 3)), False))


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(np.float32), tree)


def domain(variables, g):
    return jax.tree.map(lambda v: v[g], variables)


@pytest.mark.parametrize("rows", [0, 2])
def test_each_domain_has_a_norm_of_its_own(rows):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (12, 2, 5)), jnp.float32)
    norm, plain = layers.BatchNorm(rows=rows, domains=3, test_domain=2), layers.BatchNorm(rows=rows)
    variables = drawn(norm.init(jax.random.key(0), x, False))
    assert {v.shape for v in jax.tree.leaves(variables)} == {(3, 5)}
    y, changed = norm.apply(variables, x, True, mutable=["batch_stats"])
    for g in range(3):
        own = domain(variables, g)
        want, stats = plain.apply(own, x[4 * g : 4 * g + 4], True, mutable=["batch_stats"])
        np.testing.assert_allclose(y[4 * g : 4 * g + 4], want, atol=1e-5)
        jax.tree.map(lambda a, b, g=g: np.testing.assert_allclose(a[g], b, rtol=1e-5), changed, stats)
    tested = plain.apply(domain(variables, 2), x, False)
    np.testing.assert_allclose(norm.apply(variables, x, False), tested, atol=1e-6)
    with pytest.raises(ConfigError, match="11 rows of a device cannot be of 3 domains"):
        norm.apply(variables, x[:11], True, mutable=["batch_stats"])


def test_all_norms_of_a_net_are_by_domain():
    for net in (build(), build(head="global", neck="bnneck"), build(norm="ibn_a")):
        norms = [p for p in weights.leaves(shapes(net)) if p[-1] == "mean"]
        assert norms and all(weights.leaves(shapes(net))[p].shape[0] == 2 for p in norms)
    assert build().frozen == ("^neck/bias$",)
    assert isinstance(build(norm="ibn_b").base.norms, ibn.IbnB)


@pytest.mark.parametrize("layout,source,target", [
    ("spcl", "BN_S", "BN_T"), ("openunreid", "dsbn.0", "dsbn.1"), ("torchvision", "dsbn.0", "dsbn.1"),
])  # fmt: skip
def test_files(layout, source, target):
    """Written and read back bit for bit; plain norms go to both domains; a plain net takes the target's."""
    whole, plain = shapes(build()), shapes(build(1))
    variables = drawn(whole)
    entries = weights.to_torch(variables, layout)
    first = weights.torch_key(("base", "bn1", "scale"), layout).rpartition(".")[0]
    assert {f"{first}.{source}.weight", f"{first}.{target}.running_var"} <= entries.keys()
    back, report = weights.load(entries, drawn(whole, 1), layout)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert not report["unused"] and not report["missing"]

    alone, report = weights.load(entries, drawn(plain, 1), layout)
    np.testing.assert_array_equal(alone["params"]["neck"]["scale"], variables["params"]["neck"]["scale"][1])
    np.testing.assert_array_equal(
        alone["batch_stats"]["base"]["bn1"]["var"], variables["batch_stats"]["base"]["bn1"]["var"][1]
    )
    assert not report["missing"] and any("those of the target" in note for note in report["notes"])
    assert all(f".{source}." in key for key in report["unused"]) and report["unused"]

    tiled, report = weights.load(weights.to_torch(alone, layout), drawn(whole, 1), layout)
    assert not report["unused"] and not report["missing"]
    for g in range(2):
        got = tiled["params"]["neck"]["scale"][g]
        np.testing.assert_array_equal(got, alone["params"]["neck"]["scale"])


def test_a_run_without_domains_starts_all():
    value, leaf = np.arange(3.0), np.zeros((2, 3))
    assert np.array_equal(warm.by_domain(value, leaf), [value, value])
    assert warm.by_domain(value, np.zeros(3)) is value and warm.by_domain(None, leaf) is None


@pytest.mark.parametrize("fields,message", [
    (dict(norm="aibn"), "norm 'aibn' has no form"), (dict(backbone="hacnn", pool="auto"), "hacnn"),
    (dict(backbone="slim", head="stripes"), "head 'stripes' cannot"),
])  # fmt: skip
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)
