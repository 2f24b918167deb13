"""SNR: what it keeps, its losses against loops, devices, what cannot be (recorded outputs: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of
from small import Stepping, difference, drawn, random_batch

from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.losses import causality
from reid_jax.methods import Info, defaults, snr
from reid_jax.models import restitution
from reid_jax.train.devices import AXIS

STAGES = dict(stages=(1, 2), weights=(0.5, 0.5), reduction=2)


def method(axis_name=None, model=(), **fields):
    """A narrow SNR; fields of config.snr."""
    tree = defaults("snr")
    tree["data"].update(height=16, width=8, ids=4, instances=4)
    tree["model"].update(
        dict(backbone="narrow", narrow_widths=(4, 6), narrow_stripes=1, narrow_dim=8) | dict(model)
    )
    tree["model"].update(bn_group="global", neck="bnneck")
    tree["optim"].update(lr=0.01, milestones=(), eps=1e-3)
    tree["snr"].update(STAGES | fields)
    return snr.Snr(namespace(tree), Info(6, 3, 5, 50, axis_name=axis_name))


def test_maps_are_normalised_and_restored():
    """plus + minus = f + x, of the means that are kept too; without restitution instance norm is left."""
    x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (3, 5, 4, 8)), jnp.float32)
    module = restitution.Restitution(4, 3)
    norm = {"IN": {"scale": np.full(8, 1.5, np.float32), "bias": np.linspace(-1, 1, 8, dtype=np.float32)}}

    @jax.jit
    def run(x):
        params = module.init(jax.random.key(0), x, True)["params"] | norm
        plus, kept = module.apply({"params": params}, x, True, mutable=[restitution.KEPT])
        f = restitution.Restitution(restore=False).apply({"params": norm}, x, True)
        return f, plus, kept, module.apply({"params": params}, x, False)

    f, plus, kept, tested = run(x)
    x, f, plus = (np.asarray(y) for y in (x, f, plus))
    want = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(f, want * 1.5 + np.linspace(-1, 1, 8), atol=1e-4)
    kept = jax.device_get(kept[restitution.KEPT])
    a = kept["gate"][:, None, None]
    np.testing.assert_allclose(plus, f + a * (x - f), atol=1e-5)
    minus = f + (1 - a) * (x - f)
    np.testing.assert_allclose(kept["vectors"], [y.mean((1, 2)) for y in (f, plus, minus)], atol=1e-5)
    assert kept["logits"].shape == (3, 3, 3) and 0 < a.min() < a.max() < 1
    np.testing.assert_array_equal(tested, plus)  # and keeps nothing


def test_losses_by_definition():
    rng = np.random.default_rng(0)
    vectors, pid = rng.normal(size=(3, 6, 5)).astype(np.float32), np.array([0, 0, 1, 1, 2, 2])

    def d(u, w):
        return 0.5 - 0.5 * u @ w / np.linalg.norm(u) / np.linalg.norm(w)

    @jax.jit
    def run(vectors):
        hardest = causality.mined(vectors, pid, "plus")
        return hardest, causality.by_triplets(vectors, *hardest), causality.by_entropy(vectors)

    hardest, triplets, entropy_losses = jax.device_get(run(vectors))
    losses = np.zeros(2)
    for i in range(6):
        far = [np.linalg.norm(vectors[1, i] - v) for v in vectors[1]]
        p = max((j for j in range(6) if pid[j] == pid[i]), key=far.__getitem__)
        n = min((j for j in range(6) if pid[j] != pid[i]), key=far.__getitem__)
        assert (int(hardest.positive[i]), int(hardest.negative[i])) == (p, n)
        near, other = ([d(v[i], v[j]) for v in vectors] for j in (p, n))
        losses[0] += np.log1p(np.exp(near[1] - near[0])) + np.log1p(np.exp(other[0] - other[1]))
        losses[1] += np.log1p(np.exp(near[0] - near[2])) + np.log1p(np.exp(other[2] - other[0]))
    np.testing.assert_allclose(triplets, losses / 6, rtol=1e-5)
    p = np.exp(vectors) / np.exp(vectors).sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1).mean(-1)
    want = [np.log1p(np.exp(entropy[1] - entropy[0])), np.log1p(np.exp(entropy[0] - entropy[2]))]
    np.testing.assert_allclose(entropy_losses, want, rtol=1e-5)


def test_random_rows_are_of_the_right_people():
    keys = jax.random.split(jax.random.key(0), 6)
    pid = np.array([0, 0, 0, 1, 1, 2])
    found = causality.mined(None, pid, "random", keys)
    positive, negative = np.asarray(found.positive), np.asarray(found.negative)
    np.testing.assert_array_equal(pid[positive], pid)
    assert (pid[negative] != pid).all() and (positive != np.arange(6))[:5].all() and positive[5] == 5


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"mining": "random"}, {"loss": "entropy"}, {"bn_eval": True}])
def test_devices_equal_one(fields):
    m = method(AXIS, **fields)
    state = drawn(m)
    one, figures = Stepping(m.step)(state, {"train": random_batch()}, steps=2)
    two, others = Stepping(m.step, 2)(state, {"train": random_batch()}, steps=2)
    assert difference(one.nets, two.nets) < 1e-3 < difference(one.nets, state.nets)
    still = difference(one.nets["net"]["batch_stats"]["base"], state.nets["net"]["batch_stats"]["base"]) == 0
    assert still == ("bn_eval" in fields)
    for name, value in figures.items():
        np.testing.assert_allclose(value, others[name], rtol=2e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_what_a_row_of_the_ablation_leaves_out():
    """Gradient into the normalised map's vectors, and the losses that are named."""
    kept = [{"vectors": jnp.asarray(np.random.default_rng(s).normal(size=(3, 4, 5)))} for s in (0, 1)]
    pid = np.array([0, 0, 1, 1])

    def grads(**fields):
        m = method(**fields)
        return jax.grad(lambda kept: m.causality(kept, pid)[0])(kept), m.causality(kept, pid)[1]

    grad, figures = grads()
    assert set(figures) == {"plus", "minus"} and all(g.any() for g in grad[0]["vectors"])
    grad, figures = grads(minus=False, detach_f=True)
    assert set(figures) == {"plus"}
    assert [bool(g.any()) for g in grad[0]["vectors"]] == [False, True, False]
    assert method(restore=False).causality(kept, pid) == (0.0, {})


@pytest.mark.parametrize("fields, message", [
    (dict(stages=(1, 5)), "snr.stages"), (dict(stages=(1,)), "snr.weights"), (dict(loss="x"), "snr.loss"),
    (dict(mining="x"), "snr.mining"), (dict(reduction=0), "snr.reduction"),
    (dict(model=dict(head="contrast")), "model.head"),
])  # fmt: skip
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        method(**fields)


def test_it_stands_behind_the_stages_of_mobilenet_too():
    sizes = dict(backbone="mobilenetv2", mobilenet_width=0.25, mobilenet_blocks=(1, 1, 1, 1, 1, 1, 1))
    m = method(model=sizes, stages=(1, 4))
    shapes = jax.eval_shape(m.init, jax.random.key(0)).nets["net"]["params"]["base"]
    assert {n for n in shapes if n.startswith("restitution")} == {"restitution1", "restitution4"}


def test_configs_have_the_papers_settings():
    t = config_of("snr.py:market")
    assert (t.data.ids, t.data.instances, t.data.erase, t.data.flip) == (24, 4, 0.0, 0.5)
    assert (t.optim.lr, t.optim.gamma, t.optim.warmup_epochs, t.optim.warmup_factor) == (8e-4, 0.5, 20, 0.01)
    assert t.snr.weights == (0.1, 0.1, 0.5, 0.5) and t.snr.stages == (1, 2, 3, 4)
    entropy = config_of("snr.py:market-entropy").snr
    assert (entropy.stages, entropy.weights, entropy.last_ce) == ((1, 2, 3), (0.01,) * 3, 0.01)
