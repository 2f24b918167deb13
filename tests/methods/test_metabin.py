"""MetaBIN: who moves whom, the meta gradient, devices, domains of a batch, losses against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of
from small import Stepping, difference, drawn

from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError, DataError
from reid_jax.fields import namespace
from reid_jax.losses import across
from reid_jax.methods import Info, defaults, metabin
from reid_jax.models import weights
from reid_jax.train.devices import AXIS

DOMAINS, K = 3, 2


def method(axis_name=AXIS, rows=None, norm="metabin", dtype="float32", domains=DOMAINS, **fields):
    """A narrow MetaBIN of three domains; fields of config.metabin."""
    tree = defaults("metabin")
    tree["data"].update(height=16, width=8, ids=2, instances=4, meta_ids=2, meta_instances=K)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 6), narrow_stripes=1, narrow_dim=8, norm=norm)
    tree["model"].update(bn_group="global", neck="bnneck", dtype=dtype)
    tree["loss"].update(triplet="euclidean", feature="before_bn")
    tree["optim"].update(kind="sgd", lr=0.02, milestones=(), groups=(("bias$", 2.0, None),))
    tree["metabin"].update(dict(train_domains=2, first_base=3, ratio=(0.5, 1.0)) | fields)
    info = Info(12, 3, 7, 70, axis_name=axis_name, domains=(2,) * domains, labelled=rows)
    return metabin.MetaBin(namespace(tree), info)


def blank_draws(size):
    zeros = np.zeros((size, 2, 4), np.int32)
    return {"flip": zeros[..., 0] > 0, "crop": zeros[..., :2], "erase": zeros}


def batch(seed=0, ids=2):
    """{"base", "meta"}: random images; row (p S + s) K + k of "meta" is of identity p of domain s."""
    rng, size = np.random.default_rng(seed), ids * DOMAINS * K
    p, s, _ = np.unravel_index(np.arange(size), (ids, DOMAINS, K))
    base = {"pid": (np.arange(8) // 4).astype(np.int32)}
    meta = {"pid": (ids * s + p).astype(np.int32), "domain": s.astype(np.int32)}
    return {
        name: rows | blank_draws(n) | {"image": rng.integers(0, 256, (n, 16, 8, 3), np.uint8)}
        for name, rows, n in (("base", base, 8), ("meta", meta, size))
    }


def without_gates(net):
    zero = {path: 0 * gate for path, gate in metabin.gates_of(net).items()}
    return metabin.with_gates(net, zero)


@pytest.fixture(scope="module")
def trained():
    """(method, state, its compiled step)."""
    m = method(second_order=True)
    state = drawn(m)
    half = {path: 0.5 + 0 * gate for path, gate in metabin.gates_of(state.nets["net"]).items()}
    state = state._replace(nets={"net": metabin.with_gates(state.nets["net"], half)})
    return m, state, Stepping(m.step)


# ---- the step


@pytest.mark.slow
def test_gates_move_in_the_meta_step_only_and_nothing_else_does(trained):
    """Two steps from one state, without and with its meta half."""
    _, state, step = trained
    early, figures = step(state, batch())
    late, _ = step(fast_forward(state, 2), batch())
    first, *moved = (s.nets["net"] for s in (state, early, late))
    assert difference(metabin.gates_of(moved[0]), metabin.gates_of(first)) == 0
    gates = metabin.gates_of(moved[1])
    assert len(gates) == 4 and all((g != 0.5).all() and 0 <= g.min() < g.max() <= 1 for g in gates.values())
    assert difference(without_gates(moved[0]), without_gates(moved[1])) == 0
    assert difference(early.opt["net"], late.opt["net"]) == 0
    assert difference(early.nets["net"]["batch_stats"], first["batch_stats"]) > 1e-3
    was = weights.leaves(first)
    still = {path for path, leaf in weights.leaves(moved[0]).items() if not np.abs(leaf - was[path]).max()}
    assert still == {p for p in was if p[-1] == "gate"} | {("params", "neck", "bias")}
    assert figures["gates_high"] == 0 and int(late.step) == 3
    assert set(figures) <= {*metabin.METRICS, "loss", "lr"}


def fast_forward(state, step):
    """The state as if so many steps had been taken."""
    count = jax.tree.map(lambda x: jnp.int32(step), state.opt["gates"])
    return state._replace(step=jnp.int32(step), opt=state.opt | {"gates": count})


@pytest.mark.slow
def test_two_devices_equal_one(trained):
    """With norms over all devices, also through the gradient of the virtual step."""
    m, state, single = trained
    state = fast_forward(state, 2)
    one, figures = single(state, batch, steps=2)
    two, others = Stepping(m.step, 2)(state, batch, steps=2)
    assert difference(one.nets, two.nets) < 2e-5 < 1e-3 < difference(one.nets, state.nets)
    for name, value in figures.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_meta_gradients_are_slopes():
    """In float64 along a random direction: of meta-train, of meta-test behind the virtual step, and of
    meta-test at gates held where that leads, which is what the gradient of first order is."""
    with jax.enable_x64(True):
        m = method(None, dtype="float64", second_order=True, gate_factor=1.0, ce=0.5)
        state = jax.tree.map(lambda x: np.asarray(x, float) if x.dtype.kind == "f" else x, drawn(m))
        rng, net = np.random.default_rng(0), state.nets["net"]
        gates = {p: rng.uniform(0.3, 0.7, g.shape) for p, g in metabin.gates_of(net).items()}
        along = {p: rng.normal(size=g.shape) for p, g in gates.items()}
        halves = m.split(batch(ids=4)["meta"], jax.random.key(0))
        run = jax.jit(lambda s, ratio: m.meta(s, *halves, ratio)[1:])

        def at(gates, ratio):
            return jax.device_get(run(state._replace(nets={"net": metabin.with_gates(net, gates)}), ratio))

        def slope(gates, metric, ratio, h=1e-5):
            ends = [at({p: g + s * along[p] for p, g in gates.items()}, ratio)[1][metric] for s in (h, -h)]
            return float(ends[0] - ends[1]) / (2 * h)

        def product(grad):
            return sum(float((g * along[p]).sum()) for p, g in grad.items())

        (inner, outer), metrics = at(gates, 0.9)
        assert product(inner) == pytest.approx(slope(gates, "meta_train", 0.9), rel=1e-5)
        assert product(outer) == pytest.approx(slope(gates, "meta_test", 0.9), rel=1e-5)
        virtual = {p: g - 0.9 * m.config.optim.lr * inner[p] for p, g in gates.items()}
        (_, held), figures = at(virtual, 0.0)
        assert float(figures["meta_test"]) == pytest.approx(float(metrics["meta_test"]), rel=1e-9)
        assert product(held) == pytest.approx(slope(virtual, "meta_test", 0.0), rel=1e-5)
        assert abs(product(outer) - product(held)) > 1e-4 * abs(product(held))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "metabin"])
def test_all_weights_take_the_virtual_step(norm):
    """MLDG against its definition: two plain steps of descent, each on gradients taken here."""
    m = method(None, norm=norm, params="all", gate_factor=1.0, ce=1.0, scatter=0.0, shuffle=0.0)
    state = fast_forward(drawn(m), 2)
    net, key = state.nets["net"], m.key(state)
    train, test = m.split(batch(ids=4)["meta"], jax.random.key(0))
    new, _, metrics = jax.jit(lambda s: m.meta(s, train, test, 0.5))(state)

    def bounded(path, x):
        return x.clip(0, 1) if "gate" in jax.tree_util.keystr(path) else x

    def descended(start, at, loss, rate):
        grads = jax.jit(jax.grad(lambda p: loss({**net, "params": p})))(at)
        moved = jax.tree.map(lambda p, g: p - rate * g, start, grads)
        moved = jax.tree_util.tree_map_with_path(bounded, moved)
        return moved | {"neck": moved["neck"] | {"bias": start["neck"]["bias"]}}  # is frozen

    rate, start, got = m.config.optim.lr, net["params"], new.nets["net"]["params"]
    virtual = descended(start, start, lambda n: m.meta_train(n, train, key)[0], 0.5 * rate)
    want = descended(start, virtual, lambda n: sum(m.losses(n, test, key)[1:]), rate)
    assert difference(got, want) < 1e-5 < 1e-3 < difference(got, start)
    assert ("gates_low" in metrics) == (norm == "metabin")


def test_rates_of_gates_and_virtual_step():
    """Figures by hand: 5 epochs of 7 steps, 17 of them up from the foot and 18 down."""
    m = method(ratio=(0.001, 0.1), first_base=10)
    found = [float(m.ratio(s)) for s in (0, 9, 10, 25, 26, 43, 44)]
    want = [0.001 + 0.099 * x for x in (1 / 17, 1 / 17, 2 / 17, 1, 17 / 18, 0, 1 / 17)]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert [float(m.gate_rate(s)) for s in (0, 8, 9, 500)] == pytest.approx([0, 0, 0.2, 0.2])


# ---- domains


def test_a_meta_batch_is_split_by_domains():
    m, rows = method(), batch(ids=4)["meta"]
    rows["image"][:, 0, 0, 0] = rows["pid"]
    seen = set()
    for seed in range(8):
        train, test = m.split(rows, jax.random.key(seed))
        first, other = (set(half["domain"].tolist()) for half in (train, test))
        assert len(first) == 2 and len(other) == 1 and not first & other
        for half, count in ((train, 16), (test, 8)):
            np.testing.assert_array_equal(half["image"][:, 0, 0, 0], half["pid"])
            assert len(half["pid"]) == count and set(np.bincount(half["pid"])) <= {0, K}
        seen.add(tuple(other))
    assert len(seen) == DOMAINS
    with pytest.raises(ConfigError, match="data.meta_ids must be a multiple of the number of devices"):
        m.split({n: x[:8] for n, x in rows.items()}, jax.random.key(0))


def rows_of(domains):
    """Rows of four identities with four images in each domain."""
    count = np.repeat(np.arange(4 * domains), 4).astype(np.int32)
    return Rows(0, count, count // 4 // 4, count // 4)


@pytest.mark.parametrize("domains, train", [(2, 1), (3, 2), (5, 3), (6, 3), (8, 4)])
def test_half_of_the_domains_take_the_virtual_step(domains, train):
    """Of five, six and eight as many as in the published settings."""
    assert method(rows=rows_of(domains), domains=domains, train_domains=0).train_domains == train


def test_streams():
    m = method(rows=rows_of(3))
    streams = m.streams(None)
    assert {n: s.size for n, s in streams.items()} == {"base": 8, "meta": 12}
    assert m.info.steps_per_epoch == streams["base"].steps_per_epoch
    domain = m.info.labelled.domain[streams["meta"].sampler.batch(5)]
    np.testing.assert_array_equal(domain, np.tile(np.repeat(np.arange(3), K), 2))


@pytest.mark.parametrize("fields, error, message", [
    (dict(rows=rows_of(3), train_domains=3), ConfigError, "metabin.train_domains must be .* less than 3"),
    (dict(rows=rows_of(3), train_domains=-1), ConfigError, "metabin.train_domains"),
    (dict(rows=rows_of(1)), DataError, "config.data.domains=camera"),
    (dict(norm="batch"), ConfigError, "config.model.norm is 'batch'"),
    (dict(params="weights"), ConfigError, "config.metabin.params"),
])  # fmt: skip
def test_what_cannot_be_trained(fields, error, message):
    with pytest.raises(error, match=message):
        method(**fields)


# ---- losses


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_losses_by_definition():
    """Domains of 5, 4 and 2 rows, the last one of a single identity."""
    f = np.random.default_rng(0).normal(size=(11, 6)).astype(np.float32)
    domain = np.array([0, 1, 0, 2, 1, 0, 1, 0, 2, 1, 0])
    pid = np.array([0, 3, 1, 5, 3, 1, 4, 0, 5, 4, 2])
    groups = [unit(f[domain == d]) for d in range(3)]
    want = np.mean([np.mean(g @ unit(g.mean(0))) for g in groups])
    np.testing.assert_allclose(across.scatter(jnp.asarray(f), domain), want, rtol=1e-5)
    values = []
    for i in range(11):
        d = [np.linalg.norm(f[i] - g) for g in f]
        near = [d[j] for j in range(11) if domain[j] == domain[i] and pid[j] != pid[i]]
        far = [d[j] for j in range(11) if domain[j] != domain[i]]
        values += [np.log1p(np.exp(max(far) - min(near)))] if near else []
    assert len(values) == 9
    np.testing.assert_allclose(across.shuffle(jnp.asarray(f), pid, domain), np.mean(values), rtol=1e-5)


# ---- weights


def test_weights_of_an_ordinary_net_go_to_its_batch_norms(trained):
    m, state, _ = trained
    plain = method(norm="bin")  # has no bat_n either
    entries = weights.to_torch(
        jax.tree.map(lambda x: np.full(x.shape, 3, np.float32), drawn(plain).nets["net"])
    )
    entries = {k: v for k, v in entries.items() if not k.endswith("gate")}
    new = m.warm_start(state, lambda name, variables: weights.load(entries, variables)[0]).nets["net"]
    for path, leaf in weights.leaves(new).items():
        assert (np.asarray(leaf) == 3).all() == (path[-1] != "gate" and "ins_n" not in path), path


def test_configs_have_the_published_settings():
    t = config_of("metabin.py:protocol1")
    assert (t.data.ids, t.data.instances, t.data.meta_ids, t.data.meta_instances) == (20, 4, 4, 4)
    assert (t.data.flip, t.data.pad_crop, t.data.erase, t.loss.label_smooth) == (0.5, 10, 0.0, 0.1)
    assert (t.optim.kind, t.optim.lr, t.optim.momentum, t.optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (t.train.epochs, t.optim.milestones, t.optim.gamma) == (100, (40, 70), 0.1)
    assert (t.optim.warmup_factor, t.loss.smoothing) == (0.01, "others")
    assert t.optim.groups == (("bias$", 2.0, None),) and (t.model.norm, t.model.neck) == ("metabin", "bnneck")
    usual = ("gates", 3, 10.0, (0.001, 0.1), 5, 10, 1.0, 1.0, 1.0, 0.0, False)
    assert tuple(t.metabin[name] for name in metabin.FIELDS) == usual
    for name, domains, factor in (("market", 3, 20.0), ("duke", 4, 50.0)):
        t = config_of(f"metabin.py:{name}")
        assert (t.data.domains, t.data.ids * t.data.instances, t.train.epochs) == ("camera", 96, 120)
        assert (t.metabin.train_domains, t.metabin.gate_factor, t.metabin.ce) == (domains, factor, 1.0)
