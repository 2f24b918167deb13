"""Batches on the devices ahead of time: order, errors, closing, the same training."""

import threading
import time

import jax
import numpy as np
import pytest

from reid_jax.data.prefetch import OnDevice


class Source:
    """Numbers as batches, with a note of what was read and whether it was closed."""

    def __init__(self, stop=None, error=None):
        self.read, self.closed, self.stop, self.error = 0, 0, stop, error

    def __iter__(self):
        return self

    def __next__(self):
        if self.read == self.stop:
            raise self.error or StopIteration
        self.read += 1
        return self.read - 1

    def close(self):
        self.closed += 1


def own_threads():
    return [t for t in threading.enumerate() if t.name.startswith("device-prefetch")]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_order_and_end(count):
    source = Source(stop=20)
    with OnDevice(source, lambda b: b * 10, count) as batches:
        assert list(batches) == [10 * i for i in range(20)]
        assert list(batches) == []
    assert source.closed == 1 and not own_threads()


@pytest.mark.parametrize("count", [1, 3])
def test_makes_count_ahead_and_no_more(count):
    source = Source()
    with OnDevice(source, lambda b: b, count) as batches:
        for taken in (0, 1, 2):
            end = time.monotonic() + 5
            while source.read < taken + count and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(0.02)
            assert source.read == taken + count
            assert next(batches) == taken
    assert source.closed == 1


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("where", ["source", "place"])
def test_errors_come_in_their_place(count, where):
    def place(batch):
        if where == "place" and batch == 3:
            raise ValueError("batch 3")
        return batch

    source = Source(stop=3 if where == "source" else None, error=ValueError("batch 3"))
    batches = OnDevice(source, place, count)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="batch 3"):
        next(batches)
    assert list(batches) == [] and source.closed == 1 and not own_threads()


def test_close_while_a_batch_is_being_made():
    started, go, source = threading.Event(), threading.Event(), Source()

    def place(batch):
        started.set()
        assert go.wait(10)
        assert not source.closed  # never closed under a reader
        return batch

    batches = OnDevice(source, place, 3)
    assert started.wait(10)
    threading.Timer(0.05, go.set).start()
    batches.close()
    batches.close()
    assert source.closed == 1 and source.read == 1 and not own_threads()
    assert list(batches) == []


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_collective_steps_on_eight_devices(backend):
    """Placing in a thread while steps with collectives run: the same results, and no deadlock."""
    from reid_jax.train.parallel import Runner

    runner = Runner(backend)
    assert len(runner.devices) == 8

    def step(state, batch):
        mean = jax.lax.pmean(batch["x"].mean(), runner.axis_name)
        return 0.9 * state + mean, {"mean": mean}

    def source():
        rng = np.random.default_rng(0)
        return iter([{"x": rng.random((16, 300), np.float32)} for _ in range(30)])

    results = []
    for count in (0, 2):
        compiled, state, means = runner.compile(step), runner.replicate(np.float32(0)), []
        with OnDevice(source(), runner.shard, count) as batches:
            for batch in batches:
                state, metrics = compiled(state, batch)
                means.append(float(runner.fetch(metrics)["mean"]))
        results.append((float(runner.fetch(state)), means))
    assert len(results[0][1]) == 30 and results[0] == results[1]


def test_training_is_the_same(tmp_path):
    """A run with batches placed ahead gives the parameters of one without, bit for bit."""
    import ml_collections

    from reid_jax import config as c
    from reid_jax.data import datasets
    from reid_jax.train import checkpoint, sequence
    from reid_jax.train.parallel import Runner

    tree = c.defaults()
    c.smoke(tree)
    tree["data"]["root"] = str(tmp_path / "pictures")
    tree["train"].update(steps=5, eval_every=0)
    tree["eval"]["net"] = "auto"
    states = []
    for ahead in (0, 2):
        tree["data"]["device_prefetch"] = ahead
        config, workdir = ml_collections.ConfigDict(tree), str(tmp_path / f"run{ahead}")
        sequence.train(config, datasets.load(config.data, workdir), workdir, Runner("jit"))
        (stage,) = (tmp_path / f"run{ahead}" / "checkpoints").iterdir()
        checkpoints = checkpoint.Checkpoints(workdir, stage.name)
        states.append(checkpoints.read_arrays(checkpoints.steps()[-1]))
        checkpoints.close()
    assert not own_threads() and states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
