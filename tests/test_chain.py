"""How far it is from the command to the cross entropy: what a reader of the baseline has to open."""

import traceback
from pathlib import Path

import jax
import pytest
import runs

import reid_jax
from reid_jax.losses import identity
from reid_jax.train import run
from reid_jax.train.devices import Devices

PACKAGE = Path(reid_jax.__file__).parent


class ReachedError(Exception):
    """Raised in place of the cross entropy."""


def reached(*args, **kwargs):
    raise ReachedError


def test_eight_calls_in_four_files(tmp_path, monkeypatch):
    """train, Run.train, step, descend, gradient, loss, identity_terms, cross_entropy."""
    config = runs.tiny("baseline")
    dataset = runs.load(config, tmp_path / "data")
    monkeypatch.setattr(identity, "cross_entropy", reached)
    with pytest.raises(ReachedError) as stopped:
        run.train(config, dataset, str(tmp_path / "run"), Devices(jax.devices()[:1]))
    frames = [f for f in traceback.extract_tb(stopped.tb) if PACKAGE in Path(f.filename).parents]
    wrapped = ("value", "<listcomp>", "<lambda>")  # of `gradient`, for jax.grad; Python's own
    calls = [f.name for f in frames if f.name not in wrapped] + ["cross_entropy"]
    files = {f.filename for f in frames} | {identity.__file__}
    assert len(calls) <= 8 and len(files) <= 4, (calls, files)
    assert {"step", "descend", "loss"} <= set(calls)
