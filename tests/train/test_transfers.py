"""What goes between host and device while steps run."""

import jax
import numpy as np
import pytest
import runs

from reid_jax.train.devices import Devices


@pytest.mark.slow
def test_nothing_is_fetched_between_logs(tmp_path, monkeypatch):
    """Batches are put on the devices explicitly; metrics come back when logged, nothing else does."""
    events, compiled, fetch = [], Devices.compile, Devices.fetch

    def watched(self, step, donate=True):
        step = compiled(self, step, donate)

        def guarded(state, batch):
            events.append("step")
            with jax.transfer_guard_host_to_device("disallow"):
                return step(state, batch)

        return guarded

    def counted(self, tree):
        events.append("fetch")
        return fetch(self, tree)

    monkeypatch.setattr(Devices, "compile", watched)
    monkeypatch.setattr(Devices, "fetch", counted)
    rare = dict(train__log_every=4, train__eval_every=0, train__checkpoint_every=0)
    config = runs.tiny("baseline", train__steps=12, **rare)
    runs.train(config, runs.load(config, tmp_path / "data"), tmp_path / "run")
    events = events[events.index("step") :]
    assert events[:16] == (["step"] * 4 + ["fetch"] * 4) * 2 and events.count("step") == 12


def test_the_guard_sees_a_hidden_transfer():
    """Otherwise the test above could not fail."""
    step = jax.jit(lambda x: x + 1)
    with jax.transfer_guard_host_to_device("disallow"), pytest.raises(Exception, match="Disallowed"):
        step(np.ones(3))
