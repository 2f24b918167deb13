"""EFL: who moves whom, what each mode builds, and equality of one and eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import Stepping, difference, drawn, info, random_batch, small

from reid_jax import methods
from reid_jax.methods import efl

NAMES = {
    "full": {"phi1", "phi2", "m1", "m2", "cam", "q"},
    "mmt": {"phi1", "phi2", "m1", "m2"},
    "fdm": {"phi1", "cam", "q"},
    "baseline": {"phi1"},
}


def start(config, axis_name="device"):
    method = efl.Efl(config, info(axis_name))
    return method, drawn(method)


@pytest.fixture(scope="module")
def full():
    """The compiled step of the full method; it takes the buffers of its state."""
    return Stepping(start(small())[0].step, donate=True)


def batches(i=0):
    return {"train": random_batch(i)}


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=[pytest.mark.slow] * (m != "baseline")) for m in efl.MODES]
)
def test_modes_build_only_what_they_need(mode, full):
    method, state = start(small(mode))
    assert set(state.nets) == NAMES[mode]
    assert set(state.opt) == NAMES[mode] - {"m1", "m2"}
    new, metrics = (full if mode == "full" else Stepping(method.step))(state, batches())
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(np.isfinite(v) for v in metrics.values())
    assert ("mi" in metrics) == (mode in ("full", "fdm"))
    assert ("kl" in metrics) == (mode in ("full", "mmt"))
    for net in method.nets:
        feature = jax.eval_shape(lambda s, x, net=net: method.embed(s, x, net), new, random_batch()["image"])
        assert feature.shape == (16, 8) and feature.dtype == jnp.float32


def gradient_of(terms):
    """Gradients of loss terms with respect to every network's params, by differentiating all of them."""
    method, state = start(small(), None)
    rng = np.random.default_rng(3)
    views = {n: jnp.asarray(rng.standard_normal((16, 16, 8, 3)), jnp.float32) for n in ("phi1", "phi2")}
    batch = random_batch()
    pid, camid = jnp.asarray(batch["pid"]), jnp.asarray(batch["camid"])

    def values(params):
        nets = {n: {**v, "params": params[n]} for n, v in state.nets.items()}
        logits, _ = method.teacher_logits(nets, views)
        f_cam, _, _, cam = method.camera_gradient(nets, views["phi1"], camid)
        fixed = dict(f_cam=f_cam, q=params["q"], lambda_mi=1.0, key=jax.random.key(0))
        losses, features = [], {}
        for n in ("phi1", "phi2"):
            mine = fixed | {"teacher_logits": logits["phi2" if n == "phi1" else "phi1"]}
            _, _, metrics, features[n] = method.student_loss(nets[n], mine, views[n], pid)
            losses.append(metrics)
        return {
            **{t: losses[0][t] + losses[1][t] for t in ("ce", "triplet", "kl", "mi")},
            "mie": method.estimator_loss(params["q"], features, f_cam),
            "camera": cam["cam_ce"] + cam["cam_triplet"],
        }

    grads = jax.jit(jax.jacrev(values))({n: v["params"] for n, v in state.nets.items()})
    return {
        t: {n: max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(g)) for n, g in grads[t].items()}
        for t in terms
    }


MOVES = {
    "ce": {"phi1", "phi2"},
    "triplet": {"phi1", "phi2"},
    "kl": {"phi1", "phi2"},
    "mi": {"phi1", "phi2"},
    "mie": {"q"},
    "camera": {"cam"},
}


def test_stop_gradient_table():
    """Each loss reaches the networks that the table names and gives exact zeros elsewhere."""
    sizes = gradient_of(MOVES)
    for term, size in sizes.items():
        assert {n for n, g in size.items() if g > 0} == MOVES[term], term


@pytest.mark.slow
def test_nothing_but_its_rate_moves_a_parameter():
    """Without learning rates no parameter moves, but running statistics do, the teachers' too."""
    method, state = start(small(optim__lr=0.0, efl__mi_lr=0.0))
    new, _ = Stepping(method.step)(state, batches())
    for net in NAMES["full"]:
        assert difference(new.nets[net]["params"], state.nets[net]["params"]) < 1e-7
    for net in ("phi1", "m1", "m2", "cam"):  # train-mode forward moves running statistics
        assert difference(new.nets[net]["batch_stats"], state.nets[net]["batch_stats"]) > 1e-4


@pytest.mark.slow
def test_one_program_of_the_step(full):
    """Teachers after a ramp's first steps; the old state's buffers are given to the new."""
    _, state = start(small())
    new, _ = full(state, batches())
    for net in ("phi1", "m1", "m2", "cam"):  # train-mode forward moves running statistics
        assert difference(new.nets[net]["batch_stats"], state.nets[net]["batch_stats"]) > 1e-4
    assert difference(new.nets["m1"]["params"], new.nets["phi1"]["params"]) < 1e-7
    newer, _ = full(new, batches(1))
    want = jax.tree.map(
        lambda a, b: 0.5 * a + 0.5 * b, new.nets["m1"]["params"], newer.nets["phi1"]["params"]
    )
    assert difference(newer.nets["m1"]["params"], want) < 1e-6
    on_device = full.devices.replicate(state)
    full.compiled(on_device, full.devices.shard(batches()))
    assert all(x.is_deleted() for x in jax.tree.leaves(on_device))


@pytest.mark.slow
def test_mi_starts_when_told():
    """Before mi_start the students of full and mmt move alike."""
    method_a, a = start(small("full", efl__mi_start=1, optim__eps=1e-3))
    method_b, b = start(small("mmt", optim__eps=1e-3))
    step_a, step_b = Stepping(method_a.step), Stepping(method_b.step)
    b = b._replace(nets={n: a.nets[n] for n in b.nets}, opt={n: a.opt[n] for n in b.opt})
    (a, _), (b, _) = step_a(a, batches()), step_b(b, batches())
    assert difference(a.nets["phi1"], b.nets["phi1"]) < 1e-6
    (a, _), (b, _) = step_a(a, batches()), step_b(b, batches())
    assert difference(a.nets["phi1"]["params"], b.nets["phi1"]["params"]) > 1e-6


@pytest.mark.slow
def test_efl_baseline_mode_is_the_baseline_method():
    config = small("baseline")
    method, state = start(config)
    other = methods.find("baseline").Baseline(config, info())
    peer = methods.State(state.step, {"net": state.nets["phi1"]}, {"net": state.opt["phi1"]})
    state, metrics = Stepping(method.step)(state, batches, 2)
    peer, same = Stepping(other.step)(peer, batches, 2)
    assert difference(state.nets["phi1"], peer.nets["net"]) < 1e-6
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("triplet", ["cosine", pytest.param("euclidean", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(triplet):
    """Batch-global triplet, MI and batch norm: the parameters agree to float32 rounding.

    Adam's first steps divide by the gradient's size, so weights with vanishing gradient are
    compared in SGD-like terms: eps is raised above rounding noise.
    """
    method, state = start(small(model__bn_group="global", loss__triplet=triplet, optim__eps=1e-3))
    alone, metrics = Stepping(method.step, 1)(state, batches, 3)
    eight, metrics_eight = Stepping(method.step, 8)(state, batches, 3)
    assert difference(alone.nets, eight.nets) < 2e-5
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_eight[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_per_device_batch_norm_keeps_replicas_equal():
    """With per-device statistics the running ones are averaged: every device holds the same state."""
    method, state = start(small(model__bn_group="device"))
    step = Stepping(method.step, 8)
    state, _ = step.compiled(step.devices.replicate(state), step.devices.shard(batches()))
    for leaf in jax.tree.leaves(state.nets):
        leaf = np.asarray(leaf)
        assert np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_state():
    method, state = start(small(model__dtype="bfloat16"))
    new, metrics = Stepping(method.step)(state, batches())
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(new.nets))
    assert metrics["loss"].dtype == np.float32
    _, reference = Stepping(start(small())[0].step)(state, batches())
    np.testing.assert_allclose(metrics["ce"], reference["ce"], rtol=0.05)
