"""The paper's Market-1501 setting at full image and network size, on a small batch."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from small import Stepping, fresh

from reid_jax import methods


@pytest.mark.slow
def test_one_full_size_efl_step():
    """ResNet50 at 256x128, six networks: every network that should move does, and stays finite."""
    path = Path(__file__).parent.parent / "configs" / "efl.py"
    spec = importlib.util.spec_from_file_location("efl_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("market")
    info = methods.Info(num_pids=751, num_cams=6, steps_per_epoch=100, total_steps=24000)
    method = methods.build(config, "train", info._replace(axis_name="device"))
    rng, size = np.random.default_rng(0), 4
    batch = {
        "image": rng.integers(0, 256, (size, 256, 128, 3), np.uint8),
        "pid": np.array([0, 0, 1, 1], np.int32),
        "camid": np.array([0, 1, 2, 0], np.int32),
        "flip": np.zeros((size, 2), bool),
        "crop": np.zeros((size, 2, 2), np.int32),
        "erase": np.zeros((size, 2, 4), np.int32),
    }
    state = fresh(method)
    before = jax.tree.map(np.array, state.nets)
    state, metrics = Stepping(method.step)(state, {"train": batch})
    assert all(np.isfinite(v) for v in metrics.values())
    for name, net in state.nets.items():
        changes = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), net, before[name])
        assert max(jax.tree.leaves(changes)) > 0, name
