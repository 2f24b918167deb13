"""DSANet: what a row builds, where gradients go (recorded outputs: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import difference, drawn

from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.losses import disentangle
from reid_jax.methods import Info, defaults, dsanet
from reid_jax.methods.dsanet import nets

ALL_OFF = dict(
    disentangle=False, intra_class=False, tlm=False, loss_lr=False, fwg=False, loss_w=False, sao=False
)
ALL_ON = dict.fromkeys(ALL_OFF, True)


def config(**fields):
    tree = defaults("dsanet")
    tree["data"].update(height=16, width=16, ids=4, instances=2, frames=2)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 6, 8), bn_group="global")
    tree["loss"].update(triplet="euclidean", feature="before_bn")
    tree["optim"].update(eps=1e-3)
    tree["dsanet"].update(fields)
    return namespace(tree)


def method(axis_name=None, **fields):
    return dsanet.DsaNet(config(**fields), Info(5, 3, 5, 50, axis_name))


def batch(seed=0, size=8):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 2, 16, 16, 3), np.uint8),
        "pid": np.repeat(np.arange(size // 2), 2).astype(np.int32) % 5,
        "camid": rng.integers(0, 3, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
        "flip": rng.random((size, 2)) < 0.5,
        "crop": np.zeros((size, 2, 2), np.int32),
        "erase": np.zeros((size, 2, 4), np.int32),
    }


@pytest.mark.parametrize(
    "row,count",
    [
        (ALL_OFF, 25_236_544),
        (dict(ALL_ON, fwg=False, loss_w=False, sao=False, loss_lr=False), 27_370_658),
        (dict(ALL_ON, fwg=False, loss_w=False, sao=False), 29_099_170),
        (dict(ALL_ON, tlm=False, loss_lr=False, sao=False, loss_w=False), 27_372_609),
        (dict(ALL_ON, tlm=False, loss_lr=False, sao=False), 29_101_121),
        (ALL_ON, 30_829_731),
    ],
)
def test_parameters_of_the_rows_of_table_2(row, count):
    """With LS-VID's 842 identities and 15 cameras."""
    tree = defaults("dsanet")
    tree["dsanet"].update(row)
    tree["data"].update(height=64, width=64, frames=2)
    m = dsanet.DsaNet(namespace(tree), Info(842, 15))
    params = jax.eval_shape(m.init, jax.random.key(0)).nets["net"]["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.fixture(scope="module")
def gradients():
    """{loss: {group of parameters: largest gradient}} of the full method, each loss alone."""
    m, b = method(), batch()
    clip = jnp.asarray(b["image"], jnp.float32) / 64 - 2
    variables = drawn(m).nets["net"]
    # classifiers start near zero: at their usual size every path shows
    params = jax.tree.map(lambda x: x + 0.05, variables["params"])

    def each(params):
        all_ = {**variables, "params": params}
        out, _ = m.network.apply(all_, clip, True, jnp.arange(8)[::-1], mutable=["batch_stats"])
        return m.losses(out, b["pid"], b["camid"])

    groups = {}
    for loss, tree in jax.jit(jax.jacrev(each))(params).items():
        base = tree["base"]
        parts = {k: v for k, v in tree.items() if k != "base"}
        parts["stage4"] = {k: v for k, v in base.items() if k.startswith("layer2")}  # the last block
        parts["stages1_3"] = {k: v for k, v in base.items() if not k.startswith("layer2")}
        groups[loss] = {k: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(v)) for k, v in parts.items()}
    return groups


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss,reaches,not_reached",
    [
        ("ce", "fwg tlm stage4 stages1_3 cls_id", "cel cls_cam cls_lr cls_frame"),
        ("triplet", "fwg tlm stage4 stages1_3", "cel cls_id neck_id"),
        ("intra_class", "fwg tlm stage4 stages1_3", "cel cls_id"),
        ("ce_sides", "tlm stage4 stages1_3 cls_lr", "fwg cel cls_id"),
        ("ce_frames", "tlm stage4 stages1_3 cls_frame", "fwg cel cls_id"),
        ("frame_weights", "fwg tlm stage4 stages1_3", "cls_frame neck_frame cel"),
        ("cam_ce", "cel stages1_3 cls_cam", "stage4 tlm fwg cls_id"),
        ("disentangle", "fwg tlm cel stage4 stages1_3", "cls_id cls_cam"),
        ("ce_switched", "fwg tlm cel stage4 stages1_3 cls_id neck_id", "cls_cam cls_lr"),
    ],
)
def test_where_gradients_go(gradients, loss, reaches, not_reached):
    for part in reaches.split():
        assert gradients[loss][part] > 0, part
    for part in not_reached.split():
        assert gradients[loss][part] == 0, part


def test_intra_class_is_the_loop():
    rng = np.random.default_rng(0)
    f, pid = rng.standard_normal((7, 5)), np.array([0, 1, 0, 2, 1, 0, 4])
    want = 0
    for k in np.unique(pid):
        rows = f[pid == k]
        want += ((rows - rows.mean(0)) ** 2).sum() / len(rows)
    for reduce, scale in (("sum", 1), ("mean", 5)):
        got = disentangle.intra_class(jnp.asarray(f), jnp.asarray(pid), reduce=reduce)
        np.testing.assert_allclose(got, want / scale, rtol=1e-5)


def test_factors_of_the_losses():
    rng = np.random.default_rng(0)
    sizes = {"f_id": 6, "f_test": 6, "f_cam": 6, "logits_id": 4, "logits_cam": 3}
    out = {name: jnp.asarray(np.abs(rng.standard_normal((8, n))), jnp.float32) for name, n in sizes.items()}
    pid, camid = jnp.arange(8) // 2, jnp.arange(8) % 3
    plain = jax.jit(method().losses)(out, pid, camid)
    assert plain["disentangle"] > 0 and plain["intra_class"] > 0
    for field, name in (("lam_dis", "disentangle"), ("lam_ic", "intra_class"), ("lam_cam", "cam_ce")):
        own = getattr(config().dsanet, field)
        changed = jax.jit(method(**{field: own + 2}).losses)(out, pid, camid)
        np.testing.assert_allclose(changed["loss"] - plain["loss"], 2 * plain[name], rtol=1e-5)


def test_spread_of_the_frame_weights_at_the_start():
    """The kernel's standard deviation: Kaiming's for one output by default."""
    f_t = jnp.asarray(np.random.default_rng(0).standard_normal((64, 4, 512)), jnp.float32)
    for std, largest in ((2**0.5, (0.9, 1)), (0.001, (0.25, 0.27))):
        module = dsanet.nets.FrameWeights(std)
        variables = module.init(jax.random.key(0), f_t)
        assert abs(variables["params"]["conv"]["kernel"].std() / std - 1) < 0.1
        w = module.apply(variables, f_t)["w_hat"]
        assert largest[0] < w.max(1).mean() < largest[1]
    assert (method(fwg_std=0.5).network.fwg_std, method().network.fwg_std) == (0.5, 2**0.5)


@pytest.mark.slow
def test_running_statistics_belong_to_f_id():
    """Switched features do not move neck_id's running statistics."""
    m, b = method(), batch()
    net = m.network
    clip = jnp.asarray(b["image"], jnp.float32) / 64 - 2
    variables = drawn(m).nets["net"]
    run = jax.jit(lambda p: net.apply(variables, clip, True, p, mutable=["batch_stats"])[1])
    _, changed = net.apply(variables, clip, True, None, mutable=["batch_stats"])
    with_sao = run(jnp.arange(8)[::-1])
    assert difference(with_sao["batch_stats"]["neck_id"], changed["batch_stats"]["neck_id"]) < 1e-4


def test_what_a_step_reports_has_a_title():
    m = method()
    state = jax.eval_shape(m.init, jax.random.key(0))
    _, metrics = jax.eval_shape(m.step, state, {"train": batch()})
    assert {*metrics} == {*dsanet.METRICS, "loss", "lr"}


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="disentangle"):
        method(disentangle=False)
    for field, value, says in (("width", 8, "multiple of 64"), ("frames", 0, "set config.data.frames")):
        m = method()
        setattr(m.config.data, field, value)
        with pytest.raises(ConfigError, match=says):
            jax.eval_shape(m.init, jax.random.key(0))


def test_what_l_dis_can_be_met_by():
    """Centred features, ReLU in the expansion, the raw triplet: each against numbers by hand."""
    rng = np.random.default_rng(0)
    sizes = {"f_id": 6, "f_test": 6, "f_cam": 6, "logits_id": 4, "logits_cam": 3}
    out = {name: jnp.asarray(rng.standard_normal((8, n)) + 1, jnp.float32) for name, n in sizes.items()}
    pid, camid = jnp.arange(8) // 2, jnp.arange(8) % 3
    a, b = (np.asarray(out[n], np.float64) for n in ("f_id", "f_cam"))

    def cosines(a, b):
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    plain = jax.jit(method().losses)(out, pid, camid)
    np.testing.assert_allclose(plain["cosine"], cosines(a, b).mean(), rtol=1e-5)
    np.testing.assert_allclose(plain["cam_negative"], (b < 0).mean(), rtol=1e-6)
    ratio = np.sqrt(b.var(0).mean() / a.var(0).mean())
    np.testing.assert_allclose(plain["cam_spread"], ratio, rtol=1e-4)
    means = {"f_id": out["f_id"].mean(0), "f_cam": out["f_cam"].mean(0)}
    centred = jax.jit(method(center=True).losses)(out, pid, camid, means)
    want = np.maximum(cosines(a - a.mean(0), b - b.mean(0)), 0).mean()
    np.testing.assert_allclose(centred["disentangle"], want, rtol=1e-4)
    settings = config(raw_triplet=5)
    settings.loss.triplet, settings.loss.feature = "cosine", "after_bn"
    raw = dsanet.DsaNet(settings, Info(4, 3))
    losses = jax.jit(lambda step: raw.losses(out, pid, camid, step=step))
    early, late = losses(4), losses(5)
    assert early["triplet"] < 0.9 * late["triplet"]  # cosines lie within 2
    distance = np.linalg.norm(a[:, None] - a[None], axis=2)
    same = np.equal.outer(np.asarray(pid), np.asarray(pid))
    hardest = np.where(same, distance, 0).max(1) - np.where(same, np.inf, distance).min(1)
    np.testing.assert_allclose(late["triplet"], np.maximum(hardest + 0.3, 0).mean(), rtol=1e-4)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 5)), jnp.float32)
    for relu, lowest in ((False, -np.inf), (True, 0)):
        net = nets.ChannelExpansion(6, relu=relu)
        maps, _ = net.apply(net.init(jax.random.key(0), x, False), x, False)
        assert (maps.min() >= 0) == relu and maps.min() >= lowest
    with pytest.raises(ConfigError, match="center needs"):
        method(center=True, disentangle=False, sao=False, intra_class=False)


def test_running_means_are_kept():
    m = method(center=True)
    shapes = jax.eval_shape(m.init, jax.random.key(0))
    features = shapes.nets["net"]["params"]["cel"]["conv"]["kernel"].shape[-1]
    assert shapes.memory["means"]["f_id"].shape == shapes.memory["means"]["f_cam"].shape == (features,)
    assert "means" not in jax.eval_shape(method().init, jax.random.key(0)).memory
