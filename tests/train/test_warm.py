"""Starting from a finished run: everything but classifiers, teachers as copies, and it says so."""

import logging

import jax
import numpy as np
import pytest
from small import difference, info, random_batch, small

from reid_jax.errors import CheckpointError, ConfigError, WeightsError
from reid_jax.methods import efl
from reid_jax.train import checkpoint, warm


def fresh(config, num_pids, seed):
    method = efl.stages(config, info()._replace(num_pids=num_pids))["train"]
    return method, jax.jit(method.init)(jax.random.key(seed), random_batch())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, state) of a run of EFL without cam and q (mode mmt), with 9 identities."""
    workdir = tmp_path_factory.mktemp("run")
    _, state = fresh(small("mmt"), 9, 5)
    c = checkpoint.Checkpoints(workdir, "train")
    c.save(3, jax.tree.map(np.array, state), {"step": 3}, {"mAP": 1.0}, wait=True)
    c.close()
    return str(workdir), state


def test_run_with_other_identities(run, caplog):
    workdir, source = run
    config = small("full", init__run=workdir)
    method, before = fresh(config, 6, 0)
    with caplog.at_level(logging.INFO):
        state = warm.start(config, method, before)
    for net in ("phi1", "phi2"):
        ours, theirs = state.nets[net], source.nets[net]
        assert difference(ours["params"]["base"], theirs["params"]["base"]) == 0
        assert difference(ours["batch_stats"], theirs["batch_stats"]) == 0
        assert difference(ours["params"]["classifier"], before.nets[net]["params"]["classifier"]) == 0
    assert difference(state.nets["m1"], state.nets["phi1"]) == 0
    assert difference(state.nets["m2"], state.nets["phi2"]) == 0
    assert difference(state.nets["cam"]["params"]["base"], source.nets["phi1"]["params"]["base"]) == 0
    assert difference(state.nets["q"], before.nets["q"]) == 0
    text = caplog.text
    assert "phi2 starts from" in text and "params/classifier/kernel" in text


def test_nothing_to_start_from(tmp_path):
    config = small("full")
    method, state = fresh(config, 6, 0)
    assert warm.start(config, method, state) is state
    with pytest.raises(WeightsError, match="init.run"):
        warm.start(small("full", init__run=str(tmp_path)), method, state)
    with pytest.raises(ConfigError, match="use one"):
        warm.start(small("full", init__run="a", init__weights="b"), method, state)
    with pytest.raises((WeightsError, CheckpointError), match="none.npz"):
        warm.start(small("full", init__weights=str(tmp_path / "none.npz")), method, state)


def test_another_net_is_refused(run):
    workdir, _ = run
    config = small("full", init__run=workdir, model__narrow_widths=(4, 12))
    method, state = fresh(config, 6, 0)
    with pytest.raises(WeightsError, match="this model needs"):
        warm.start(config, method, state)
