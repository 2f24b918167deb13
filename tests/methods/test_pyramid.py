"""Pyramid: its branches, its losses by a loop, the switch between them."""

import jax
import numpy as np
import pytest
from small import difference, drawn, random_batch

from reid_jax import methods
from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import pyramid
from reid_jax.models import heads, weights

PIDS = np.arange(24, dtype=np.int32) % 6


def build(weight=1.0, **fields):
    tree = methods.defaults("pyramid")
    tree["data"].update(height=16, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), head="pyramid", pyramid_dim=5)
    tree["model"].update(pyramid_stripes=2, pyramid_levels=(1, 2), pyramid_dropout=0.0)
    tree["loss"].update(branches="sum", triplet="euclidean", margin=1.4, triplet_weight=weight)
    tree["optim"].update(kind="sgd", lr=0.1, weight_decay=0.0)
    tree["pyramid"].update(fields)
    zeros = np.zeros(24, np.int32)
    return pyramid.Pyramid(namespace(tree), methods.Info(6, 1, labelled=Rows(0, PIDS, zeros, zeros)))


@pytest.fixture(scope="module")
def stepped():
    """(method, its compiled step, a state)."""
    method = build()
    return method, jax.jit(method.step), drawn(method)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def hardest(features, pid, margin):
    """The batch-hard triplet by a loop."""
    total = 0.0
    for i in range(len(pid)):
        d = np.sqrt(np.maximum(((features - features[i]) ** 2).sum(1), 1e-12))
        total += max(0.0, d[pid == pid[i]].max() - d[pid != pid[i]].min() + margin)
    return total / len(pid)


@pytest.mark.slow
def test_losses_are_sums_over_the_branches(stepped):
    method, step, state = stepped
    batch = random_batch(size=8)
    apply = jax.jit(method.encoder.apply, static_argnums=2)
    out, _ = apply(state.nets["net"], method.view(batch), True, method.key(state))
    ce = tri = 0.0
    for logits, feature in zip(out.logits, out.after_bn, strict=True):
        logits = np.asarray(logits, np.float64)
        ce += np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(8), batch["pid"]])
        tri += hardest(unit(np.asarray(feature, np.float64)), batch["pid"], 1.4)
    new, metrics = step(state, {"train": batch})
    assert len(out.logits) == 3 and metrics["switched"] == 1
    np.testing.assert_allclose([metrics["ce"], metrics["triplet"]], [ce, tri], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], ce + tri, rtol=1e-4)
    np.testing.assert_allclose(new.memory["meter"], [0.25 * ce, 0.25 * tri], rtol=1e-4)
    assert np.allclose(np.linalg.norm(method.embed(state, batch["image"], "net"), axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_a_triplet_that_does_not_fall_is_left_out(stepped):
    """Then the step is that of the cross entropy alone."""
    method, step, state = stepped
    batch = {"train": random_batch(size=8)}
    falling = state._replace(memory={"meter": np.float32([50.0, 1e-6])})
    new, metrics = step(falling, batch)
    assert metrics["switched"] == 0 and metrics["triplet"] > 0
    np.testing.assert_allclose(metrics["loss"], metrics["ce"], rtol=1e-6)
    alone, _ = jax.jit(build(weight=0.0).step)(falling, batch)
    assert difference(new.nets, alone.nets) < 1e-6
    both, _ = step(state, batch)
    assert difference(new.nets, both.nets) > 1e-4


def test_switch_by_a_loop():
    """The published rule, divisions by zero and all; a quotient of two zeros does not leave it out."""
    series = np.random.default_rng(3).uniform(0.2, 3, (60, 2)) * np.linspace(2, 0.5, 60)[:, None]
    series[20:23] = [[5, 5], [9, 9], [20, 20]]  # both get worse: 0 / 0
    means, k, used = [0.0, 0.0], np.zeros(2), []
    for losses in series:
        fl = []
        for i in range(2):
            new = 0.25 * losses[i] + 0.75 * means[i]
            p = min(new, means[i]) / means[i] if means[i] else 0.5
            fl.append(np.float64(-((1 - p) ** 2) * np.log(p)))
            means[i] = new
        with np.errstate(all="ignore"):
            want = not fl[1] / fl[0] < 0.16  # by -0 where the cross entropy does not fall
        k, measures = pyramid.measured(np.float32(losses), np.float32(k), 0.25, 2.0)
        used.append(bool(pyramid.uses_triplet(measures, 0.16)))
        assert used[-1] == want
        np.testing.assert_allclose(measures, fl, rtol=2e-3, atol=1e-6)
    assert 0 < sum(used) < 60 and all(used[20:23])


def head(levels=(1, 2, 3, 4, 5, 6), stripes=6, **fields):
    tree = methods.defaults("pyramid")["model"] | fields
    tree |= dict(head="pyramid", backbone="narrow", pyramid_levels=levels, pyramid_stripes=stripes)
    return heads.build(namespace(tree), 5).top


def test_runs_of_stripes():
    """All 21 in their order; vectors are mean plus maximum of the rows."""
    runs = head().runs
    assert len(runs) == 21 and runs[:7] == (*((i, i + 1) for i in range(6)), (0, 2)) and runs[-1] == (0, 6)
    some = head((3, 1), 3)
    assert some.runs == ((0, 1), (1, 2), (2, 3), (0, 3))
    maps = np.random.default_rng(0).normal(size=(2, 6, 3, 4)).astype(np.float32)
    parts = [maps[:, 2 * a : 2 * b].reshape(2, -1, 4) for a, b in some.runs]
    want = np.concatenate([p.mean(1) + p.max(1) for p in parts], 1)
    np.testing.assert_allclose(some.apply({}, maps, method="pool"), want, rtol=1e-5, atol=1e-6)
    for wrong in ((), (1, 1), (7,)):
        with pytest.raises(ConfigError, match="pyramid_levels"):
            head(wrong)
    with pytest.raises(ConfigError, match="must divide"):
        head().apply({}, np.zeros((1, 8, 2, 3), np.float32), method="pool")


def test_weights_go_there_and_back(stepped):
    net = drawn(stepped[0], 5).nets["net"]
    entries = weights.to_torch(net, "pyramid", counters=True)
    assert {"resnet.conv1.weight", "pyramid_conv_list0.2.0.bias", "pyramid_fc_list0.0.weight"} < {*entries}
    unused = {"pyramid_conv_list1.0.0.weight": np.zeros((1024, 8, 1, 1), np.float32)}
    back, report = weights.load(entries | unused, jax.tree.map(np.zeros_like, net))
    assert difference(back, net) == 0 and report["layout"] == "pyramid"
    assert report["unused"] == list(unused) and not report["missing"]
