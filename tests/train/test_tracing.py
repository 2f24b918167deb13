"""Steps that the profiler traces: which, where, and what is refused."""

import types

import pytest
from runs import load, tiny, train

from reid_jax.errors import ConfigError
from reid_jax.train import tracing


@pytest.fixture
def profiler(monkeypatch):
    """What jax.profiler was asked to do: ["start FOLDER", "stop", ...]."""
    calls = []
    stand_in = types.SimpleNamespace(
        start_trace=lambda folder: calls.append(f"start {folder}"), stop_trace=lambda: calls.append("stop")
    )
    monkeypatch.setattr(tracing.jax, "profiler", stand_in)
    return calls


@pytest.mark.parametrize("text, before, want", [
    ("3:4", 0, [2, 4]), ("1:1", 0, [0, 1]), ("3:9", 5, [5, 9]), ("", 0, []), ("2:3", 7, []),
])  # fmt: skip
def test_which_steps(profiler, text, before, want):
    """Steps START to STOP, both traced; a run that goes on in between traces what is left."""
    trace, at = tracing.Trace(text, "x"), []
    for step in range(before, 12):
        count = len(profiler)
        trace.between(step)
        at += [step] * (len(profiler) > count)
    assert at == want and profiler == ["start x", "stop"][: len(want)]
    trace.close()
    assert len(profiler) == len(want)


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "a:b", "1:2:3"])
def test_what_is_no_range(text):
    with pytest.raises(ConfigError, match="START:STOP"):
        tracing.Trace(text, "x")


@pytest.mark.slow
def test_a_run_leaves_a_trace(tmp_path):
    config = tiny("baseline", train__profile="2:3", train__steps=4, train__epochs=0)
    train(config, load(config, tmp_path / "data"), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
