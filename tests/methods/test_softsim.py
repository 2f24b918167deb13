"""Softened similarity: reliable images and losses against loops, the table, stripes."""

import jax
import numpy as np
import pytest
from runs import config_of
from small import random_state
from stage_cases import facts

from reid_jax.errors import ConfigError
from reid_jax.eval import cluster, unlike
from reid_jax.fields import namespace
from reid_jax.methods import softsim


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("weights", [(0.5, 0.02), (0.0, 5.0)])
def test_the_least_unlike_images_are_those_of_the_whole_matrix(weights):
    """Three tiles, the last one not full."""
    rng = np.random.default_rng(0)
    whole, parts = np.float32(unit(rng.normal(size=(19, 5)))), np.float32(unit(rng.normal(size=(19, 3, 4))))
    camid, (p, c) = rng.integers(0, 3, 19), weights
    d = (1 - p) * np.linalg.norm(whole[:, None] - whole, axis=-1) + c * (camid[:, None] == camid)
    d += p * np.linalg.norm(parts[:, None] - parts, axis=-1).mean(-1)
    np.fill_diagonal(d, np.inf)
    found = unlike.nearest(whole, parts if p else parts[:, :0], camid, 4, p, c, tile=8)
    assert np.array_equal(found, np.argsort(d, 1)[:, :4])


def test_loss_is_the_loop():
    rng = np.random.default_rng(0)
    f, table = np.float32(unit(rng.normal(size=(3, 5)))), np.float32(unit(rng.normal(size=(9, 5))))
    index, near = np.array([2, 0, 8]), np.array([[1, 3], [4, 5], [6, 7]])
    likely = softsim.log_likely(f, table, 0.1)
    want = 0
    for row, own, others in zip(f, index, near, strict=True):
        p = np.exp(table @ row / 0.1)
        p /= p.sum()
        want -= (0.6 * np.log(p[own]) + 0.4 / 2 * np.log(p[others]).sum()) / 3
    np.testing.assert_allclose(softsim.soft_cross_entropy(likely, index, near, 0.6), want, rtol=1e-5)
    none = np.full((3, 2), -1)
    hard = -np.mean(np.asarray(likely)[np.arange(3), index])
    np.testing.assert_allclose(softsim.soft_cross_entropy(likely, index, none, 1.0), hard, rtol=1e-5)


@pytest.fixture(scope="module")
def method():
    config = config_of("softsim.py:smoke")
    config.softsim.start = "zeros"
    config.model.update(head="contrast_reduced", reduced_dim=6)
    return softsim.SoftSim(config, facts(config, pids=4, cams=2, axis_name=None))


def test_a_round_begins_with_reliable_images(method):
    state, rng = random_state(method), np.random.default_rng(0)
    people = np.repeat(unit(rng.normal(size=(4, 6))), 8, 0)
    assert not method.part(0).begin(state, people).memory["table"].any()
    part = method.part(1)
    given = {"net": people, "parts": np.tile(people, 2)}
    assert part.features == ("net", "parts") and part.round == 2 and method.part(3) is None
    new = part.begin(state, given)
    assert np.array_equal(new.memory["table"], state.memory["table"])
    pid = np.arange(32) // 8
    assert cluster.precision(new.memory["neighbours"], pid) == 100
    other_camera = method.info.unlabelled.camid[new.memory["neighbours"]] != np.arange(32)[:, None] % 2
    assert other_camera.all()
    assert part.streams(new)["train"].sampler.batches_per_epoch == method.info.steps_per_epoch == 4


def test_stripes_are_unit_features_of_the_reduced_map(method):
    state, image = random_state(method), np.zeros((2, 32, 16, 3), np.uint8)
    image[1, 16:] = 255
    parts = np.asarray(jax.jit(lambda s, x: method.embed(s, x, "parts"))(state, image)).reshape(2, 2, -1)
    assert parts.shape == (2, 2, 6)
    np.testing.assert_allclose(np.linalg.norm(parts, axis=-1), 1, rtol=1e-5)
    assert abs(parts[0, 1] - parts[1, 1]).max() > 1e-3


def test_precision_of_neighbours():
    near, pid = np.array([[1, 2], [0, 2], [3, -1], [0, 1]]), np.array([5, 5, 6, -1])
    assert cluster.precision(near, pid) == pytest.approx(100 * 2 / 4)


def test_settings_that_cannot_be():
    for fields, text in (
        (dict(k=30), "there are 30 images"),
        (dict(start="zeros", hard_epochs=0), "start=features"),
        (dict(lam=1.5), "softsim.lam"),
        (dict(temperature=0), "temperature"),
        (dict(table="none"), "softsim.table"),
    ):
        with pytest.raises(ConfigError, match=text):
            softsim.check(namespace(softsim.FIELDS | fields), 30)
