"""Batch-hard triplets against loops over anchors and pairs, and recorded PyTorch values."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import ConfigError
from reid_jax.losses import triplet

CASES = pathlib.Path(__file__).parents[1] / "cases"
DISTANCES = ("cosine", "euclidean", "softmax")


def value_and_grad(fn, **options):
    """Compiled, which is faster here than one small kernel after the other."""
    return jax.jit(jax.value_and_grad(fn, **options))


def distance(a, b, kind):
    if kind == "cosine":
        return -(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return np.sqrt(max(((a - b) ** 2).sum(), 1e-12))


def naive(features, labels, kind, margin):
    """(loss, share active, share correct) by a loop over anchors."""
    f, terms, active, correct = np.asarray(features, np.float64), [], [], []
    for i, label in enumerate(labels):
        far = max(distance(f[i], f[j], kind) for j in range(len(f)) if labels[j] == label)
        others = [distance(f[i], f[j], kind) for j in range(len(f)) if labels[j] != label]
        if not others:
            continue
        near = min(others)
        if kind == "softmax":
            log_z = np.log(np.exp(far) + np.exp(near))
            terms.append(margin * (log_z - far) + (1 - margin) * (log_z - near))
        else:
            terms.append(max(0.0, far - near + margin))
        active.append(terms[-1] > 0)
        correct.append(near > far)
    return tuple(float(np.mean(x)) if x else 0.0 for x in (terms, active, correct))


def numerical(fn, x, eps=1e-6):
    grad = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = eps
        grad[index] = (fn(x + step) - fn(x - step)) / (2 * eps)
    return grad


def problem(seed=0, rows=9, ids=3, dim=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, dim)).astype(dtype), rng.integers(0, ids, rows)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_the_loop(kind, seed):
    """Random labels: some occur once, so that the anchor is its own hardest positive."""
    x, labels = problem(seed, dtype=np.float64)
    labels[0] = 99
    with jax.enable_x64(True):

        def loss(f):
            return triplet.batch_hard(f, labels, distance=kind, margin=0.3)

        (value, aux), grad = value_and_grad(loss, has_aux=True)(jnp.asarray(x))
    expected, active, correct = naive(x, labels, kind, 0.3)
    np.testing.assert_allclose((value, aux["active"], aux["correct"]), (expected, active, correct), rtol=1e-9)
    np.testing.assert_allclose(
        grad, numerical(lambda f: naive(f, labels, kind, 0.3)[0], x), rtol=1e-5, atol=1e-7
    )


def test_the_soft_form_gives_its_teacher_no_gradient():
    (x, labels), (teacher, _) = problem(0), problem(1)
    grad = jax.grad(lambda t: triplet.softmax_soft(x, t, labels))(teacher)
    assert not np.asarray(grad).any()


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_single_camera_gives_zero_and_no_gradient(kind):
    """Without any negative there is nothing to average, not NaN."""
    x, _ = problem()
    (value, aux), grad = value_and_grad(
        lambda f: triplet.batch_hard(f, np.zeros(9, int), distance=kind, margin=0.3), has_aux=True
    )(x)
    assert value == 0 and not np.asarray(grad).any()
    assert all(np.isfinite(v) for v in aux.values())


@pytest.mark.parametrize("kind", DISTANCES)
def test_padding_changes_nothing(kind):
    """Padding rows hold zeros, and labels of real rows."""
    x, labels = problem()
    padded, mask = np.concatenate([x, np.zeros((3, 4), np.float32)]), np.arange(12) < 9
    labels_padded = np.concatenate([labels, labels[:3]])

    def loss(f, ids, mask):
        return triplet.batch_hard(f, ids, distance=kind, margin=0.3, mask=mask)

    descend = value_and_grad(loss, has_aux=True)
    (value, aux), grad = descend(x, labels, None)
    (padded_value, padded_aux), padded_grad = descend(padded, labels_padded, mask)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    np.testing.assert_allclose(padded_grad[:9], grad, rtol=1e-5, atol=1e-7)
    assert not np.asarray(padded_grad[9:]).any()
    np.testing.assert_allclose([*padded_aux.values()], [*aux.values()], rtol=1e-6)
    (value, _), grad = descend(padded, labels_padded, np.zeros(12, bool))
    assert value == 0 and not np.asarray(grad).any()


@pytest.mark.parametrize("kind", DISTANCES)
def test_equal_features_have_finite_gradient(kind):
    """A collapsed network: every distance is at the clamp."""
    x, labels = np.ones((6, 3), np.float32), np.array([0, 0, 1, 1, 2, 2])
    (value, _), grad = value_and_grad(
        lambda f: triplet.batch_hard(f, labels, distance=kind, margin=0.3), has_aux=True
    )(x)
    np.testing.assert_allclose(value, np.log(2) if kind == "softmax" else 0.3, rtol=1e-5)
    assert np.isfinite(grad).all()


def test_bfloat16_features_are_measured_in_float32():
    x, labels = problem()
    value, _ = triplet.batch_hard(x.astype(jnp.bfloat16), labels, distance="cosine", margin=0.3)
    assert value.dtype == jnp.float32


def test_unknown_distance():
    with pytest.raises(ConfigError, match="loss.triplet"):
        triplet.batch_hard(*problem(), distance="manhattan", margin=0.3)
