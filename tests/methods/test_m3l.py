"""M3L: the four gradients, devices, memories, places, ablations (a recorded iteration: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of
from small import Stepping, difference, drawn

from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError, DataError
from reid_jax.fields import namespace
from reid_jax.methods import Info, _optim, _steps, defaults, m3l
from reid_jax.models import layers, metabn
from reid_jax.train.devices import AXIS

DOMAINS, P, K = 3, 2, 2


def rows_of(domains=DOMAINS, people=3):
    """Rows of so many identities with four images in each domain."""
    pid = np.repeat(np.arange(people * domains), 4).astype(np.int32)
    camid = np.tile(np.arange(2), len(pid) // 2).astype(np.int32)
    return Rows(0, pid, camid, pid // people)


def method(axis_name=None, rows=None, model=(), dtype="float32", ids=P, **fields):
    """A narrow M3L of three domains; fields of config.m3l."""
    tree = defaults("m3l")
    tree["data"].update(height=16, width=8, ids=ids, instances=K)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 6), narrow_stripes=1, narrow_dim=8, dtype=dtype)
    tree["model"].update(dict(head="contrast", contrast_bias=True, bn_group="global") | dict(model))
    tree["loss"].update(triplet="euclidean")
    tree["optim"].update(lr=0.01, milestones=(), eps=1e-3)
    tree["m3l"].update(fields)
    rows = rows_of() if rows is None else rows
    info = Info(rows.num_pids, 2, axis_name=axis_name, domains=rows.ids_of_domains, labelled=rows)
    return m3l.M3l(namespace(tree), info)


def batch(seed=0, ids=P, people=3):
    """Random images; row (p S + s) K + k is of identity p of domain s."""
    rng, size = np.random.default_rng(seed), ids * DOMAINS * K
    p, s, _ = np.unravel_index(np.arange(size), (ids, DOMAINS, K))
    zeros = np.zeros((size, 2, 4), np.int32)
    draws = {"flip": zeros[..., 0] > 0, "crop": zeros[..., :2], "erase": zeros}
    image = rng.integers(0, 256, (size, 16, 8, 3), np.uint8)
    made = {"image": image, "pid": (people * s + p).astype(np.int32), **draws}
    return {name: jnp.asarray(x) for name, x in made.items()}


def begun(m):
    """A state whose memory is random unit rows, float64."""
    state = drawn(m)
    rng = np.random.default_rng(0)
    if m.own.memory:
        bank = rng.normal(size=state.memory["rows"].shape)
        state = state._replace(memory={"rows": bank / np.linalg.norm(bank, axis=1, keepdims=True)})
    return jax.tree.map(lambda x: np.asarray(x, float) if x.dtype.kind == "f" else x, state)


@pytest.fixture(scope="module")
def steps():
    """{outer: (iteration, State, what it gives)} in float64, quick to compile; domain 1 is left out."""
    found, noise = {}, np.random.default_rng(1).normal(size=(DOMAINS - 1, P * K, 8))
    with jax.enable_x64(True), layers.form("plain"):
        for outer in ("full", "reference", "first_order", "meta_train"):
            m = method(outer=outer, dtype="float64")
            state = begun(m)
            run = jax.jit(lambda s, m=m: m.iterate(s, m.by_domain(batch()), 1, 0.3, lambda shape: noise))
            found[outer] = run, state, jax.device_get(run(state))
    return found


def along(tree, seed=5):
    """A random direction in a tree, a perturbation of every leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), tree)


def product(a, b):
    return sum(float((x * y).sum()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_gradient_of_the_paper_is_a_slope():
    """Of the whole objective by finite differences; the code's and the first order's are not.

    Without MetaBN, whose statistics are constants to the gradient, as in the code.
    """
    with jax.enable_x64(True), layers.form("plain"):
        found = {}
        for outer in ("full", "reference", "first_order", "meta_train"):
            m = method(outer=outer, dtype="float64", metabn=False)
            state = begun(m)
            run = jax.jit(lambda s, m=m: m.iterate(s, m.by_domain(batch()), 1, 0.3, None))
            found[outer] = run, jax.device_get(run(state)[2]["net"])
        net, run = state.nets["net"], found["full"][0]
        direction, h = along(net["params"]), 1e-6

        def loss(step):
            params = jax.tree.map(lambda p, d: p + step * d, net["params"], direction)
            return float(run(state._replace(nets={"net": {**net, "params": params}}))[1]["loss"])

        slope = (loss(h) - loss(-h)) / (2 * h)
    sizes = {outer: product(grads, direction) for outer, (_, grads) in found.items()}
    assert sizes["full"] == pytest.approx(slope, rel=1e-5)
    assert all(abs(sizes[o] - slope) > 1e-4 * abs(slope) for o in sizes if o != "full")


@pytest.mark.slow
def test_gradients_differ_by_what_they_leave_out(steps):
    full, reference, first, train = (x[2][2]["net"] for x in steps.values())
    term = jax.tree.map(lambda a, b: a - b, full, first)
    assert difference(term, jax.tree.map(lambda a, b: a - b, reference, train)) < 1e-12 < 1e-5
    assert difference(full, first) > 1e-5


@pytest.mark.slow
def test_a_step_moves_the_rows_of_its_identities_alone(steps):
    _, state, (new, _, _) = steps["full"]
    rows = _steps.by_domain(batch(), DOMAINS, K)
    np.testing.assert_array_equal(rows["pid"] // 3, np.repeat([[0], [1], [2]], P * K, 1))
    moved = np.abs(new.memory["rows"] - state.memory["rows"]).max(1) > 0
    np.testing.assert_array_equal(moved, np.isin(np.arange(9), rows["pid"]))
    np.testing.assert_allclose(np.linalg.norm(new.memory["rows"], axis=1), 1)
    assert int(new.step) == 1 and difference(new.nets["net"]["batch_stats"], state.nets["net"]["batch_stats"])


def test_virtual_step_is_adams_first():
    """By numpy; never farther than the rate."""
    optim = namespace(defaults("m3l")["optim"])
    rng = np.random.default_rng(0)
    p, g = ({"w": rng.normal(size=5) * scale} for scale in (1, 1e-4))
    grad = g["w"] + 5e-4 * p["w"]
    second = 0.001 * grad**2 + 1e-8
    want = p["w"] - 0.01 * grad / (np.sqrt(second) / np.sqrt(0.001) + 1e-8)
    new = _optim.first_adam_step(p, g, 0.01, optim)["w"]
    np.testing.assert_allclose(new, want, rtol=1e-5)
    assert np.abs(new - p["w"]).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("count, fields", [
    (8, {}), (2, {"outer": "first_order"}), (2, {"memory": False}), (2, {"meta": False}),
])  # fmt: skip
def test_devices_equal_one(count, fields):
    """Two steps, norms joined, noise by row, memories moved in the order of the batch."""
    m = method(AXIS, rows_of(people=8), ids=count, **fields)
    state = jax.tree.map(lambda x: np.float32(x) if x.dtype.kind == "f" else x, begun(m))

    def made(i):
        return {"train": batch(i, count, 8)}

    one, figures = Stepping(m.step)(state, made, steps=2)
    two, others = Stepping(m.step, count)(state, made, steps=2)
    assert difference(one.nets, two.nets) < 1e-3 < difference(one.nets, state.nets)
    assert difference(one.memory, two.memory) < 1e-3
    for name, value in figures.items():
        np.testing.assert_allclose(value, others[name], rtol=2e-3, atol=1e-4, err_msg=name)


def test_memory_begins_with_the_mean_of_every_identity():
    m = method()
    features = np.random.default_rng(0).normal(size=(len(m.info.labelled.pid), 8))
    bank = m.begin(drawn(m), features).memory["rows"]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit[m.info.labelled.pid == 4].mean(0)
    np.testing.assert_allclose(bank[4], mean / np.linalg.norm(mean), rtol=1e-5)


def test_places_where_domains_share_identities():
    """Cameras: a row for each identity of each; without data (a restored net) sets in turn."""
    rows = Rows(0, *np.int32([[0, 0, 1, 2], [0, 1, 1, 0], [0, 1, 1, 0]]))
    info = Info(3, 2, domains=rows.ids_of_domains, labelled=rows)
    np.testing.assert_array_equal(_steps.places(info), [[0, -1, 1], [2, 3, -1]])
    apart = Info(5, 2, domains=(2, 3))
    np.testing.assert_array_equal(_steps.places(apart), [[0, 1, -1, -1, -1], [-1, -1, 2, 3, 4]])


def test_metabn_takes_the_variance_for_the_deviation():
    v = np.float32(np.random.default_rng(0).normal(2, 3, (2, 6, 4)))
    noise = np.float32(np.random.default_rng(1).normal(size=(2, 6, 4)))
    for deviation in (False, True):
        kept = metabn.statistics(jnp.asarray(v), deviation)
        got = metabn.mix(v[0], kept, 0.25, jnp.asarray(noise))
        spread = v.std(1, keepdims=True) if deviation else v.var(1, keepdims=True)
        want = 0.25 * (v.mean(1, keepdims=True) + spread * noise) + 0.75 * v[0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    parts = metabn.statistics(jnp.asarray(v), rows=3)[0]
    np.testing.assert_allclose(parts[1, 4], v[1, 3:].mean(0), rtol=1e-5)


@pytest.mark.parametrize("fields, error, message", [
    (dict(outer="x"), ConfigError, "m3l.outer"), (dict(temperature=0.0), ConfigError, "m3l.temperature"),
    (dict(momentum=2.0), ConfigError, "m3l.momentum"),
    (dict(model=dict(head="global")), ConfigError, "model.head"),
    (dict(model=dict(norm="aibn")), ConfigError, "model.norm is 'aibn'"),
    (dict(model=dict(style="dsu")), ConfigError, "model.style is 'dsu'"),
    (dict(rows=rows_of(1)), DataError, "data.domains=camera"),
])  # fmt: skip
def test_what_cannot_be_trained(fields, error, message):
    with pytest.raises(error, match=message):
        method(**fields)


def test_configs_have_the_published_settings():
    t = config_of("m3l.py:market")
    assert t.data.name == "dukemtmc+cuhk03+msmt17" and t.data.variant == "+detected+"
    assert (t.data.ids, t.data.instances, t.data.epoch_steps, t.train.epochs) == (16, 4, 200, 60)
    assert (t.data.flip, t.data.pad_crop, t.data.erase, t.data.resize) == (0.5, 10, 0.0, "bicubic")
    optim = t.optim.kind, t.optim.lr, t.optim.weight_decay, t.optim.milestones, t.optim.gamma
    assert optim == ("adam", 3.5e-4, 5e-4, (30, 50), 0.1)
    assert (t.optim.warmup_epochs, t.optim.warmup_factor) == (10, 0.01)
    assert (t.model.stem_relu, t.model.last_stride, t.loss.margin) == (False, 1, 0.3)
    assert (t.m3l.outer, t.m3l.momentum, t.m3l.temperature, t.m3l.noise) == ("full", 0.2, 0.05, "variance")
    assert config_of("m3l.py:duke-ibn").model.norm == "ibn_a"
    assert config_of("m3l.py:msmt17-reference").m3l.outer == "reference"
