"""The baseline learns a fixed batch, in both styles, and leaves a frozen neck bias alone."""

import jax
import numpy as np
import pytest

from reid_jax import methods
from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import baseline

INFO = methods.Info(num_pids=4, num_cams=3, steps_per_epoch=5, total_steps=50)


def settings(**fields):
    tree = methods.defaults("baseline")
    tree["data"].update(height=16, width=8)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), narrow_stripes=1, narrow_dim=8)
    tree["optim"].update(lr=1e-2, milestones=())
    for name, value in fields.items():
        section, field = name.split("__")
        tree[section][field] = value
    return namespace(tree)


def fixed_batch():
    """Four identities of one colour each."""
    rng = np.random.default_rng(0)
    pid = np.repeat(np.arange(4), 4).astype(np.int32)
    colour = rng.integers(0, 256, (4, 1, 1, 3))[pid]
    image = np.clip(colour + rng.integers(-20, 20, (16, 16, 8, 3)), 0, 255).astype(np.uint8)
    zeros = np.zeros((16, 2, 4), np.int32)
    return {
        "image": image, "pid": pid, "camid": np.zeros(16, np.int32), "index": np.arange(16, dtype=np.int32),
        "flip": zeros[..., 0] > 0, "crop": zeros[..., :2], "erase": zeros,
    }  # fmt: skip


STYLES = {
    "ap3d": {},
    "strong": dict(
        model__neck="bnneck", loss__feature="before_bn", loss__triplet="euclidean", loss__label_smooth=0.1
    ),
}


@pytest.mark.parametrize("style", [pytest.param("ap3d", marks=pytest.mark.slow), "strong"])
def test_learns_a_fixed_batch(style):
    method = baseline.Baseline(settings(**STYLES[style]), INFO)
    batch = fixed_batch()
    state = first = jax.jit(method.init)(jax.random.key(0))
    step = jax.jit(method.step)
    losses = []
    for _ in range(40):
        state, metrics = step(state, {"train": batch})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["accuracy"] == 1.0
    neck = state.nets["net"]["params"]["neck"]
    moved = np.abs(neck["bias"] - first.nets["net"]["params"]["neck"]["bias"]).max()
    assert (moved == 0) == (style == "strong")


def test_batches_of_identities_or_of_all_images_in_turn():
    """data.batches: shuffled holds every image once an epoch, the last incomplete batch left out."""
    pid, zeros = np.arange(26, dtype=np.int32) % 5, np.zeros(26, np.int32)
    info = methods.Info(num_pids=5, num_cams=1, labelled=Rows(0, pid, zeros, zeros))
    shuffled = dict(data__ids=2, data__instances=4, data__batches="shuffled")
    sampler = baseline.Baseline(settings(**shuffled), info).streams(None)["train"].sampler
    epoch = sampler.epoch(0)
    assert epoch.shape == (3, 8) and len(set(epoch.ravel().tolist())) == 24
    sampler = (
        baseline.Baseline(settings(**shuffled | dict(data__batches="pk")), info)
        .streams(None)["train"]
        .sampler
    )
    assert all((np.bincount(pid[batch], minlength=5) % 4 == 0).all() for batch in sampler.epoch(0))
    domains = info._replace(labelled=Rows(0, pid, zeros, pid // 2))
    balanced = settings(**shuffled | dict(data__batches="domains", data__ids=1))
    rows = baseline.Baseline(balanced, domains).streams(None)["train"].sampler.batch(0)
    np.testing.assert_array_equal(pid[rows] // 2, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    with pytest.raises(ConfigError, match="data.batches"):
        baseline.Baseline(settings(**shuffled | dict(data__batches="all")), info)


@pytest.mark.slow
def test_test_feature_is_the_neck_output_with_running_statistics():
    """A picture's feature does not depend on the others in its batch."""
    method = baseline.Baseline(settings(), INFO)
    batch = fixed_batch()
    state = jax.jit(method.init)(jax.random.key(0))
    state, _ = jax.jit(method.step)(state, {"train": batch})
    together = method.embed(state, batch["image"], "net")
    alone = method.embed(state, batch["image"][:1], "net")
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)
    assert together.shape == (16, 8)


@pytest.mark.slow
def test_images_that_show_nobody_are_anybody():
    """LSRO: minus the mean of the log probabilities of all classes; in a pass of their own."""
    method, batch = baseline.Baseline(settings(loss__generated=0.5), INFO), fixed_batch()
    net, key = method.init(jax.random.key(0)).nets["net"], jax.random.key(1)
    classifier = {**net["params"]["classifier"], "bias": np.arange(4.0)}  # else classes are alike on average
    net = {**net, "params": {**net["params"], "classifier": classifier}}
    drawn = {k: v[3:9] for k, v in batch.items()}
    out, moved = method.encoder.apply(net, method.view(drawn), True, key)
    logits = np.asarray(out.logits[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss, stats = method.lsro(net, net["batch_stats"], drawn, key)
    np.testing.assert_allclose(loss, 0.5 * -log_p.mean(), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats, moved)


def test_images_that_show_nobody_are_a_stream_of_their_own(tmp_path):
    pid, zeros = np.arange(8, dtype=np.int32) % 4, np.zeros(8, np.int32)
    drawn = Rows(8, np.full(5, -1, np.int32), zeros[:5], zeros[:5])
    info = INFO._replace(labelled=Rows(0, pid, zeros, zeros), unlabelled=drawn)
    fields = dict(data__ids=2, data__instances=4, data__generated=str(tmp_path), data__generated_images=3)
    streams = baseline.Baseline(settings(**fields), info).streams(None)
    assert (streams["train"].size, streams["generated"].size, streams["generated"].start) == (8, 3, 8)
    assert set(baseline.Baseline(settings(**fields | {"data__generated": ""}), info).streams(None)) == {
        "train"
    }
    for missing, more in ((info._replace(unlabelled=None), {}), (info, dict(train__accumulate=2))):
        with pytest.raises(ConfigError, match=r"config\.data\.generated needs"):
            baseline.Baseline(settings(**{**fields, **more}), missing).streams(None)
