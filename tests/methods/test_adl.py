"""ADL: fresh FRIFM, who learns from what, camera order, parts, labels (recorded outputs: tests/parity)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import difference, drawn

from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import cluster
from reid_jax.fields import namespace
from reid_jax.methods import Info, State, adl, defaults
from reid_jax.methods.adl import labels, nets
from reid_jax.models import layers, weights

CAMERAS, K = 3, 4
CAMID = np.array([0, 0, 0, 1, 1, 2], np.int32)  # of the training images


def config(**fields):
    """A narrow ADL; fields of config.adl, and of config.model with model__ in front."""
    tree = defaults("adl")
    tree["data"].update(height=16, width=8)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 6), narrow_stripes=2, narrow_dim=8, norm="aibn")
    tree["loss"].update(triplet="euclidean", feature="before_bn")
    for phase in adl.PHASES:
        tree["adl"][phase].update(clusters=6, lr=0.02, head_lr=0.2)
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        tree[section or "adl"][field] = value
    return namespace(tree)


def method(settings=None, axis_name=None, camid=CAMID, **fields):
    """Adl of a config, or of these fields; the training images were taken by cameras camid."""
    rows = Rows(0, np.full(len(camid), -1, np.int32), camid, np.zeros(len(camid), np.int32))
    info = Info(0, CAMERAS, axis_name=axis_name, num_images=len(camid), unlabelled=rows)
    return adl.Adl(settings or config(**fields), info)


def batch(seed=0):
    """K images of each camera, image j of camera c at row j C + c; pseudo identities 0 to 3 in pairs."""
    size, rng = CAMERAS * K, np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 16, 8, 3), np.uint8),
        "pid": (np.arange(size) // CAMERAS // 2 + 2 * (np.arange(size) % CAMERAS == 1)).astype(np.int32),
        "camid": (np.arange(size) % CAMERAS).astype(np.int32),
        "flip": np.zeros((size, 2), bool),
        "crop": np.zeros((size, 2, 2), np.int32),
        "erase": np.zeros((size, 2, 4), np.int32),
    }


def fresh(m):
    return jax.jit(m.init)(jax.random.key(0))


def zeros(m):
    """A State of zeros, which needs no compilation."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(m.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def narrow():
    """(method, fresh state)."""
    m = method()
    return m, drawn(m)


def step_of(m, phase):
    """Step of a phase on one batch."""
    step = {"intra": m.intra_step, "inter": m.inter_step}[phase]
    return lambda state, batch: step(state, {"train": batch})


# ---- FRIFM


@pytest.mark.slow
def test_fresh_frifm_is_the_baseline():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 8, 3)), jnp.float32)
    for dtype in ("float32", "bfloat16"):
        both = [method(frifm_stages=s, model__dtype=dtype).modules["net"] for s in ((), (1, 2))]
        variables = jax.jit(lambda x, n=both[1]: n.init(jax.random.key(0), x, False))(x)
        shapes = jax.eval_shape(lambda x, n=both[0]: n.init(jax.random.key(0), x, False), x)
        params = {k: variables["params"]["base"][k] for k in shapes["params"]["base"]}
        assert len(variables["params"]["base"]) == len(params) + 2
        variables = {k: variables[k] for k in ("params", "batch_stats")}
        plain = {**variables, "params": {**variables["params"], "base": params}}
        for train in (False, True) if dtype == "float32" else (False,):
            run = [
                jax.jit(lambda v, x, n=n, t=train: n.apply(v, x, t, mutable=["batch_stats"])) for n in both
            ]
            (y0, stats0), (y1, stats1) = run[0](plain, x), run[1](variables, x)
            np.testing.assert_allclose(y0, y1, rtol=1e-5)  # programs of two nets may round apart
            assert difference(stats0, stats1) < 1e-6


# ---- the game


@functools.cache
def players():
    """(features f32[12,5], cameras, variables of E, H and D)."""
    m, rng = method(), np.random.default_rng(0)
    f, camid = jnp.asarray(rng.normal(size=(12, 5)), jnp.float32), jnp.arange(12) % CAMERAS
    inputs = {"encoder": (f, False), "camera": (f, False), "critic": (f, f)}
    init = jax.jit(lambda k: {n: m.modules[n].init(k, *a) for n, a in inputs.items()})
    variables = init(jax.random.key(1))
    moved = {n: jax.tree.map(lambda x: x + 0.1, v["params"]) for n, v in variables.items()}
    return f, camid, {n: {**v, "params": moved[n]} for n, v in variables.items()}


def game(**fields):
    """Gradients {player: largest entry} of the game alone, "features" those by f."""
    m, (f, camid, variables) = method(**fields), players()
    params = {n: v["params"] for n, v in variables.items()}

    def total(params, f):
        players = {n: {**v, "params": params[n]} for n, v in variables.items()}
        return m.game(players, f, camid, jnp.arange(12)[::-1])[0]

    grads, grad_f = jax.jit(jax.grad(total, (0, 1)))(params, f)
    largest = {n: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(g)) for n, g in grads.items()}
    return largest | {"features": float(jnp.abs(grad_f).max())}


@pytest.mark.parametrize(
    "fields, moved",
    [
        (dict(lam=0.5, lam_cam=0.0), {"features", "encoder", "critic"}),
        (dict(lam=0.0, lam_cam=0.1), {"encoder", "camera", "critic"}),
        pytest.param(dict(lam=0.0, lam_cam=0.0), {"critic"}, marks=pytest.mark.slow),
        pytest.param(
            dict(lam=0.0, lam_cam=0.1, encoder_input="live"),
            {"features", "encoder", "camera", "critic"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(lam=0.5, lam_cam=0.0, transform="linear"),
            {"features", "encoder", "critic"},
            marks=pytest.mark.slow,
        ),
        (dict(lam=0.5, lam_cam=0.0, encoder_plays=False), {"features", "critic"}),
    ],
)
def test_where_the_games_gradients_go(fields, moved):
    found = game(**fields)
    assert {n for n, g in found.items() if g > 0} == moved


def test_the_critic_does_not_see_the_weight_of_the_game():
    assert game(lam=0.0)["critic"] == game(lam=0.9, transform="linear")["critic"] > 0


@pytest.mark.slow
def test_blocks_move_the_critic_and_the_others_in_turn(narrow):
    m, state = method(schedule="blocks", block=1), narrow[1]
    step = jax.jit(step_of(m, "inter"))
    for moves in ({"critic"}, {"net", "joint", "encoder", "camera"}, {"critic"}):
        new, _ = step(state, batch())
        differs = {n for n in new.nets if difference(new.nets[n]["params"], state.nets[n]["params"]) > 0}
        assert differs == moves
        state = new


# ---- steps


@pytest.fixture(scope="module", params=[pytest.param(p, marks=pytest.mark.slow) for p in adl.PHASES])
def trained(request, narrow):
    """(phase, first state, [(state, metrics)] of some steps on one batch)."""
    m, state = narrow
    step, steps, first = jax.jit(step_of(m, request.param)), [], state
    for _ in range(8):
        state, metrics = step(state, batch())
        steps.append((state, metrics))
    assert step._cache_size() == 1
    return request.param, first, steps


def test_a_step_lowers_its_loss(trained):
    _, _, steps = trained
    losses = [float(metrics["loss_stage"]) for _, metrics in steps]
    assert losses[1] < losses[0] and losses[-1] < 0.8 * losses[0]
    assert all(-3 < m["omega"] <= 0 and np.isfinite(list(m.values())).all() for _, m in steps)


def test_a_step_trains_its_own_networks_only(trained):
    phase, first, steps = trained
    new = steps[0][0]
    still = "joint" if phase == "intra" else "heads"
    for name, variables in new.nets.items():
        moved = difference(variables["params"], first.nets[name]["params"])
        assert (moved == 0) == (name == still), name
    frifm = new.nets["net"]["params"]["base"]["frifm1"]["gamma"]
    assert np.abs(frifm).max() > 0 and int(new.step) == 1
    spec = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (first, new)]
    assert spec[0] == spec[1]
    np.testing.assert_array_equal(new.memory["labels"], first.memory["labels"], strict=True)


def test_the_optimiser_is_pytorchs_sgd():
    """First step: w - rate (g + decay w), second: with momentum; the backbone's rate is not FRIFM's."""
    tx = method(adversarial_stages=()).tx["inter"]["net"]
    params = {"base": {"conv1": jnp.array([2.0]), "frifm1": {"gamma": jnp.array([2.0])}}}
    grad, opt = jax.tree.map(lambda x: 0 * x + 0.3, params), tx.init(params)
    b, want = 0.0, {"conv1": 2.0, "frifm1": 2.0}
    buffers = dict(want, conv1=0.0, frifm1=0.0)
    for _ in range(3):
        delta, opt = tx.update(grad, opt, params)
        params = jax.tree.map(lambda p, d: p + d, params, delta)
        for name, rate in (("conv1", 0.02), ("frifm1", 0.2)):
            b = buffers[name] = 0.9 * buffers[name] + 0.3 + 5e-4 * want[name]
            want[name] -= rate * b
    found = {"conv1": params["base"]["conv1"][0], "frifm1": params["base"]["frifm1"]["gamma"][0]}
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "cpu"])
def test_running_values_move_camera_by_camera(narrow, form):
    """As a loop of the compiler and written out."""
    m, state = narrow
    net, variables = m.modules["net"], state.nets["net"]
    x = jnp.asarray(batch()["image"], jnp.float32).reshape(K, CAMERAS, 16, 8, 3) / 64
    with layers.form(form):
        run = jax.jit(m.camera_by_camera)
        (f, stats), (turned, other) = run(variables, x), run(variables, x[:, ::-1])
    want = variables["batch_stats"]
    one = jax.jit(lambda v, x: net.apply(v, x, True, mutable=["batch_stats"]))
    for camera in range(CAMERAS):
        own, changed = one({**variables, "batch_stats": want}, x[:, camera])
        want = changed["batch_stats"]
        np.testing.assert_allclose(f[:, camera], own, atol=1e-5)
    assert difference(stats, want) < 1e-5
    assert difference(other, stats) > 1e-3
    np.testing.assert_allclose(turned[:, ::-1], f, atol=1e-5)


@pytest.mark.parametrize("phase, absent", [("intra", {"triplet"}), ("inter", set())])
def test_what_a_step_reports_has_a_title(narrow, phase, absent):
    m, state = narrow
    _, metrics = jax.eval_shape(step_of(m, phase), state, batch())
    assert {*metrics} == {*adl.METRICS, "loss", "lr"} - absent


def test_a_batch_of_unequal_cameras_is_refused(narrow):
    m, state = narrow
    odd = {k: v[:-1] for k, v in batch().items()}
    with pytest.raises(ConfigError, match="adl.intra.instances"):
        jax.eval_shape(step_of(m, "intra"), state, odd)


# ---- parts


def test_parts_of_a_run():
    """Two parts a round, the second ends it; batches follow the labels in the state and another seed each."""
    two = dict(adl.FIELDS["intra"], instances=2)
    m = method(rounds=2, data__ids=2, data__instances=2, intra=two)
    parts = [m.part(i) for i in range(4)]
    assert [p.name for p in parts] == ["intra", "inter"] * 2 and m.part(4) is None
    assert [p.round for p in parts] == [0, 1, 0, 2] and m.rounds == 2
    assert [p.labels_by_camera for p in parts] == [True, False] * 2
    assert [p.step == m.part(i % 2).step for i, p in enumerate(parts)] == [True] * 4  # compiled once
    state = State(0, {}, {}, {"labels": np.array([0, 1, -1, 0, 0, 1], np.int32)})
    streams = [p.streams(state)["train"] for p in parts]
    assert [s.sampler.size for s in streams] == [6, 4, 6, 4]
    assert len({s.seed for s in streams}) == 4
    cameras, pairs = streams[0].sampler.batch(0), streams[1].sampler.batch(0)
    assert CAMID[cameras].tolist() == [0, 1, 2] * 2 and 2 not in {*cameras, *pairs}
    assert sorted(streams[1].columns["pid"][pairs].tolist()) == [0, 0, 1, 1]
    with pytest.raises(DataError):
        parts[1].streams(state._replace(memory={"labels": np.zeros(6, np.int32)}))


def test_a_part_begins_with_labels_and_a_fresh_classifier():
    """Features of people well apart: their clusters are the labels; backbone and players stay."""
    x, camid, pid = people(ids=4)
    own = config(k1=5, k2=2, rounds=2)
    own.adl.intra.clusters = own.adl.inter.clusters = 4
    m = method(own, camid=camid.astype(np.int32))
    state = zeros(m)
    assert state.memory["labels"].shape == (len(x),)
    first = m.part(0).begin(state, x)
    for camera in range(CAMERAS):
        assert same(first.memory["labels"][camid == camera], pid[camid == camera])
    second = m.part(1).begin(first, x)
    assert same(second.memory["labels"], pid)
    for before, after, made in ((state, first, "heads"), (first, second, "joint")):
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, before)
        assert after.memory["labels"].dtype == np.int32
        for name in after.nets:
            moved = difference(after.nets[name]["params"], before.nets[name]["params"])
            assert (moved > 1e-4) == (name == made), name
    again = m.part(2).begin(first, x)
    assert difference(again.nets["heads"]["params"], first.nets["heads"]["params"]) > 1e-4  # another key


@pytest.mark.slow
def test_a_new_classifier(narrow):
    """It knows its classes, momenta are fresh; backbone and players stay."""
    m = method(unused_classes="mask")
    state = jax.tree.map(lambda x: x + 1, narrow[1])
    new = m.relabelled(0, state, [0, 1, 1, 0, 3, 0])
    assert new.nets["heads"]["classes"]["used"].tolist() == [2, 4, 1]
    assert new.memory["labels"].tolist() == [0, 1, 1, 0, 3, 0] and int(new.step) == 1
    assert difference(new.nets["heads"]["params"], state.nets["heads"]["params"]) > 1e-3
    for name in ("net", "joint", *adl.PLAYERS):
        assert difference(new.nets[name], state.nets[name]) == 0
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(new.opt)) == 0
    assert jax.tree.structure(new) == jax.tree.structure(state)
    f = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    scores = m.class_scores(new, f).reshape(5, CAMERAS, 6)
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    assert [int((s > 0).sum()) for s in scores[0]] == [2, 4, 1]
    joint = m.relabelled(1, state, [0, 1, 2, -1, 4, 0])
    assert joint.nets["joint"]["classes"]["used"].tolist() == [5]
    nothing = m.relabelled(0, state, np.full(6, -1))  # no image has a label
    assert np.isfinite(m.class_scores(nothing, f)).all()


def test_masking():
    """Mode original keeps unused classes in the softmax, threshold masks them; the field decides."""
    masks = [method(mode=a, unused_classes=b).modules["heads"].mask for a in ("original", "threshold")
             for b in ("auto", "keep", "mask")]  # fmt: skip
    assert masks == [False, False, True, True, False, True]
    head, f = nets.JointHead(5, mask=True), jnp.ones((3, 4))
    variables = head.init(jax.random.key(0), f, False)
    variables = {**variables, "classes": {"used": jnp.array([3])}}
    out = head.apply(variables, f, False)
    assert np.isneginf(out[:, 3:]).all() and np.isfinite(out[:, :3]).all()


@pytest.mark.parametrize("field, value", [
    ("mode", "fixed"), ("unused_classes", "drop"), ("frifm_stages", (0,)), ("adversarial_stages", ("outer",)),
    ("schedule", "turns"), ("encoder_input", "copied"), ("transform", "log"), ("critic_input_norm", "batch"),
])  # fmt: skip
def test_settings_that_cannot_be(field, value):
    with pytest.raises(ConfigError, match=f"adl.{field}"):
        method(**{field: value})


def test_features_of_mirror_images_are_equal(narrow):
    m, state = narrow
    image = batch()["image"]
    run = jax.jit(lambda x: m.embed(state, x, "net"))
    f = run(image)
    np.testing.assert_allclose(f, run(image[:, :, ::-1]), atol=1e-6)
    assert np.ptp(f, axis=0).min() > 1e-3


def test_without_the_game_its_players_are_not_there():
    m = method(adversarial_stages=())
    state = zeros(m)
    assert set(state.nets) == {"net", "heads", "joint"} == set(state.opt)
    assert (m.camera_net, method().camera_net) == ("", "camera")


def test_it_starts_from_weights_of_an_ordinary_resnet():
    """As ImageNet's: all of the backbone is there but FRIFM and AIBN's mixing weights."""
    slim = dict(model__backbone="slim", model__slim_width=4, data__height=64, data__width=32)
    state = zeros(method(frifm_stages=(), adversarial_stages=(), model__norm="batch", **slim))
    entries = weights.to_torch(jax.tree.map(lambda x: np.full(x.shape, 3, np.float32), state.nets["net"]))
    m = method(adversarial_stages=(), **slim)
    state, reports = zeros(m), []

    def load(name, variables, fallback=None):
        filled, report = weights.load(entries, variables)
        reports.append(report)
        return filled

    new = m.warm_start(state, load).nets
    assert not reports[0]["unused"]
    assert all("frifm" in k or k.endswith("adaptive_weight") for k in reports[0]["missing"])
    assert (new["net"]["params"]["base"]["conv1"]["kernel"] == 3).all()
    assert difference(new["heads"], state.nets["heads"]) == 0


def test_titles_are_the_rows_of_table_4():
    no_frifm, no_game = dict(frifm_stages=()), dict(adversarial_stages=())
    titles = [adl.title(config(**row)) for row in (no_frifm | no_game, no_game, no_frifm, {})]
    assert titles == ["IICS", "IICS with FRIFM", "IICS with ADL's game", "ADL"]
    assert adl.title(config(mode="threshold")) == "ADL, mode threshold"


# ---- labels


def people(seed=0, count=90, ids=9, dim=8, noise=0.1):
    """(features, cameras, identities), well apart, of any length."""
    rng = np.random.default_rng(seed)
    pid = np.arange(count) % ids
    x = rng.normal(size=(ids, dim))[pid] + noise * rng.normal(size=(count, dim))
    return (x * rng.uniform(1, 3, (count, 1))).astype(np.float32), rng.integers(0, CAMERAS, count), pid


def same(a, b):
    a, b = list(a), list(b)
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


def settings(clusters=9, **fields):
    own = config(**fields).adl
    own.intra.clusters = own.inter.clusters = clusters
    return own


def test_clusters_find_identities():
    x, camid, pid = people(ids=4)
    own = settings(clusters=4, k1=5, k2=2)
    found = labels.intra(x, camid, own)
    for camera in range(CAMERAS):
        assert same(found[camid == camera], pid[camid == camera])
        assert set(found[camid == camera]) == set(range(4))
    scores = np.random.default_rng(0).dirichlet(np.ones(6), len(x)).astype(np.float32)
    assert same(labels.inter(x, scores, camid, 0.02, own), pid)


def test_similarity_by_definition():
    p = np.random.default_rng(0).dirichlet(np.ones(7), 11).astype(np.float32)
    want = [[np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in p] for a in p]
    np.testing.assert_allclose(labels.similarity(p), want, rtol=1e-5)


@pytest.mark.parametrize("mode", ["original", "threshold"])
def test_neighbour_lists_give_the_dense_clusters(mode):
    """With every image a candidate and without the share of the original distance nothing is approximate."""
    x, camid, pid = people(noise=0.9)
    scores = np.random.default_rng(1).dirichlet(0.3 * np.ones(6), len(x)).astype(np.float32)
    shared = dict(clusters=12 if mode == "original" else 90, mode=mode, candidates=len(x), k1=6, k2=3)
    own, by_lists = settings(lambda_value=0.0, **shared), settings(dense_limit=10, **shared)
    own.inter.quantile = own.intra.quantile = 0.05
    by_lists.inter.quantile = by_lists.intra.quantile = 0.05
    want, found = (labels.inter(x, scores, camid, 0.3, s) for s in (own, by_lists))
    assert same(found, want) and 2 < len(set(want)) < len(x)
    if mode == "threshold":  # of few images, it turns on which distances are exactly 0
        return
    want, found = (labels.intra(x, camid, s) for s in (own, by_lists))
    assert same(zip(found, camid, strict=True), zip(want, camid, strict=True))


def test_a_small_camera_and_one_image(caplog):
    x, camid, _ = people(count=60, ids=5)
    camid = np.r_[np.zeros(50, int), np.ones(9, int), 2]
    found = labels.intra(x, camid, settings(clusters=20))
    sizes = [len(set(found[camid == i])) for i in range(3)]
    assert sizes[0] == 20 and 1 < sizes[1] <= 4 and sizes[2] == 1
    assert all(set(found[camid == i]) == set(range(sizes[i])) for i in range(3))
    assert "camera 1 has 9 training images" in caplog.text and "camera 2 has one" in caplog.text


@pytest.mark.parametrize("mode", ["original", "threshold"])
def test_equal_images(mode, caplog):
    x = np.ones((12, 4), np.float32)
    own = settings(clusters=5, mode=mode)
    scores, camid = np.full((12, 6), 1 / 6, np.float32), np.zeros(12, int)
    for found in (labels.intra(x, camid, own), labels.inter(x, scores, camid, 0.02, own)):
        assert found.min() == 0 and len(set(found)) <= 5


def test_more_clusters_than_the_classifier_is_for(caplog):
    x, camid, _ = people(noise=2.0)
    own = settings(clusters=4, mode="threshold", k1=4, k2=2)
    assert labels.intra(x, camid, own).max() == 3
    assert "the classifier is for 4" in caplog.text
    caplog.clear()
    own.dense_limit = 10
    found = labels.intra(x, camid, own)
    assert found.max() == 3 and found.min() == -1 and "largest are kept" in caplog.text
    assert cluster.largest(np.array([0, 1, 1, 2, -1, 2]), 2, "x").tolist() == [-1, 0, 0, 1, -1, 1]


def test_labels_refuse_broken_features():
    x, camid, _ = people()
    with pytest.raises(DataError, match="cameras"):
        labels.intra(x, camid[1:], settings())
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3"):
        labels.intra(x, camid, settings())


# ---- what keeps the game and the refinement in bounds


@pytest.mark.slow
def test_more_steps_of_the_critic_raise_its_omega():
    m, (f, camid, variables) = method(critic_steps=6, critic_optim="adam", critic_lr=0.01), players()
    del camid
    z = jnp.concatenate([f, f**2], -1)[:, :5] * jnp.asarray([1.0, -1, 2, 1, 1])
    tx = {"critic": m.tx["inter"]["critic"]}
    nets = {"critic": variables["critic"]}
    state = State(jnp.int32(3), nets, {"critic": tx["critic"].init(nets["critic"]["params"])}, {})

    def omega(nets):
        return float(m.omega(nets["critic"], f, z, jnp.arange(12)[::-1]))

    after = m.more_of_the_critic(state, state, (f, z), tx)
    assert omega(after.nets) > omega(nets) + 1e-3 and after.step == 3


def test_refinement_rests_before_its_round():
    m = method(frifm_from=2)
    shapes = jax.eval_shape(m.init, jax.random.key(0))
    assert shapes.memory["frifm"].shape == ()
    params = {"base": {"frifm1": {"gamma": jnp.ones(2)}, "conv1": jnp.ones(2)}}
    old = State(0, {"net": {"params": params}}, {}, {"frifm": 0.0})
    moved = old._replace(nets={"net": {"params": jax.tree.map(lambda x: x + 1, params)}})
    kept = m.without_frifm(old, moved).nets["net"]["params"]["base"]
    assert kept["frifm1"]["gamma"][0] == 1 and kept["conv1"][0] == 2
    freed = m.without_frifm(old._replace(memory={"frifm": 1.0}), moved).nets["net"]["params"]["base"]
    assert freed["frifm1"]["gamma"][0] == 2
    state = m.relabelled(2, zeros(m), np.zeros(6, int))
    assert state.memory["frifm"] == 1 and m.relabelled(1, zeros(m), np.zeros(6, int)).memory["frifm"] == 0


def test_rates_of_their_own():
    """AIBN's weights, FRIFM and the critic move by the rates that the fields say."""
    m = method(aibn_lr=1e-3, frifm_lr=1e-4, critic_optim="adam", critic_lr=1e-5)
    params = {"adaptive_weight": jnp.ones(1), "frifm1": {"gamma": jnp.ones(1)}, "conv": jnp.ones(1)}
    for tx, tree, want in (
        (m.tx["inter"]["net"], params, {"adaptive_weight": 1e-3, "frifm1": {"gamma": 1e-4}, "conv": 0.02}),
        (m.tx["inter"]["critic"], {"w": jnp.ones(1)}, {"w": 1e-5}),
    ):
        delta, _ = tx.update(jax.tree.map(jnp.ones_like, tree), tx.init(tree), tree)
        got = jax.tree.map(lambda x: float(-x[0]), delta)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), got, want)
    mixed = adl.steps.mixing(
        {"a": {"adaptive_weight": jnp.array([0.2])}, "b": {"adaptive_weight": jnp.array([0.4])}}
    )
    assert mixed["aibn"] == pytest.approx(0.3) and mixed["aibn_most"] == pytest.approx(0.4)
    assert adl.steps.mixing({"conv": jnp.ones(1)}) == {}


def test_a_critic_at_its_floor_is_said(caplog):
    from reid_jax.methods.adl import critic

    good = critic.summary(np.full(8, 5.0), np.full(8, -5.0))
    assert -0.02 < good["omega_held_out"] < 0 and good["bound"] > 0.68 and not caplog.text
    found = critic.summary(np.zeros(8), np.zeros(8))
    assert found["omega_held_out"] == pytest.approx(-1.3863, abs=1e-3) and "tells nothing" in caplog.text
    assert method(held_out=4).study is not None and method().study is None
