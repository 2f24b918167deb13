"""Devices: splitting, replicating and bringing back lose nothing."""

import jax
import numpy as np
import pytest
from jax import lax
from small import small

from reid_jax.errors import ConfigError
from reid_jax.train import parallel, stages

BACKENDS = parallel.BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_round_trip_and_order(backend):
    runner = parallel.Runner(backend)
    state = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": np.int32(3)}
    batch = {"x": np.arange(16, dtype=np.float32), "image": np.zeros((16, 4, 2, 3), np.uint8)}

    def step(s, b):
        total, rows = b["x"].sum(), b["x"]
        if runner.axis_name:
            total = lax.psum(total, runner.axis_name)
            rows = lax.all_gather(rows, runner.axis_name, tiled=True)
        return {"w": s["w"] + total, "n": s["n"] + 1}, {"rows": rows}

    compiled = runner.compile(step)
    new, metrics = compiled(runner.replicate(state), runner.shard(batch))
    new, metrics = compiled(new, runner.shard(batch))
    out = runner.fetch(new)
    np.testing.assert_array_equal(out["w"], state["w"] + 240)
    assert out["n"] == 5 and out["n"].dtype == np.int32
    np.testing.assert_array_equal(np.ravel(runner.fetch(metrics)["rows"]), batch["x"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_embed_keeps_order(backend):
    runner = parallel.Runner(backend)
    state = runner.replicate({"scale": np.float32(2)})
    fn = runner.compile_embed(lambda s, image: image.astype(np.float32).mean((1, 2)) * s["scale"])
    image = np.random.default_rng(0).integers(0, 255, (16, 4, 2, 3), np.uint8)
    got = np.asarray(fn(runner.local_state(state), image))
    np.testing.assert_allclose(got, image.astype(np.float32).mean((1, 2)) * 2, rtol=1e-5)


def test_batch_that_cannot_be_split():
    assert len(jax.devices()) == 8
    parallel.Runner("pmap").check_batch(16)
    parallel.Runner("jit").check_batch(15)
    with pytest.raises(ConfigError, match="data.ids"):
        parallel.Runner("pmap").check_batch(12)


def test_one_image_a_device_needs_global_batch_norm():
    runner = parallel.Runner("pmap")
    stages.check_batch(small(data__ids=2, data__instances=4, model__bn_group="global"), runner)
    with pytest.raises(ConfigError, match="bn_group"):
        stages.check_batch(small(data__ids=2, data__instances=4, model__bn_group="device"), runner)


def test_unknown_backend():
    with pytest.raises(ConfigError, match="train.backend"):
        parallel.Runner("ddp")
