"""Memories and losses against their places: naive loops, and eight devices as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.losses import batch as batches
from reid_jax.losses import contrast


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def drawn(rows=16, places=6, dim=5, seed=0):
    """(memory f[M,D], unit rows f[B,D], their places i[B], -1: none) with places that come often or never."""
    rng = np.random.default_rng(seed)
    memory, f = unit(rng.normal(size=(places, dim))), unit(rng.normal(size=(rows, dim)))
    return np.float32(memory), np.float32(f), rng.choice([-1, 0, 0, 0, 1, 2, 4], rows)


def one_by_one(memory, f, place, momentum, hard):
    """The rule as it is written: a row meets what the rows before it left."""
    start, f, place = map(np.asarray, (memory, f, place))
    memory = start.copy()
    for i in range(len(f)):
        own = np.flatnonzero(place == place[i])
        least = own[np.argmin([f[j] @ start[place[i]] for j in own])]
        if place[i] >= 0 and (not hard or i == least):
            memory[place[i]] = unit(momentum * memory[place[i]] + (1 - momentum) * f[i])
    return memory


@pytest.mark.parametrize("hard", [False, True])
def test_rows_of_all_devices_move_the_memory_one_by_one(hard):
    memory, f, place = map(jnp.asarray, drawn())
    want = one_by_one(memory, f, place, 0.2, hard)
    alone = contrast.moved(memory, f, place, 0.2, hard)
    np.testing.assert_allclose(alone, want, atol=1e-6)

    def device(f, place):
        f, place = (batches.gather(x, "device") for x in (f, place))
        return contrast.moved(memory, f, place, 0.2, hard)

    parts = f.reshape(8, 2, -1), place.reshape(8, 2)
    everywhere = jax.pmap(device, "device", devices=jax.devices()[:8])(*parts)
    assert all(np.array_equal(x, everywhere[0]) for x in everywhere)
    np.testing.assert_allclose(everywhere[0], want, atol=1e-6)


def test_scores_of_classes_are_means_over_their_places():
    memory, f, _ = drawn()
    label = np.array([3, -1, 0, 3, 3, 0])
    scores, used = jax.jit(contrast.class_scores)(f @ memory.T, label)
    assert used.tolist() == [True, False, False, True, False, False]
    for k in (0, 3):
        np.testing.assert_allclose(scores[:, k], (f @ memory[label == k].T).mean(1), rtol=1e-5)


def naive_inter(scores, positive, negative, hard):
    losses = []
    for row, own, others in zip(scores, positive, negative, strict=True):
        chosen = np.sort(row[others])[::-1][:hard]
        total = np.log(np.exp(np.r_[row[own], chosen]).sum())
        losses.append(np.mean(total - row[own]) if own.any() else 0)
    return np.array(losses)


@pytest.mark.parametrize("hard", [2, 50])
def test_inter_camera_is_the_loop(hard):
    """Rows with few negatives, without any, without positives; places that are not used count for nothing."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 9)).astype(np.float32)
    cluster = np.array([0, 0, 1, 2, 2, 2, 3, 1, -1])
    positive = cluster == np.array([0, 2, 1, 9, 3])[:, None]
    negative = (cluster >= 0) & ~positive
    negative[4] = False
    loss = jax.jit(contrast.inter_camera, static_argnums=3)
    want = naive_inter(scores, positive, negative, hard)
    np.testing.assert_allclose(loss(scores, positive, negative, hard), want, atol=1e-5)
    gradient = jax.grad(lambda s: contrast.inter_camera(s, positive, negative, hard).sum())(scores)
    assert np.isfinite(gradient).all() and not gradient[3].any() and not gradient[:, 8].any()
    more = [np.pad(x, ((0, 0), (0, 4))) for x in (scores, positive, negative)]
    np.testing.assert_allclose(loss(*more, hard), want, atol=1e-5)
