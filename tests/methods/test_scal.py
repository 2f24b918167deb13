"""SCAL: rewards by hand, who moves by which loss, attention of both kinds; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of, tiny
from small import difference, drawn
from stage_cases import batches, facts, parts

from reid_jax.errors import ConfigError
from reid_jax.methods import scal
from reid_jax.models import critic
from reid_jax.train import stages


def test_attention_of_both_kinds():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4, 8)), jnp.float32)
    for kind, shape in (("spatial", (2, 6, 4, 1)), ("channel", (2, 1, 1, 8))):
        module = critic.Attention(kind, 3, 4)
        variables = module.init(jax.random.key(0), x, True)
        y, kept = module.apply(variables, x, True, mutable=["attention"])
        seen, a = kept["attention"]["pair"]
        assert a.shape == shape and float(a.min()) > 0 and float(a.max()) < 1
        np.testing.assert_allclose(y, x * a, rtol=1e-6)
        np.testing.assert_array_equal(seen, x)
    row = jnp.arange(6.0)
    assert float(scal.correlation(row, 2 * row + 1)) == pytest.approx(1)
    assert float(scal.correlation(row, jnp.ones(6))) == 0


@pytest.fixture(scope="module")
def built():
    config, method = stages.build(tiny("scal"), "train", facts(tiny("scal"), cams=2, axis_name=None))
    return config, method, drawn(method)


def gradients(method, state, made, own):
    """Gradients of net and critic by one half of the game alone; own: critic or agent."""
    image, pid = method.view(made), made["pid"]

    def value(nets):
        out, _, pairs = method.attended(nets["net"], image)
        reward = method.reward(nets["net"], out, pairs[-1][0], pid)
        agent, error = method.game(nets["critic"], pairs, reward, {})
        return error if own == "critic" else agent

    return jax.jit(jax.grad(lambda p: value(put(state.nets, p))))(
        {n: v["params"] for n, v in state.nets.items()}
    )


def put(nets, params):
    return {name: {**nets[name], "params": p} for name, p in params.items()}


@pytest.mark.slow
def test_who_moves_by_which_loss(built):
    """The critic's error moves the critic alone, -V the net alone."""
    config, method, state = built
    (part,) = parts(method)
    made = batches(part, jax.tree.map(np.asarray, state), config.data)["train"]
    size = {}
    for own in ("critic", "agent"):
        found = gradients(method, state, made, own)
        size[own] = {name: max(float(abs(g).max()) for g in jax.tree.leaves(t)) for name, t in found.items()}
    assert size["critic"]["net"] == 0 < size["critic"]["critic"]
    assert size["agent"]["critic"] == 0 < size["agent"]["net"]


def test_rewards_by_hand(built):
    """1 for the right class, 1 more where its probability is above that without the last attention."""
    config, method, state = built
    (part,) = parts(method)
    made = batches(part, jax.tree.map(np.asarray, state), config.data)["train"]
    net = state.nets["net"]

    @jax.jit
    def attended(net, made):
        out, _, pairs = method.attended(net, method.view(made))
        return out.logits[0], pairs[-1], method.reward(net, out, pairs[-1][0], made["pid"])

    given, (x, a), reward = jax.tree.map(np.asarray, attended(net, made))

    @jax.jit
    def logits(x):
        return method.network.apply(net, x, True, method="of_map", mutable=["batch_stats"])[0].logits[0]

    attended, plain = jax.nn.softmax(logits(x * a)), jax.nn.softmax(logits(x))
    np.testing.assert_allclose(attended, jax.nn.softmax(given), atol=1e-5)
    rows, pid = np.arange(len(x)), made["pid"]
    expected = np.equal(attended.argmax(1), pid) * 1.0 + np.asarray(attended[rows, pid] > plain[rows, pid])
    np.testing.assert_array_equal(reward, expected)
    assert set(reward) <= {0.0, 1.0, 2.0} and len(set(reward)) > 1


def test_without_a_critic_there_is_one_network():
    config = config_of("scal.py:smoke-no_critic")
    _, method = stages.build(config, "train", facts(config, cams=2))
    assert set(stages.state_shapes(method).nets) == {"net"}
    paths = str(jax.tree_util.tree_structure(stages.state_shapes(method).nets))
    assert all(f"attention{stage}" in paths for stage in (1, 2, 3))


def test_a_fresh_state_has_no_attention_left_in_it(built):
    _, method, state = built
    assert {name: set(v) for name, v in state.nets.items()} == {
        "net": {"params", "batch_stats"},
        "critic": {"params"},
    }
    assert difference(state.nets, state.nets) == 0 and method.own.critic


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"scal__attention": "both"}, "spatial"),
        ({"scal__stages": (1, 2, 7)}, "has stages"),
        ({"scal__stages": (1, 2)}, r"behind stage 3 too"),
        ({"scal__kernel": 4}, "kernel is odd"),
        ({"scal__grid": (8,)}, "rows and columns"),
        ({"model__head": "contrast"}, "no classifier"),
        ({"data__frames": 4}, "for pictures"),
    ],
)
def test_what_cannot_be(changes, match):
    config = config_of("scal.py:smoke", **changes)
    with pytest.raises(ConfigError, match=match):
        stages.build(config, "train", facts(config, cams=2))
