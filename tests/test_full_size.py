"""The paper's Market-1501 setting at full image and network size, on a small batch."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from reid_jax import methods
from reid_jax.train import stages


@pytest.mark.slow
def test_one_full_size_efl_step():
    """ResNet50 at 256x128, six networks: every network that should move does, and stays finite."""
    path = Path(__file__).parent.parent / "configs" / "efl.py"
    spec = importlib.util.spec_from_file_location("efl_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("market")
    info = methods.Info(num_pids=751, num_cams=6, steps_per_epoch=100, total_steps=24000)
    method = methods.find("efl").stages(config, info)["train"]
    batch = stages.example_batch(config, 4)
    batch["image"] = np.random.default_rng(0).integers(0, 256, batch["image"].shape, np.uint8)
    batch["pid"], batch["camid"] = np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 2, 0], np.int32)
    state = jax.jit(method.init)(jax.random.key(0), batch)
    before = jax.tree.map(np.array, state.nets)
    state, metrics = jax.jit(method.step)(state, batch)
    assert all(np.isfinite(v) for v in metrics.values())
    for name, net in state.nets.items():
        changes = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), net, before[name])
        assert max(jax.tree.leaves(changes)) > 0, name
