"""Properties that every method must have, whatever it is: found by name, one compile, resumable state."""

from pathlib import Path

import jax
import numpy as np
import pytest
from small import difference, info

from reid_jax import cli, methods
from reid_jax.train import stages

ROOT = Path(__file__).parent.parent.parent


def random_batch(config, seed=0, size=8):
    """A batch of random pictures or clips of a method's own size."""
    batch, rng = stages.example_batch(config, size), np.random.default_rng(seed)
    batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    batch["pid"] = (np.arange(size) // 2).astype(np.int32)
    batch["camid"] = rng.integers(0, 3, size).astype(np.int32)
    batch["flip"] = rng.random(batch["flip"].shape) < 0.5
    return batch


@pytest.fixture(scope="module", params=methods.names())
def stage(request):
    """(config, Method, fresh state) of each method's last stage, by its smoke config."""
    config = cli.load_config(str(ROOT / "configs" / f"{request.param}.py") + ":smoke")
    method = list(methods.find(request.param).stages(config, info()).values())[-1]
    return config, method, jax.jit(method.init)(jax.random.key(0), random_batch(config))


def batch_of_cameras(config, seed=0, size=6):
    """As `random_batch`, image j of camera c at row 3 j + c."""
    return random_batch(config, seed, size) | {"camid": (np.arange(size) % 3).astype(np.int32)}


def trainings(config, method, state):
    """[(step, State to start from, batches by seed)] of a stage, or of its phases, which begin anew."""
    if method.phases is None:
        return [(method.step, state, random_batch)]
    assert method.step is None and method.rounds > 0
    size = method.embed(state, random_batch(config)["image"], method.nets[0]).shape[1]
    features, labels = np.random.default_rng(0).normal(size=(12, size)), np.arange(12, dtype=np.int32) // 3
    kinds = {"labels": random_batch, "cameras": batch_of_cameras}
    return [
        (p.step, p.begin(state, features, labels, np.arange(12) % 3, 0), kinds[p.batches])
        for p in method.phases.values()
    ]


def test_one_compile_same_structure_and_pure(stage):
    """The step keeps the state's structure and types, compiles once, and equal inputs give equal bits."""
    config, method, fresh = stage
    spec = jax.tree.map(lambda x: (x.shape, str(x.dtype)), fresh)
    for function, state, batch in trainings(config, method, fresh):
        assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), state) == spec
        step = jax.jit(function)
        new, metrics = step(state, batch(config))
        again, _ = step(state, batch(config))
        assert difference(new, again) == 0
        for i in range(2):
            new, metrics = step(new, batch(config, i))
            assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), new) == spec
        assert step._cache_size() == 1 and int(new.step) == 3
        assert all(np.isfinite(v) and v.shape == () for v in metrics.values())
        assert "loss" in metrics and "lr" in metrics


def test_padding_rows_never_change_an_embedding(stage):
    """A picture's feature is the same whatever stands beside it in the batch."""
    config, method, state = stage
    image = random_batch(config)["image"]
    padded = np.concatenate([image[:3], np.zeros_like(image)])
    for net in method.nets:
        full = jax.jit(lambda s, x, net=net: method.embed(s, x, net))(state, padded)[:3]
        alone = jax.jit(lambda s, x, net=net: method.embed(s, x, net))(state, image[:3])
        np.testing.assert_allclose(full, alone, rtol=1e-4, atol=1e-5)


def test_every_method_has_a_config_and_a_test():
    for name in methods.names():
        assert (ROOT / "configs" / f"{name}.py").exists()
        assert list((ROOT / "tests" / "methods").glob(f"test_{name}*.py"))
