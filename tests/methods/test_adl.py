"""ADL: fresh FRIFM, who learns from what, camera order, devices, labels (recorded outputs: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import difference

from reid_jax import config as c
from reid_jax.errors import ConfigError, DataError
from reid_jax.methods import Info, adl
from reid_jax.methods.adl import labels, nets
from reid_jax.models import weights
from reid_jax.train import parallel

CAMERAS, K = 3, 4


def config(**fields):
    """A narrow ADL; fields of config.adl, and of config.model with model__ in front."""
    tree = c.defaults() | {"adl": c.adl_defaults()}
    tree["data"].update(height=16, width=8)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 6), narrow_stripes=2, narrow_dim=8, norm="aibn")
    tree["loss"].update(triplet="euclidean", feature="before_bn")
    for phase in adl.PHASES:
        tree["adl"][phase].update(clusters=6, lr=0.02, head_lr=0.2)
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        tree[section or "adl"][field] = value
    return c.namespace(tree)


def info(axis_name=None):
    return Info(num_pids=9, num_cams=CAMERAS, steps_per_epoch=5, total_steps=0, axis_name=axis_name)


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


def fresh(m, models, adversary=True):
    image = jnp.zeros((1, m.data.height, m.data.width, 3))
    return jax.jit(lambda k: adl.init_state(k, image, models=models, adversary=adversary))(jax.random.key(0))


@pytest.fixture(scope="module")
def narrow():
    """(config, models, fresh state)."""
    m = config()
    models = adl.build(m, info())
    return m, models, fresh(m, models)


def step_of(phase, m, models, axis_name=None):
    step = {"intra": adl.intra_step, "inter": adl.inter_step}[phase]
    return lambda state, batch: step(state, batch, models=models, config=m, axis_name=axis_name)


# ---- FRIFM


def test_fresh_frifm_is_the_baseline_bit_for_bit():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 8, 3)), jnp.float32)
    for dtype in ("float32", "bfloat16"):
        both = [adl.build(config(frifm_stages=s, model__dtype=dtype), info()).net for s in ((), (1, 2))]
        variables = both[1].init(jax.random.key(0), x, False)
        plain = jax.eval_shape(lambda x, n=both[0]: n.init(jax.random.key(0), x, False), x)
        params = {k: variables["params"]["base"][k] for k in plain["params"]["base"]}
        assert len(variables["params"]["base"]) == len(params) + 2
        plain = {"params": {"base": params}, "batch_stats": variables["batch_stats"]}
        variables = {k: variables[k] for k in ("params", "batch_stats")}
        for train in (False, True) if dtype == "float32" else (False,):
            run = [
                jax.jit(lambda v, x, n=n, t=train: n.apply(v, x, t, mutable=["batch_stats"])) for n in both
            ]
            (y0, stats0), (y1, stats1) = run[0](plain, x), run[1](variables, x)
            np.testing.assert_array_equal(y0, y1)
            assert difference(stats0, stats1) == 0


# ---- the game


def game(**fields):
    """Gradients {player: largest entry} of the game alone, "features" those by f."""
    m = config(**fields)
    models, rng = adl.build(m, info()), np.random.default_rng(0)
    f, camid = jnp.asarray(rng.normal(size=(12, 5)), jnp.float32), jnp.arange(12) % CAMERAS
    modules = {"encoder": (f, False), "camera": (f, False), "critic": (f, f)}
    init = jax.jit(lambda k: {n: getattr(models, n).init(k, *a) for n, a in modules.items()})
    found = init(jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1, {n: v["params"] for n, v in found.items()})

    def total(params, f):
        partners = jnp.arange(12)[::-1]
        return adl.adversarial_losses(params, found, f, camid, partners, models=models, adl=m.adl)[0]

    grads, grad_f = jax.jit(jax.grad(total, (0, 1)))(params, f)
    largest = {n: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(g)) for n, g in grads.items()}
    return largest | {"features": float(jnp.abs(grad_f).max())}


@pytest.mark.parametrize(
    "fields, moved",
    [
        (dict(lam=0.5, lam_cam=0.0), {"features", "encoder", "critic"}),
        (dict(lam=0.0, lam_cam=0.1), {"encoder", "camera", "critic"}),
        (dict(lam=0.0, lam_cam=0.0), {"critic"}),
        (dict(lam=0.0, lam_cam=0.1, encoder_input="live"), {"features", "encoder", "camera", "critic"}),
        (dict(lam=0.5, lam_cam=0.0, transform="linear"), {"features", "encoder", "critic"}),
    ],
)
def test_where_the_games_gradients_go(fields, moved):
    found = game(**fields)
    assert {n for n, g in found.items() if g > 0} == moved


def test_the_critic_does_not_see_the_weight_of_the_game():
    assert game(lam=0.0)["critic"] == game(lam=0.9, transform="linear")["critic"] > 0


def test_blocks_move_the_critic_and_the_others_in_turn(narrow):
    m, (_, models, state) = config(schedule="blocks", block=1), narrow
    step = jax.jit(step_of("inter", m, models))
    for moves in ({"critic"}, {"net", "joint", "encoder", "camera"}, {"critic"}):
        new, _ = step(state, batch())
        differs = {n for n in new.nets if difference(new.nets[n]["params"], state.nets[n]["params"]) > 0}
        assert differs == moves
        state = new


# ---- steps


@pytest.fixture(scope="module", params=adl.PHASES)
def trained(request, narrow):
    """(phase, first state, [(state, metrics)] of some steps on one batch)."""
    m, models, state = narrow
    step, steps, first = jax.jit(step_of(request.param, m, models)), [], state
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


def test_the_optimiser_is_pytorchs_sgd():
    """First step: w - rate (g + decay w), second: with momentum; the backbone's rate is not FRIFM's."""
    m = config(adversarial_stages=())
    tx = adl.build(m, info()).tx["inter"]["net"]
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


@pytest.mark.parametrize("loop", [False, True])
def test_running_values_move_camera_by_camera(narrow, loop, monkeypatch):
    monkeypatch.setattr(adl, "unrolled", lambda net: not loop)
    _, models, state = narrow
    x = jnp.asarray(batch()["image"], jnp.float32).reshape(K, CAMERAS, 16, 8, 3) / 64
    net = state.nets["net"]
    f, stats = jax.jit(lambda v, x: adl.camera_by_camera(models.net, v, x))(net, x)
    want, one = (
        net["batch_stats"],
        jax.jit(lambda v, x: models.net.apply(v, x, True, mutable=["batch_stats"])),
    )
    for camera in range(CAMERAS):
        own, changed = one({**net, "batch_stats": want}, x[:, camera])
        want = changed["batch_stats"]
        np.testing.assert_allclose(f[:, camera], own, atol=1e-5)
    assert difference(stats, want) < 1e-5
    turned, other = jax.jit(lambda v, x: adl.camera_by_camera(models.net, v, x))(net, x[:, ::-1])
    assert difference(other, stats) > 1e-3
    np.testing.assert_allclose(turned[:, ::-1], f, atol=1e-5)


@pytest.mark.parametrize("phase", adl.PHASES)
def test_two_devices_equal_one(phase):
    """With global statistics: same features, heads, partners and pairs, so the same parameters."""
    m, results = config(model__bn_group="global"), []
    for runner in (parallel.Runner("jit"), parallel.Runner("pmap", jax.devices()[:2])):
        models = adl.build(m, info(runner.axis_name))
        state = runner.replicate(fresh(m, models))
        step = runner.compile(step_of(phase, m, models, runner.axis_name))
        for i in range(2):
            state, metrics = step(state, runner.shard(batch(i)))
        results.append((runner.fetch(state).nets, runner.fetch(metrics)))
    assert difference(results[0][0], results[1][0]) < 2e-4
    for name, value in results[0][1].items():
        np.testing.assert_allclose(results[1][1][name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_batch_of_unequal_cameras_is_refused(narrow):
    m, models, state = narrow
    odd = {k: v[:-1] for k, v in batch().items()}
    with pytest.raises(ConfigError, match="data.instances"):
        jax.eval_shape(step_of("intra", m, models), state, odd)


def test_a_new_phase(narrow):
    """Fresh classifier that knows its classes, fresh momenta; backbone and players stay."""
    m = config(unused_classes="mask")
    models = adl.build(m, info())
    state = jax.tree.map(lambda x: x + 1, narrow[2])
    camid = np.array([0, 0, 0, 1, 1, 2])
    new = adl.begin(state, [0, 1, 1, 0, 3, 0], camid, phase="intra", models=models, key=jax.random.key(5))
    assert new.nets["heads"]["classes"]["used"].tolist() == [2, 4, 1]
    assert difference(new.nets["heads"]["params"], state.nets["heads"]["params"]) > 1e-3
    for name in ("net", "joint", *adl.PLAYERS):
        assert difference(new.nets[name], state.nets[name]) == 0
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(new.opt)) == 0
    assert jax.tree.structure(new) == jax.tree.structure(state)
    f = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    scores = np.asarray(adl.class_scores(new, f, models=models)).reshape(5, CAMERAS, 6)
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    assert [int((s > 0).sum()) for s in scores[0]] == [2, 4, 1]
    joint = adl.begin(state, [0, 1, 2, -1, 4, 0], camid, phase="inter", models=models, key=jax.random.key(5))
    assert joint.nets["joint"]["classes"]["used"].tolist() == [5]


def test_masking():
    """Mode original keeps unused classes in the softmax, threshold masks them; the field decides."""
    masks = [adl.build(config(mode=a, unused_classes=b), info()).heads.mask for a in ("original", "threshold")
             for b in ("auto", "keep", "mask")]  # fmt: skip
    assert masks == [False, False, True, True, False, True]
    head, f = nets.JointHead(5, mask=True), jnp.ones((3, 4))
    variables = head.init(jax.random.key(0), f, False)
    variables = {**variables, "classes": {"used": jnp.array([3])}}
    out = head.apply(variables, f, False)
    assert np.isneginf(out[:, 3:]).all() and np.isfinite(out[:, :3]).all()


@pytest.mark.parametrize("field, value", [
    ("mode", "fixed"), ("unused_classes", "drop"), ("frifm_stages", (0,)), ("adversarial_stages", ("outer",)),
])  # fmt: skip
def test_settings_that_cannot_be(field, value):
    with pytest.raises(ConfigError, match=f"adl.{field}"):
        adl.build(config(**{field: value}), info())


def test_features_of_mirror_images_are_equal():
    m = config(adversarial_stages=())
    models = adl.build(m, info())
    state = fresh(m, models, adversary=False)
    assert set(state.nets) == {"net", "heads", "joint"} == set(state.opt)
    image = batch()["image"]
    run = jax.jit(lambda x: adl.embed(state, x, models=models, config=m))
    np.testing.assert_allclose(run(image), run(image[:, :, ::-1]), atol=1e-6)


def test_it_starts_from_weights_of_an_ordinary_resnet():
    """As ImageNet's: all of the backbone is there but FRIFM and AIBN's mixing weights."""
    slim = dict(model__backbone="slim", model__slim_width=4, data__height=64, data__width=32)
    plain = config(frifm_stages=(), model__norm="batch", **slim)
    state = fresh(plain, adl.build(plain, info()), adversary=False)
    entries = weights.to_torch(jax.tree.map(lambda x: np.full(x.shape, 3, np.float32), state.nets["net"]))
    m = config(adversarial_stages=(), **slim)
    method = adl.stages(m, info())["train"]
    state, reports = fresh(m, adl.build(m, info()), adversary=False), []

    def load(name, variables, fallback=None):
        filled, report = weights.load(entries, variables)
        reports.append(report)
        return filled

    new = method.warm_start(state, load).nets
    assert not reports[0]["unused"]
    assert all("frifm" in k or k.endswith("adaptive_weight") for k in reports[0]["missing"])
    assert (new["net"]["params"]["base"]["conv1"]["kernel"] == 3).all()
    assert difference(new["heads"], state.nets["heads"]) == 0


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
    assert labels.largest(np.array([0, 1, 1, 2, -1, 2]), 2, "x").tolist() == [-1, 0, 0, 1, -1, 1]


def test_labels_refuse_broken_features():
    x, camid, _ = people()
    with pytest.raises(DataError, match="cameras"):
        labels.intra(x, camid[1:], settings())
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3"):
        labels.intra(x, camid, settings())
