"""Optimisers: groups and frozen leaves by pattern, bounds (step by step against torch: sup__optimisers)."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.methods import _optim

INFO = SimpleNamespace(steps_per_epoch=3, total_steps=20)
PARAMS = {
    "base": {"conv1": {"kernel": jnp.array([1.0, -2.0])}, "bn1": {"gate": jnp.array([0.95, 0.3])}},
    "neck": {"bias": jnp.array([0.0]), "scale": jnp.array([1.0])},
}


def optim(**fields):
    return namespace(defaults()["optim"] | fields)


def run(tx, steps=4, grad=1.0, params=PARAMS):
    """Params after each step on gradients that are all `grad`."""
    opt, seen = tx.init(params), [params]
    for _ in range(steps):
        delta, opt = jax.jit(tx.update)(jax.tree.map(lambda x: jnp.full_like(x, grad), params), opt, params)
        params = optax.apply_updates(params, delta)
        seen.append(params)
    return seen


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def by_hand(o, value, grad, steps=4, repeats=1):
    """Weights after each update of Adam with coupled decay, warm-up and milestones, in float64."""
    m, v, seen = 0.0, 0.0, [value]
    for update in range(steps):
        step = update // repeats
        rate = o.lr * o.gamma ** sum(step >= e * INFO.steps_per_epoch for e in o.milestones)
        rate *= min(1.0, (step + 1) / o.warmup_steps)
        g = grad + o.weight_decay * value
        m, v = o.b1 * m + (1 - o.b1) * g, o.b2 * v + (1 - o.b2) * g * g
        t = update + 1
        value = value - rate * m / (1 - o.b1**t) / (np.sqrt(v / (1 - o.b2**t)) + o.eps)
        seen.append(value)
    return seen


@pytest.mark.parametrize("repeats", [1, 2])
def test_adam_with_its_schedule(repeats):
    """Warm-up, a milestone within the run, several updates a step; both makers of it."""
    o = optim(lr=0.1, milestones=(1,), warmup_steps=2, gamma=0.1, weight_decay=0.1)
    for tx in (_optim.optimiser(o, INFO, repeats=repeats), _optim.adam(o, INFO, repeats=repeats)):
        got = [s["base"]["conv1"]["kernel"][1] for s in run(tx, 6)]
        np.testing.assert_allclose(got, by_hand(o, -2.0, 1.0, 6, repeats), rtol=1e-5)


def test_frozen_leaves_never_move():
    """By a net's own patterns or by a mask, nothing of them moves, decay neither; the others do."""
    o = optim(lr=0.1, milestones=(), weight_decay=0.1)
    net = SimpleNamespace(frozen=("^neck/scale$",), bounds=())
    for tx in (_optim.optimiser(o, INFO, net), _optim.adam(o, INFO, mask=_optim.trained(net.frozen))):
        last = run(tx)[-1]
        assert last["neck"]["scale"] == 1 and last["neck"]["bias"] < -0.1
    off = jax.tree_util.tree_leaves_with_path(_optim.trained(net.frozen)(PARAMS))
    assert [jax.tree_util.keystr(p) for p, m in off if not m] == ["['neck']['scale']"]


def test_groups_take_the_first_match():
    groups = (("conv1", 0.1, 0.0), ("^base", 2.0, None))
    o = optim(kind="sgd", lr=0.1, momentum=0.0, weight_decay=0.5, groups=groups, milestones=())
    first, second = run(_optim.optimiser(o, INFO), 1)
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), first, second)
    np.testing.assert_allclose(moved["base"]["conv1"]["kernel"], 0.01, rtol=1e-5)
    gate = 0.2 * (1 + 0.5 * np.array([0.95, 0.3]))
    np.testing.assert_allclose(moved["base"]["bn1"]["gate"], gate, rtol=1e-5)
    np.testing.assert_allclose(moved["neck"]["scale"], 0.1 * 1.5, rtol=1e-5)


def test_frozen_for_some_steps_and_for_good():
    o = optim(lr=0.1, milestones=(), freeze=("^base",), freeze_epochs=1, freeze_steps=1)
    seen = run(_optim.optimiser(o, INFO), 6)
    kernel = [s["base"]["conv1"]["kernel"][0] for s in seen]
    assert len(set(map(float, kernel[:5]))) == 1 and kernel[5] != kernel[4]
    assert seen[1]["neck"]["scale"] != 1
    fresh = run(_optim.optimiser(optim(lr=0.1, milestones=()), INFO), 1)[1]  # moments began afterwards
    np.testing.assert_allclose(kernel[5], fresh["base"]["conv1"]["kernel"][0], rtol=1e-6)
    seen = run(_optim.optimiser(optim(freeze=("^base",)), INFO), 3)
    assert_same(seen[3]["base"], PARAMS["base"])


def test_bounds_are_kept_and_moments_do_not_see_them():
    net = SimpleNamespace(frozen=(), bounds=(("gate$", 0.0, 1.0),))
    o = optim(kind="sgd", lr=0.1, weight_decay=0.0, milestones=())
    gates = [s["base"]["bn1"]["gate"] for s in run(_optim.optimiser(o, INFO, net), 3, grad=-1.0)]
    np.testing.assert_allclose(gates[1], [1.0, 0.4], rtol=1e-6)
    np.testing.assert_allclose(gates[2], [1.0, 0.59], rtol=1e-6)  # momentum: 0.1 (1 + 0.9)
    assert run(_optim.optimiser(o, INFO, net), 1, grad=-20.0)[1]["base"]["conv1"]["kernel"][0] == 3


def test_amsgrad_keeps_the_largest_raw_moment():
    """A large gradient and then small ones, by hand."""
    tx, grads = _optim.scale_by_amsgrad(0.9, 0.99, 0.0), [4.0, 1.0, 1.0]
    state, m, v, most = tx.init({"w": jnp.zeros(())}), 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        got, state = tx.update({"w": jnp.float32(g)}, state)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        most = max(most, v)
        want = m / (1 - 0.9**t) / np.sqrt(most / (1 - 0.99**t))
        np.testing.assert_allclose(got["w"], want, rtol=1e-5)


def test_an_unknown_kind():
    with pytest.raises(ConfigError, match="optim.kind"):
        _optim.optimiser(optim(kind="lion"), INFO)


@pytest.mark.parametrize("fields,message", [
    (dict(groups=(("convv", 1.0, None),)), "groups.*convv"), (dict(freeze=("head",)), "freeze.*head"),
])  # fmt: skip
def test_patterns_that_match_nothing(fields, message):
    """Of any network; one that matches in another is fine."""
    with pytest.raises(ConfigError, match=message):
        _optim.check_patterns(optim(**fields), [PARAMS])
    _optim.check_patterns(optim(**fields), [PARAMS, {"head": {"convv": np.zeros(1)}}])
