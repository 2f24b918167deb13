"""Centers and pairs that learn beside the encoder, and a frozen network whose norms rest."""

import jax
import numpy as np
import pytest
from small import Stepping, difference, drawn, random_batch
from stage_cases import facts

from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import baseline
from reid_jax.train import stages

FIELDS = dict(
    loss__center=0.01, loss__center_lr=0.5, loss__verification=1.0, loss__mining="weighted",
    loss__circle_weight=0.1, loss__circle_scale=8.0, loss__feature="before_bn", loss__triplet="euclidean",
    model__neck="bnneck", model__classifier="circle", model__classifier_scale=8.0, model__bn_group="global",
    optim__freeze=("^base/",), optim__freeze_steps=2, optim__freeze_norms_eval=True, optim__lr=1e-3,
)  # fmt: skip


def settings(**fields):
    tree = methods.defaults("baseline")
    tree["data"].update(height=16, width=8)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), narrow_stripes=1, narrow_dim=8)
    tree["optim"].update(milestones=())
    for name, value in fields.items():
        section, field = name.split("__")
        tree[section][field] = value
    return namespace(tree)


@pytest.fixture(scope="module")
def run():
    """(Baseline, batches, [State after 0, 1, 2, 3 steps], last metrics)."""
    info = methods.Info(6, 3, steps_per_epoch=5, total_steps=50, axis_name="device")
    method = baseline.Baseline(settings(**FIELDS), info)
    states = [jax.tree.map(np.asarray, drawn(method))]
    rng = np.random.default_rng(0)
    centers = states[0].nets["centers"]["params"]["0"]
    states[0].nets["centers"]["params"]["0"] = np.float32(rng.standard_normal(centers.shape))
    step, batch = Stepping(method.step), {"train": random_batch(), "generated": random_batch(1)}
    for _ in range(3):
        state, metrics = step(states[-1], batch)
        states.append(state)
    assert step.traces == 1
    return method, batch, states, metrics


@pytest.mark.slow
def test_eight_devices_equal_one(run):
    method, batch, states, metrics = run
    several, shared = Stepping(method.step, 8)(states[0], batch, 3)
    assert difference(states[-1].nets, several.nets) < 2e-3
    assert {*metrics} == {*shared}
    for name in metrics:
        np.testing.assert_allclose(shared[name], metrics[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_centers_move_by_the_gradient_without_the_weight(run):
    """By hand: c <- c - 0.5 * 2 * (sum of c - f of its images) / B."""
    method, batch, states, *_ = run
    batch = batch["train"]
    image = method.view(batch)
    out, _ = jax.jit(lambda v, x: method.encoder.apply(v, x, False))(states[0].nets["net"], image)
    f, before = np.asarray(out.before_bn[0]), states[0].nets["centers"]["params"]["0"]
    wanted = before.copy()
    for row, pid in enumerate(batch["pid"]):
        wanted[pid] -= 0.5 * 2 * (before[pid] - f[row]) / len(f)
    np.testing.assert_allclose(states[1].nets["centers"]["params"]["0"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_norms_rest_while_the_base_is_frozen(run):
    _, _, states, *_ = run
    nets = [s.nets["net"] for s in states]
    for later in nets[1:3]:
        assert difference(later["batch_stats"], nets[0]["batch_stats"]) == 0
        assert difference(later["params"]["base"], nets[0]["params"]["base"]) == 0
        assert difference(later["params"]["classifier"], nets[0]["params"]["classifier"]) > 0
    assert difference(nets[3]["batch_stats"], nets[0]["batch_stats"]) > 0
    assert difference(nets[3]["params"]["base"], nets[0]["params"]["base"]) > 0


@pytest.mark.slow
def test_pairs_learn_and_everything_is_told(run):
    _, _, states, metrics = run
    assert difference(states[1].nets["pairs"], states[0].nets["pairs"]) > 0
    assert {*metrics} == {*baseline.METRICS, "loss", "lr"}


@pytest.mark.parametrize("fields, message", [
    (dict(loss__pair_dropout=1.0), "pair_dropout"),
    (dict(loss__mining="all"), r"loss\.mining"),
    (dict(loss__label_smooth=-0.1), "smoothing=others"),
    (dict(optim__schedule="cosine", optim__warmup_epochs=1), "goes by steps"),
])  # fmt: skip
def test_fields_that_cannot_be(fields, message):
    info = methods.Info(6, 3, steps_per_epoch=5, total_steps=50)
    with pytest.raises(ConfigError, match=message):
        method = baseline.Baseline(settings(**fields), info)
        batch = {"train": random_batch()}
        jax.eval_shape(method.step, stages.state_shapes(method), batch)


def test_a_method_that_has_no_use_for_a_field_says_so():
    from runs import tiny

    config = tiny("mmt", loss__center=0.1)
    with pytest.raises(ConfigError, match=r"config\.loss\.center is 0\.1, and mmt has no use for it"):
        stages.build(config, "adapt", facts(config))
