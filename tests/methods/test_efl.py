"""EFL: who moves whom, what each mode builds, and equality of one and eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import difference, info, random_batch, small

from reid_jax import methods
from reid_jax.methods import efl
from reid_jax.train import parallel, stages

NAMES = {
    "full": {"phi1", "phi2", "m1", "m2", "cam", "q"},
    "mmt": {"phi1", "phi2", "m1", "m2"},
    "fdm": {"phi1", "cam", "q"},
    "baseline": {"phi1"},
}


def start(config, axis_name=None):
    method = efl.stages(config, info(axis_name))["train"]
    return method, jax.jit(method.init)(jax.random.key(0), random_batch())


@pytest.mark.parametrize("mode", efl.MODES)
def test_modes_build_only_what_they_need(mode):
    config = small(mode)
    method, state = start(config)
    assert set(state.nets) == NAMES[mode]
    assert set(state.opt) == NAMES[mode] - {"m1", "m2"}
    new, metrics = jax.jit(method.step)(state, random_batch())
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(np.isfinite(v) for v in metrics.values())
    assert ("mi" in metrics) == (mode in ("full", "fdm"))
    assert ("kl" in metrics) == (mode in ("full", "mmt"))
    for net in method.nets:
        feature = method.embed(new, random_batch()["image"], net)
        assert feature.shape == (16, 8) and feature.dtype == jnp.float32


def gradient_of(term, mode="full"):
    """Gradients of one loss term with respect to every network's params, by differentiating all of them."""
    config = small(mode)
    models = efl.build_models(config, info())
    state = efl.init_state(jax.random.key(1), jnp.zeros((2, 16, 8, 3)), models=models, mode=mode)
    rng = np.random.default_rng(3)
    views = {n: jnp.asarray(rng.standard_normal((16, 16, 8, 3)), jnp.float32) for n in ("phi1", "phi2")}
    batch = random_batch()
    pid, camid = jnp.asarray(batch["pid"]), jnp.asarray(batch["camid"])
    shared = dict(models=models, config=config, axis_name=None)

    def value(params):
        nets = {n: {**v, "params": params[n]} for n, v in state.nets.items()}
        s = state._replace(nets=nets)
        logits, _ = efl.teacher_logits(s, views, models=models)
        f_cam, _, _, cam = efl.camera_step(s, views["phi1"], camid, **shared)
        fixed = {
            "teacher_logits": logits, "f_cam": f_cam, "q": params["q"], "lambda_mi": 1.0,
            "key": jax.random.key(0),
        }  # fmt: skip
        aux = {}
        for n in ("phi1", "phi2"):
            mine = {
                **fixed,
                "stats": nets[n]["batch_stats"],
                "teacher_logits": logits["phi2" if n == "phi1" else "phi1"],
            }
            _, aux[n] = efl.student_loss(params[n], mine, views[n], pid, **shared)
        if term == "mie":
            features = {n: a["feature"] for n, a in aux.items()}
            return efl.estimator_loss(params["q"], features, f_cam, models=models)
        if term == "camera":
            return cam["cam_ce"] + cam["cam_triplet"]
        return sum(a["metrics"][term] for a in aux.values())

    grads = jax.grad(value)({n: v["params"] for n, v in state.nets.items()})
    return {n: max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(g)) for n, g in grads.items()}


@pytest.mark.parametrize(
    "term, moves",
    [
        ("ce", {"phi1", "phi2"}),
        ("triplet", {"phi1", "phi2"}),
        ("kl", {"phi1", "phi2"}),
        ("mi", {"phi1", "phi2"}),
        ("mie", {"q"}),
        ("camera", {"cam"}),
    ],
)
def test_stop_gradient_table(term, moves):
    """Each loss reaches the networks that the table names and gives exact zeros elsewhere."""
    size = gradient_of(term)
    assert {n for n, g in size.items() if g > 0} == moves


def test_update_moves_what_it_should():
    """Without learning rates no parameter moves, but running statistics do, the teachers' too."""
    still = small(optim__lr=0.0, efl__mi_lr=0.0)
    method = efl.stages(still, info())["train"]
    state = jax.jit(method.init)(jax.random.key(0), random_batch())
    new, _ = jax.jit(method.step)(state, random_batch())
    for net in NAMES["full"]:
        assert difference(new.nets[net]["params"], state.nets[net]["params"]) < 1e-7
    for net in ("phi1", "m1", "m2", "cam"):  # train-mode forward moves running statistics
        assert difference(new.nets[net]["batch_stats"], state.nets[net]["batch_stats"]) > 1e-4


def test_teacher_is_the_student_after_the_first_step_of_a_ramp():
    method, state = start(small())
    new, _ = jax.jit(method.step)(state, random_batch())
    assert difference(new.nets["m1"]["params"], new.nets["phi1"]["params"]) < 1e-7
    newer, _ = jax.jit(method.step)(new, random_batch(1))
    want = jax.tree.map(
        lambda a, b: 0.5 * a + 0.5 * b, new.nets["m1"]["params"], newer.nets["phi1"]["params"]
    )
    assert difference(newer.nets["m1"]["params"], want) < 1e-6


def test_mi_starts_when_told():
    """Before mi_start the students of full and mmt move alike."""
    batch = random_batch()
    method_a, a = start(small("full", efl__mi_start=1, optim__eps=1e-3))
    method_b, b = start(small("mmt", optim__eps=1e-3))
    b = b._replace(nets={n: a.nets[n] for n in b.nets}, opt={n: a.opt[n] for n in b.opt})
    a, _ = jax.jit(method_a.step)(a, batch)
    b, _ = jax.jit(method_b.step)(b, batch)
    assert difference(a.nets["phi1"], b.nets["phi1"]) < 1e-6
    a, _ = jax.jit(method_a.step)(a, batch)
    b, _ = jax.jit(method_b.step)(b, batch)
    assert difference(a.nets["phi1"]["params"], b.nets["phi1"]["params"]) > 1e-6


def test_efl_baseline_mode_is_the_baseline_method():
    config = small("baseline")
    method, state = start(config)
    other = methods.find("baseline").stages(config, info())["train"]
    peer = methods.State(state.step, {"net": state.nets["phi1"]}, {"net": state.opt["phi1"]})
    for i in range(2):
        state, metrics = jax.jit(method.step)(state, random_batch(i))
        peer, same = jax.jit(other.step)(peer, random_batch(i))
    assert difference(state.nets["phi1"], peer.nets["net"]) < 1e-6
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5)


def run_on(backend, devices, config, steps=3):
    """State and metrics after some steps on some devices."""
    runner = parallel.Runner(backend, devices)
    method = efl.stages(config, info(runner.axis_name))["train"]
    state = runner.replicate(jax.jit(method.init)(jax.random.key(0), random_batch()))
    step = runner.compile(method.step)
    for i in range(steps):
        state, metrics = step(state, runner.shard(random_batch(i)))
    return runner.fetch(state), runner.fetch(metrics)


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
@pytest.mark.parametrize("triplet", ["cosine", pytest.param("euclidean", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(backend, triplet):
    """Batch-global triplet, MI and batch norm: the parameters agree to float32 rounding.

    Adam's first steps divide by the gradient's size, so weights with vanishing gradient are
    compared in SGD-like terms: eps is raised above rounding noise.
    """
    config = small(model__bn_group="global", loss__triplet=triplet, optim__eps=1e-3)
    one, metrics_one = run_on("jit", jax.devices()[:1], config)
    eight, metrics_eight = run_on(backend, jax.devices(), config)
    assert difference(one.nets, eight.nets) < 2e-5
    for name, value in metrics_one.items():
        np.testing.assert_allclose(metrics_eight[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_per_device_batch_norm_keeps_replicas_equal():
    """With per-device statistics the running ones are averaged: every device holds the same state."""
    runner = parallel.Runner("pmap", jax.devices())
    config = small(model__bn_group="device")
    method = efl.stages(config, info(runner.axis_name))["train"]
    state = runner.replicate(jax.jit(method.init)(jax.random.key(0), random_batch()))
    state, _ = runner.compile(method.step)(state, runner.shard(random_batch()))
    for leaf in jax.tree.leaves(state.nets):
        leaf = np.asarray(leaf)
        assert np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_state_is_donated():
    """The old state's buffers are given to the new one."""
    runner = parallel.Runner("pmap", jax.devices()[:1])
    method = efl.stages(small(), info(runner.axis_name))["train"]
    state = runner.replicate(jax.jit(method.init)(jax.random.key(0), random_batch()))
    runner.compile(method.step)(state, runner.shard(random_batch()))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_bfloat16_compute_keeps_float32_state():
    config = small(model__dtype="bfloat16")
    method, state = start(config)
    new, metrics = jax.jit(method.step)(state, random_batch())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(new.nets))
    assert metrics["loss"].dtype == jnp.float32
    _, reference = jax.jit(efl.stages(small(), info())["train"].step)(state, random_batch())
    np.testing.assert_allclose(metrics["ce"], reference["ce"], rtol=0.05)


def test_example_batch_has_the_shapes_of_a_batch():
    example = stages.example_batch(small(), 16)
    batch = random_batch()
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }
