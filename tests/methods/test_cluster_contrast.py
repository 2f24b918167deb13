"""Cluster contrast: memory against a loop, a step, devices, labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import difference

from reid_jax import config as c
from reid_jax.errors import ConfigError, DataError
from reid_jax.methods import Info, cluster_contrast
from reid_jax.train import parallel


def config(**fields):
    tree = c.defaults() | {"cluster_contrast": c.cluster_contrast_defaults()}
    tree["data"].update(height=32, width=32)
    tree["model"].update(backbone="slim", slim_width=4, bn_group="global")
    tree["optim"].update(lr=3e-3, eps=1e-3)
    tree["cluster_contrast"].update(max_clusters=7, k1=6, k2=2, momentum=0.8)
    tree["cluster_contrast"].update(fields)
    return c.namespace(tree)


def info(axis_name=None):
    return Info(num_pids=4, num_cams=2, steps_per_epoch=5, total_steps=50, axis_name=axis_name)


def batch(seed=0, size=8):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 3), np.uint8),
        "pid": (np.arange(size) // 2).astype(np.int32),
        "camid": np.zeros(size, np.int32),
        "flip": np.zeros((size, 2), bool),
        "crop": np.zeros((size, 2, 2), np.int32),
        "erase": np.zeros((size, 2, 4), np.int32),
    }


def start(m, models):
    """A state whose memory holds four random clusters."""
    image = jnp.zeros((1, 32, 32, 3))
    init = jax.jit(lambda k: cluster_contrast.init_state(k, image, models=models, config=m))
    state = init(jax.random.key(0))
    size = state.nets["memory"]["centroids"].shape[1]
    features = np.random.default_rng(0).normal(size=(9, size))
    labels = np.array([0, 1, 2, 3, 0, 1, 2, -1, 3])
    return cluster_contrast.begin(state, features, labels, models=models)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("hard", [False, True])
def test_memory_is_the_loop(hard):
    rng = np.random.default_rng(1)
    centroids, f = unit(rng.normal(size=(6, 5))), unit(rng.normal(size=(20, 5)))
    labels = rng.integers(0, 4, 20)
    want = centroids.copy()
    for i in range(20):
        own = np.flatnonzero(labels == labels[i])
        if not hard or i == own[np.argmin([f[j] @ centroids[labels[i]] for j in own])]:
            want[labels[i]] = unit(0.3 * want[labels[i]] + 0.7 * f[i])
    found = cluster_contrast.moved(jnp.float32(centroids), jnp.float32(f), jnp.asarray(labels), 0.3, hard)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_places_without_a_cluster_count_for_nothing():
    memory = {"centroids": jnp.eye(5), "used": jnp.int32(2)}
    found = cluster_contrast.logits(jnp.array([[0.6, 0.8, 0, 0, 0]]), memory, 0.05)
    np.testing.assert_allclose(found[0, :2], [12, 16], rtol=1e-6)
    assert np.isneginf(found[0, 2:]).all()


def test_a_round_begins_with_the_means():
    m = config()
    state = start(m, cluster_contrast.build(m, info()))
    features = np.random.default_rng(0).normal(size=(9, 128))
    memory = state.nets["memory"]
    assert int(memory["used"]) == 4 and memory["centroids"].shape == (7, 128)
    want = unit(unit(features[1]) + unit(features[5]))
    np.testing.assert_allclose(memory["centroids"][1], want, atol=1e-6)
    assert not np.any(memory["centroids"][4:])
    for labels in (np.full(9, -1), np.arange(9)):
        with pytest.raises(DataError, match="max_clusters"):
            cluster_contrast.begin(state, features, labels, models=None)


def test_steps_on_one_and_two_devices():
    """They lower the loss of a batch, and two devices do what one does: network and memory."""
    m, results = config(), []
    for runner in (parallel.Runner("jit"), parallel.Runner("pmap", jax.devices()[:2])):
        models = cluster_contrast.build(m, info(runner.axis_name))
        first = start(m, models)

        def step(state, batch, models=models, axis=runner.axis_name):
            return cluster_contrast.step(state, batch, models=models, config=m, axis_name=axis)

        state, run, losses = runner.replicate(first), runner.compile(step), []
        for i in range(6):
            state, metrics = run(state, runner.shard(batch()))
            losses.append(float(runner.fetch(metrics)["loss"]))
            if i == 1:
                early = runner.fetch(state).nets
        results.append((early, losses))
        assert losses[-1] < 0.5 * losses[0]
    assert difference(results[0][0], results[1][0]) < 5e-4
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0.02)
    params = early["net"]["params"]
    p = params["pooling"]["p"]
    assert p.shape == (1,) and p != 3
    assert not params["neck"]["bias"].any()
    norms = np.linalg.norm(early["memory"]["centroids"][:4], axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_labels_find_identities_and_outliers():
    rng = np.random.default_rng(0)
    pid = np.r_[np.repeat(np.arange(5), 8), [9, 10]]
    x = rng.normal(size=(11, 16))[pid] + 0.05 * rng.normal(size=(42, 16))
    found = cluster_contrast.find_labels(x, config(k1=8))
    assert found[-2:].tolist() == [-1, -1] and set(found[:-2]) == set(range(5))
    assert len(set(zip(found, pid, strict=True))) == 7
    few = cluster_contrast.find_labels(x, config(k1=8, max_clusters=3))
    assert set(few) == {-1, 0, 1, 2}


def test_degenerate_labels(caplog):
    lonely = np.eye(12)  # nobody is like anybody
    found = cluster_contrast.find_labels(lonely, config(k1=2, k2=1))
    assert found.tolist() == [0] * 12 and "nothing is learned" in caplog.text
    caplog.clear()
    same = np.ones((12, 4))
    found = cluster_contrast.find_labels(same, config(k1=12))
    assert found.tolist() == [0] * 12 and "one cluster" in caplog.text


def test_settings_that_cannot_be():
    for fields in (dict(temperature=0.0), dict(momentum=1.5), dict(pool="sum")):
        with pytest.raises(ConfigError, match=f"cluster_contrast.{'pool' if 'pool' in fields else 'temp'}"):
            cluster_contrast.build(config(**fields), info())
