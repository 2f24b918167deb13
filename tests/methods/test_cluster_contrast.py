"""Cluster contrast: memory against a loop, a step, labels."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import Stepping, difference, drawn

from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.losses import contrast
from reid_jax.methods import Info, cluster_contrast


def config(**fields):
    tree = methods.defaults("cluster_contrast")
    tree["data"].update(height=32, width=32)
    tree["model"].update(backbone="slim", slim_width=4, bn_group="global", head="contrast", pool="gem")
    tree["optim"].update(lr=3e-3, eps=1e-3)
    tree["cluster_contrast"].update(max_clusters=7, k1=6, k2=2, momentum=0.8)
    tree["cluster_contrast"].update(fields)
    return namespace(tree)


INFO = Info(num_pids=0, num_cams=2, axis_name="device", num_images=9)


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


def with_clusters(state):
    """A state whose memory holds four random clusters."""
    places, size = state.memory["centroids"].shape
    features = np.random.default_rng(0).normal(size=(9, size))
    centroids = contrast.centroids(features, np.array([0, 1, 2, 3, 0, 1, 2, -1, 3]), places)
    return state._replace(memory={**state.memory, "centroids": centroids, "used": np.int32(4)})


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
    found = contrast.moved(jnp.float32(centroids), jnp.float32(f), jnp.asarray(labels), 0.3, hard)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_places_without_a_cluster_count_for_nothing():
    memory = {"centroids": jnp.eye(5), "used": jnp.int32(2)}
    found = cluster_contrast.logits(jnp.array([[0.6, 0.8, 0, 0, 0]]), memory, 0.05)
    np.testing.assert_allclose(found[0, :2], [12, 16], rtol=1e-6)
    assert np.isneginf(found[0, 2:]).all()


def test_rows_without_a_place_move_nothing():
    memory = jnp.eye(3)
    after = contrast.moved(memory, jnp.ones((2, 3)) / 3**0.5, jnp.array([-1, 1]), 0.5)
    assert np.array_equal(after[0], memory[0]) and not np.array_equal(after[1], memory[1])
    assert np.array_equal(after[2], memory[2])


def test_centroids_are_the_unit_means():
    features, labels = np.random.default_rng(0).normal(size=(9, 5)), np.array([0, 1, 2, 3, 0, 1, 2, -1, 3])
    centroids = contrast.centroids(features, labels, 7)
    np.testing.assert_allclose(centroids[1], unit(unit(features[1]) + unit(features[5])), atol=1e-6)
    assert centroids.shape == (7, 5) and not np.any(centroids[4:])
    with pytest.raises(ValueError, match="9 labels; the memory has 7 places"):
        contrast.centroids(features, np.arange(9), 7)


@pytest.mark.slow
def test_steps_lower_the_loss_and_move_what_they_should():
    method = cluster_contrast.ClusterContrast(config(), INFO)
    state = with_clusters(drawn(method))
    step, losses, first = Stepping(method.step), [], state.memory
    for _ in range(6):
        state, metrics = step(state, {"train": batch()})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    params = state.nets["net"]["params"]
    assert params["pooling"]["p"].shape == (1,) and params["pooling"]["p"] != 3
    assert not params["neck"]["bias"].any()
    np.testing.assert_allclose(np.linalg.norm(state.memory["centroids"][:4], axis=1), 1, rtol=1e-5)
    assert difference(state.memory["centroids"], first["centroids"]) > 1e-3
    assert not state.memory["centroids"][4:].any() and state.memory["used"] == 4


def test_labels_find_identities_and_outliers():
    rng = np.random.default_rng(0)
    pid = np.r_[np.repeat(np.arange(5), 8), [9, 10]]
    x = rng.normal(size=(11, 16))[pid] + 0.05 * rng.normal(size=(42, 16))
    found = cluster_contrast.find_labels(x, config(k1=8).cluster_contrast)
    assert found[-2:].tolist() == [-1, -1] and set(found[:-2]) == set(range(5))
    assert len(set(zip(found, pid, strict=True))) == 7
    few = cluster_contrast.find_labels(x, config(k1=8, max_clusters=3).cluster_contrast)
    assert set(few) == {-1, 0, 1, 2}


def test_degenerate_labels(caplog):
    lonely = np.eye(12)  # nobody is like anybody
    found = cluster_contrast.find_labels(lonely, config(k1=2, k2=1).cluster_contrast)
    assert found.tolist() == [0] * 12 and "nothing is learned" in caplog.text
    caplog.clear()
    same = np.ones((12, 4))
    found = cluster_contrast.find_labels(same, config(k1=12).cluster_contrast)
    assert found.tolist() == [0] * 12 and "one cluster" in caplog.text


def test_settings_that_cannot_be():
    for fields in (dict(temperature=0.0), dict(momentum=1.5)):
        with pytest.raises(ConfigError, match="cluster_contrast.temp"):
            cluster_contrast.ClusterContrast(config(**fields), INFO)
