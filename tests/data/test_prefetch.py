"""Batches on the devices ahead of time: order, errors, closing, the same steps."""

import threading
import time

import jax
import numpy as np
import pytest

from reid_jax.data.prefetch import OnDevice
from reid_jax.train.devices import Devices


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


def test_collective_steps_on_eight_devices():
    """Placing in a thread while steps with collectives run: the same results, and no deadlock."""
    devices = Devices()
    assert len(devices.devices) == 8

    def step(state, batch):
        mean = jax.lax.pmean(batch["x"].mean(), devices.axis_name)
        return 0.9 * state + mean, {"mean": mean}

    def source():
        rng = np.random.default_rng(0)
        return iter([{"x": rng.random((16, 300), np.float32)} for _ in range(30)])

    results, compiled = [], devices.compile(step)
    for count in (0, 2):
        state, means = devices.replicate(np.float32(0)), []
        with OnDevice(source(), devices.shard, count) as batches:
            for batch in batches:
                state, metrics = compiled(state, batch)
                means.append(float(devices.fetch(metrics)["mean"]))
        results.append((float(devices.fetch(state)), means))
    assert len(results[0][1]) == 30 and results[0] == results[1]
