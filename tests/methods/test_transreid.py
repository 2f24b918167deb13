"""TransReID as the baseline trains it: its loss, the cameras it sees, a whole run."""

import json

import jax
import numpy as np
import pytest
from runs import StopAt, assert_same_run, config_of, lines, load, tiny, train
from small import random_state
from stage_cases import batches, facts

from reid_jax.train import restore, stages


@pytest.mark.slow
def test_loss_is_half_the_global_one_and_half_the_mean_of_the_parts():
    """The step's, against a loop in float64; another camera gives another loss."""
    config = config_of("transreid.py:smoke", data__instances=2, model__vit_drop_path=0.0)
    _, method = stages.build(config, "train", facts(config, axis_name=None))
    state = random_state(method)
    batch = batches(method.part(0), state, config.data)["train"]
    step = jax.jit(method.step)
    metrics = step(state, {"train": batch})[1]
    out = jax.jit(method.encoder.apply, static_argnums=2)(
        state.nets["net"], method.view(batch), True, method.key(state), batch["camid"]
    )[0]
    pid, ce, hard = batch["pid"], [], []
    for logits, f in zip(out.logits, out.before_bn, strict=True):
        logits, f = np.asarray(logits, np.float64), np.asarray(f, np.float64)
        ce.append(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(pid)), pid]))
        d = np.linalg.norm(f[:, None] - f, axis=2)
        same = pid[:, None] == pid
        pairs = [(d[i][same[i]].max(), d[i][~same[i]].min()) for i in range(len(pid))]
        hard.append(np.mean([np.log1p(np.exp(far - near)) for far, near in pairs]))
    assert len(ce) == 5
    for name, terms in (("ce", ce), ("triplet", hard)):
        np.testing.assert_allclose(metrics[name], 0.5 * terms[0] + 0.5 * np.mean(terms[1:]), rtol=1e-4)
    other = step(state, {"train": batch | {"camid": (batch["camid"] + 1) % 6}})[1]
    assert abs(float(other["loss"] - metrics["loss"])) > 1e-4


@pytest.mark.slow
def test_a_run(tmp_path, caplog):
    """Resumed as unbroken; it says that it knows cameras; those of other pictures are unknown to it."""
    config = tiny("transreid")
    dataset = load(config, tmp_path / "data")
    train(config, dataset, tmp_path / "unbroken")
    steps = [x["step"] for x in lines(tmp_path / "unbroken", "train")]
    train(config, dataset, tmp_path / "run", StopAt(steps[len(steps) // 2]))
    train(config, dataset, tmp_path / "run")
    assert_same_run(tmp_path / "unbroken", tmp_path / "run", "train")
    final = json.loads((tmp_path / "run" / "eval" / "final.json").read_text())
    assert final["knows_camera"] is True
    run, splits = restore.run(str(tmp_path / "run")), {"query": dataset.query[:4]}
    caplog.clear()
    known = run.features(splits, dataset.root, source=config.data.name).feature
    assert "by cameras that training has not seen" not in caplog.text
    unknown = run.features(splits, dataset.root).feature
    assert "4 of 4 pictures are by cameras" in caplog.text
    assert np.abs(known - unknown).max(1).min() > 1e-4
