"""Devices: splitting, replicating and bringing back lose nothing."""

import jax
import numpy as np
import pytest
from jax import lax
from small import small

from reid_jax.errors import ConfigError
from reid_jax.train import stages
from reid_jax.train.devices import Devices


@pytest.mark.parametrize("count", [1, 8])
def test_round_trip_and_order(count):
    """Rows come to the devices in their order; the state is the same on all, and comes back once."""
    devices = Devices(jax.devices()[:count])
    state = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": np.int32(3)}
    batch = {"x": np.arange(16, dtype=np.float32), "image": np.zeros((16, 4, 2, 3), np.uint8)}

    def step(s, b):
        total = lax.psum(b["x"].sum(), devices.axis_name)
        rows = lax.all_gather(b["x"], devices.axis_name, tiled=True)
        own = lax.axis_index(devices.axis_name)
        return {"w": s["w"] + total, "n": s["n"] + 1}, {"rows": rows, "own": own, "n": len(b["image"])}

    compiled = devices.compile(step)
    assert devices.compile(step) is compiled  # a part of every round: compiled once
    new, metrics = compiled(devices.replicate(state), devices.shard(batch))
    new, metrics = compiled(new, devices.shard(batch))
    out, metrics = devices.fetch(new), devices.fetch(metrics)
    np.testing.assert_array_equal(out["w"], state["w"] + 240)
    assert out["n"] == 5 and out["n"].dtype == np.int32
    np.testing.assert_array_equal(metrics["rows"], batch["x"])
    assert metrics["own"] == 0 and metrics["n"] == 16 // count


def test_what_is_fetched_outlives_the_state():
    """A step gives the state's memory to the next; a fetched copy keeps its values."""
    devices = Devices(jax.devices()[:2])
    step = devices.compile(lambda s, b: (s + 1, {}))
    first = devices.replicate(np.zeros(1000, np.float32))
    kept = devices.fetch(first)
    state, _ = step(first, devices.shard(np.zeros(2)))
    state, _ = step(state, devices.shard(np.zeros(2)))
    assert not kept.any() and (devices.fetch(state) == 2).all()


def test_embed_keeps_order():
    """Of the state of training, and of rows in any tree."""
    devices = Devices()
    state = devices.local_state(devices.replicate({"scale": np.float32(2)}))
    fn = devices.compile_embed(lambda s, rows: rows["image"].astype(np.float32).mean((1, 2)) * s["scale"])
    image = np.random.default_rng(0).integers(0, 255, (16, 4, 2, 3), np.uint8)
    want = image.astype(np.float32).mean((1, 2)) * 2
    np.testing.assert_allclose(np.asarray(fn(state, {"image": image})), want, rtol=1e-5)


def test_batch_that_cannot_be_split():
    assert len(Devices().devices) == 8
    Devices().check_batch(16)
    Devices(jax.devices()[:5]).check_batch(15)
    with pytest.raises(ConfigError, match="batch of 12 images .data.ids x.* over 8 devices"):
        Devices().check_batch(12)


def test_one_image_a_device_needs_global_batch_norm():
    devices = Devices()
    stages.check_batch(small(data__ids=2, data__instances=4, model__bn_group="global"), devices)
    with pytest.raises(ConfigError, match="bn_group"):
        stages.check_batch(small(data__ids=2, data__instances=4, model__bn_group="device"), devices)
    accumulating = small(data__ids=4, data__instances=4, model__bn_group="device", train__accumulate=3)
    with pytest.raises(ConfigError, match="accumulate is 3; it must be 1 or more and divide a device's 2"):
        stages.check_batch(accumulating, devices)
