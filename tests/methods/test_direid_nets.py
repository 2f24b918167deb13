"""DI-REID's networks: published sizes, layers against loops, what attention and replay may touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods.direid_small import config, info, triples
from small import difference, drawn

from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import Info, direid
from reid_jax.methods.direid import dfen, gan, judges, nets
from reid_jax.models import blocks, modes
from reid_jax.models import gan as generators


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def full_size():
    """{network: params' shapes} of the paper's preset with MLR-CUHK03's 1367 identities."""
    tree = methods.defaults("direid")
    tree["model"].update(last_stride=2, pool="max")
    method = gan.Ddgan(namespace(tree), Info(1367, 2, 1, 1))
    state = jax.eval_shape(method.init, jax.random.key(0))
    return {n: v["params"] for n, v in state.nets.items()}, method.modules


@pytest.mark.slow
def test_published_sizes(full_size):
    """Millions of parameters."""
    p, _ = full_size
    millions = {
        "stem": (p["E_con"]["base"], 8.54),
        "head": (p["E_con"]["head"], 13.64),
        "E_con": (p["E_con"], 23.9),
        "G": (p["G"], 5.14),
        "decoder": (p["G"]["dec"], 1.46),
        "E_id": (p["E_id"], 25.3),
        "D_deg": (p["D_deg"], 0.342),
        "D_real": (p["D_real"], 3 * 0.342),
    }
    for name, (tree, wanted) in millions.items():
        assert abs(count(tree) / 1e6 - wanted) < 0.006 * wanted, name
    one = {k: v for k, v in p["E_deg"].items() if "sync" not in k}
    assert abs(2 * count(one) - count(p["E_deg"])) == 0  # E_d and E'_d share nothing


@pytest.mark.slow
def test_shapes_at_full_size(full_size):
    _, modules = full_size
    image = jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32)

    def maps(x):
        variables = nets.init(modules["D_real"], jax.random.key(0), x)
        return modules["D_real"].apply(variables, x)

    assert [o.shape[1:3] for o in jax.eval_shape(maps, image)] == [(64, 32), (32, 16), (16, 8)]

    def content(x):
        E_con = modules["E_con"]
        return E_con.apply(nets.init(E_con, jax.random.key(0), x), x, False)

    f, code = jax.eval_shape(content, image)
    assert f.shape == (2, 2048) and code.shape == (2, 64, 32, 128)


def test_journal_shares_the_trunk():
    tree = methods.defaults("direid")
    tree["direid"].update(direid.PRESETS["journal"])
    net = nets.degradation_encoder(namespace(tree))
    image = jnp.zeros((1, 64, 32, 3))
    params = jax.eval_shape(lambda: nets.init(net, jax.random.key(0), image))["params"]
    assert abs(count(params) / 1e6 - 1.65) < 0.01


# ---- layers


@pytest.mark.parametrize("size,out", [((4, 3), (8, 6)), ((5, 2), (7, 5)), ((1, 3), (4, 3))])
def test_upsample_by_a_loop(size, out):
    x = np.random.default_rng(0).standard_normal((1, *size, 2))
    want = np.zeros((1, *out, 2))
    for i in range(out[0]):
        for j in range(out[1]):
            y = i * (size[0] - 1) / (out[0] - 1)
            z = j * (size[1] - 1) / (out[1] - 1)
            a, b = int(y), int(z)
            e, f = min(a + 1, size[0] - 1), min(b + 1, size[1] - 1)
            v, w = y - a, z - b
            top = (1 - w) * x[0, a, b] + w * x[0, a, f]
            want[0, i, j] = (1 - v) * top + v * ((1 - w) * x[0, e, b] + w * x[0, e, f])
    np.testing.assert_allclose(blocks.upsample(jnp.asarray(x, jnp.float32), *out), want, atol=1e-6)


def test_decoder_norm():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)) * 3 + 1
    params = {"gamma": jnp.arange(5.0), "beta": jnp.ones(5)}
    want = np.stack([(v - v.mean()) / (v.std(ddof=1) + 1e-5) for v in x]) * np.arange(5) + 1
    got = blocks.LayerNorm().apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_discriminator_pools_over_real_pixels():
    """The second scale sees 3x3 means whose divisor leaves the padding out: a constant stays one."""
    net = generators.Discriminator(2, 2, 1)
    x = jnp.full((1, 16, 12, 3), 0.7)
    maps = jax.jit(lambda x: net.apply(nets.init(net, jax.random.key(0), x), x))(x)
    assert [o.shape for o in maps] == [(1, 4, 3, 1), (1, 2, 2, 1)]
    assert float(jnp.ptp(maps[1])) < 1e-6


@pytest.fixture(scope="module")
def encoder():
    """(E_con, variables, images) of the narrow config."""
    m, x = config(), triples()["x_i"]
    net = nets.content_encoder(m, info())
    return net, jax.jit(lambda k, x: nets.init(net, k, x))(jax.random.key(0), x), x


@pytest.mark.slow
def test_gradients_of_the_stem(encoder):
    """Content and f_inv of the first stage leave the stem alone, `identity` reaches it."""
    net, variables, x = encoder

    def loss(stem, method):
        params = {**variables["params"], "base": stem}
        out = net.apply({**variables, "params": params}, x, False, method=method)
        return sum(jnp.square(v).sum() for v in jax.tree.leaves(out))

    for method, expected in ((None, False), ("identity", True)):
        grads = jax.jit(jax.grad(loss), static_argnums=1)(variables["params"]["base"], method)
        assert any(np.any(g) for g in jax.tree.leaves(grads)) == expected


@pytest.mark.slow
def test_calls_move_only_their_statistics(encoder):
    net, variables, x = encoder
    run = jax.jit(lambda v, x: modes.call(net, v, x, train=True, method="content"))
    _, stats = run(variables, x)
    for name, old in variables["batch_stats"]["head"].items():
        assert (difference(old, stats["head"][name]) > 0) == (not name.startswith("identity_"))


@pytest.mark.slow
def test_two_halves_are_two_calls(encoder):
    """`each` gives what one call after the other gives, statistics too."""
    net, variables, x = encoder
    both = jnp.stack([x, triples(5)["x_k"]])
    (f, code), stats = jax.jit(lambda b: modes.each(net, variables, b, train=True))(both)
    run = jax.jit(lambda v, x: modes.call(net, v, x, train=True))
    (f_a, c_a), first = run(variables, both[0])
    (f_b, c_b), second = run({**variables, "batch_stats": first}, both[1])
    assert difference([f, code], [jnp.stack([f_a, f_b]), jnp.stack([c_a, c_b])]) < 1e-4
    assert difference(stats, second) < 1e-5


def test_one_scale():
    """The ablation keeps the last map only."""
    net = nets.content_encoder(config(multi_scale=False), info())
    x = triples()["x_i"]
    shapes = jax.eval_shape(lambda: nets.init(net, jax.random.key(0), x))
    names = set(shapes["params"]["head"])
    assert "aspp" not in names and {n for n in names if n.startswith("invariance")} == {"invariance_0"}
    f, code = jax.eval_shape(lambda v: net.apply(v, x, False), shapes)
    assert f.shape == (4, 12) and code.shape == (4, 8, 8, 8)


def test_what_cannot_be():
    """Configs that name no DI-REID, and what their errors say."""

    def refused(match, build, model=(), **fields):
        m = config(**fields)
        vars(m.model).update(model)
        with pytest.raises(ConfigError, match=match):
            build(m, info())

    refused("ap3d_resnet50", nets.content_encoder, dict(backbone="ap3d_resnet50"))
    refused("narrow_widths", nets.content_encoder, dict(narrow_widths=(4, 8)))
    refused("style", nets.content_encoder, dict(style="mixstyle"))
    refused("guided", dfen.Dfen, attention_form="guided")
    refused("direid.replay", dfen.Dfen, replay="memory")


# ---- second stage


@pytest.mark.parametrize(
    "source,form",
    [
        ("score", "sigmoid"),
        pytest.param("feature", "softmax", marks=pytest.mark.slow),
        pytest.param("code", "guided", marks=pytest.mark.slow),
        pytest.param("self", "sigmoid", marks=pytest.mark.slow),
    ],
)
def test_attention_inputs(source, form):
    """Shapes of all forms, and the networks that they need."""
    method = dfen.Dfen(config(attention_input=source, attention_form=form), info())
    nets_ = jax.eval_shape(method.init, jax.random.key(0)).nets
    assert ("D_deg" in nets_) == (source in ("score", "feature"))

    def forward(nets_, x):
        out, stats = method.forward(nets_, x, True, jax.random.key(0))
        return out.f_fuse, out.test()["fuse"], stats

    fused, test, stats = jax.eval_shape(forward, nets_, triples()["x_i"])
    assert fused.shape == (4, 8 + 12) and test.shape == (4, 12) and "A_deg" in stats


@pytest.fixture(scope="module")
def second():
    """(before, after, metrics, outputs before) of one step of the paper's second stage."""
    method = dfen.Dfen(config(multi_scale=False), info())
    x, pid = triples()["x_i"], jnp.array([0, 0, 1, 1])
    state = drawn(method)

    def step(state):
        out, _ = method.forward(state.nets, x, False)
        weights = method.apply(
            state.nets, "A_deg", *method.described(state.nets, x, out.f_sen, False, None), False
        )
        f_sen = method.apply(state.nets, "E_id", x, False)
        by_hand = weights, f_sen, judges.scores(method.modules["D_deg"], state.nets["D_deg"], x)
        return method.update(state, x, pid, jax.random.key(1)), out, by_hand

    (new, metrics), out, by_hand = jax.jit(step)(state)
    return state, new, metrics, out, by_hand


@pytest.mark.slow
def test_second_stage_trains_all_but_d_deg(second):
    old, new, metrics, *_ = second
    assert difference(old.nets["D_deg"], new.nets["D_deg"]) == 0
    for net in dfen.TRAINED:
        assert difference(old.nets[net]["params"], new.nets[net]["params"]) > 0, net
        assert difference(old.nets[net]["batch_stats"], new.nets[net]["batch_stats"]) > 0, net
    for part in (old.nets["E_con"]["params"]["base"], old.nets["E_id"]["params"]["base"]):
        assert count(part) > 0
    base = [s.nets["E_con"]["params"]["base"] for s in (old, new)]
    assert difference(*base) > 0  # the identity path reaches the stem
    total = metrics["fuse"] + metrics["inv"] + metrics["sen"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


@pytest.mark.slow
def test_features_are_in_the_stated_order(second):
    old, _, _, out, (weights, f_sen, scores) = second
    np.testing.assert_array_equal(out.f_fuse, jnp.concatenate([out.f_sen, out.f_inv], -1))
    assert ((weights > 0) & (weights < 1)).all()
    np.testing.assert_allclose(out.f_sen, f_sen * weights, rtol=1e-4, atol=1e-6)
    by_scores = dfen.Dfen(config(), info()).apply(old.nets, "A_deg", scores, False)
    np.testing.assert_allclose(weights, by_scores, rtol=1e-4, atol=1e-6)


def test_degradation_score():
    """The mean over scales, its sign turned."""

    class Net:
        def apply(self, params, x):
            return [x + 1, 3 * x[:, :1]]

    x = jnp.arange(8.0).reshape(2, 2, 2, 1)
    want = [-((1.5 + 1) + 3 * 0.5) / 2, -((5.5 + 1) + 3 * 4.5) / 2]
    np.testing.assert_allclose(judges.degradation_score(Net(), None, x), want)


def test_agreement_of_replayed_images():
    """KL and JS by their definitions; detached ones move the replayed logits only."""
    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((2, 5, 4))
    a, b = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (p, q))
    kl = (a * np.log(a / b)).sum(-1).mean()
    m = (a + b) / 2
    js = ((a * np.log(a / m)).sum(-1) + (b * np.log(b / m)).sum(-1)).mean() / 2
    for kind, want in (("kl", kl), ("kl_detach", kl), ("js", js), ("js_detach", js)):
        value, (to_p, to_q) = jax.value_and_grad(lambda p, q, k=kind: dfen.agreement(p, q, k), (0, 1))(p, q)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        assert (np.abs(to_p).max() > 0) == (not kind.endswith("detach")) and np.abs(to_q).max() > 0
    with pytest.raises(ConfigError, match="replay_loss"):
        dfen.agreement(p, q, "l2")
