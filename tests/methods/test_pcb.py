"""PCB: its loss by a loop over the stripes, its batches, its learning rates."""

import jax
import numpy as np
import pytest
from small import drawn, random_batch

from reid_jax import methods
from reid_jax.data.rows import Rows
from reid_jax.fields import namespace
from reid_jax.methods import pcb

PIDS = np.arange(24, dtype=np.int32) % 6


@pytest.fixture(scope="module")
def method():
    tree = methods.defaults("pcb")
    tree["data"].update(height=16, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8))
    tree["model"].update(head="stripes", stripes_parts=2, stripes_dim=5)
    tree["loss"].update(branches="sum", triplet_weight=0.0)
    tree["optim"].update(kind="sgd", lr=0.1, groups=(("^base/", 0.1, None),), weight_decay=0.0)
    zeros = np.zeros(24, np.int32)
    return pcb.Pcb(namespace(tree), methods.Info(6, 1, labelled=Rows(0, PIDS, zeros, zeros)))


def test_loss_is_the_sum_over_the_stripes(method):
    """The step's, with its dropout, against a loop in float64; the backbone moves a tenth as far."""
    state, batch = drawn(method), random_batch(size=8)
    new, metrics = jax.jit(method.step)(state, {"train": batch})
    out, _ = method.encoder.apply(state.nets["net"], method.view(batch), True, method.key(state))
    total = 0.0
    for logits in np.asarray(out.logits, np.float64):
        terms = [np.log(np.exp(row).sum()) - row[pid] for row, pid in zip(logits, batch["pid"], strict=True)]
        total += np.mean(terms)
    assert len(out.logits) == 2
    np.testing.assert_allclose([metrics["ce"], metrics["loss"]], total, rtol=1e-5)

    def loss(params):
        variables = {**state.nets["net"], "params": params}
        out, _ = method.encoder.apply(variables, method.view(batch), True, method.key(state))
        chosen = [jax.nn.log_softmax(x)[np.arange(8), batch["pid"]] for x in out.logits]
        return -sum(x.mean() for x in chosen)

    before, after = state.nets["net"]["params"], new.nets["net"]["params"]
    gradient = jax.jit(jax.grad(loss))(before)
    for name, rate in (("base", 0.01), ("local_conv", 0.1), ("instance1", 0.1)):
        for w, v, g in zip(*(jax.tree.leaves(t[name]) for t in (before, after, gradient)), strict=True):
            np.testing.assert_allclose(w - v, rate * g, rtol=1e-3, atol=2e-7)


def test_an_epoch_holds_every_image_once(method):
    sampler = method.streams(None)["train"].sampler
    assert method.info.steps_per_epoch == sampler.batches_per_epoch == 3
    for epoch in range(3):
        assert sorted(sampler.epoch(epoch).ravel().tolist()) == list(range(24))
    assert not np.array_equal(sampler.epoch(0), sampler.epoch(1))


def test_test_feature_is_the_stripes_at_unit_length(method):
    feature = jax.jit(lambda s, x: method.embed(s, x, "net"))(drawn(method), random_batch(size=8)["image"])
    lengths = np.linalg.norm(np.asarray(feature).reshape(8, 2, 8), axis=2)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
