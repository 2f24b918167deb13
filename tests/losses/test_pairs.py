"""Losses over all pairs of a batch: what the recorded cases (sup__wrt, sup__circle, ...) do not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import ConfigError
from reid_jax.losses import circle, identity, triplet, verification


def batch(scale=1.0):
    rng = np.random.default_rng(0)
    return np.float32(scale * rng.standard_normal((9, 4))), np.repeat(np.arange(3), 3)


def test_the_guard_hides_far_negatives_and_the_softmax_does_not():
    """By hand: weights softmax(-d) over the others; with 1e-6 in the sum they vanish for distances of 25."""
    f, labels = batch(30.0)
    d = np.linalg.norm(f[0] - f[3:].astype(np.float64), axis=1)
    w = np.exp(-(d - d.min())) / np.exp(-(d - d.min())).sum()
    far = jax.jit(
        lambda f: [triplet.weighted_distances(f, labels, "euclidean", g)[1][0] for g in (1e-6, 0.0)]
    )
    with_guard, without = far(f)
    np.testing.assert_allclose(without, (w * d).sum(), rtol=1e-4)
    np.testing.assert_allclose(with_guard, (np.exp(-d) * d).sum() / (np.exp(-d).sum() + 1e-6), rtol=1e-3)
    assert without > 25 and with_guard < 1


@pytest.mark.parametrize("guard", [1e-6, 0.0])
def test_rows_without_partners_have_no_part(guard):
    """Padding and an image whose negatives are all padding: finite, and no gradient."""
    f, labels = batch()
    mask = np.array([True] * 3 + [False] * 6)

    def loss(f):
        return triplet.weighted(f, labels, distance="unit", margin=0.3, guard=guard, mask=mask)[0]

    value, grad = jax.jit(jax.value_and_grad(loss))(f)
    assert value == 0 and not np.asarray(grad).any()


@pytest.mark.parametrize("form", circle.FORMS)
def test_circle_without_any_positive(form):
    f, _ = batch()

    def loss(f):
        return circle.loss(f, np.arange(9), form=form, margin=0.25, scale=64.0)

    value, grad = jax.jit(jax.value_and_grad(loss))(f)
    assert value == 0 and not np.asarray(grad).any()


def test_partners_are_another_image_of_the_person_and_one_of_somebody_else():
    labels, mask = np.array([0, 0, 0, 1, 1, 2, 2, 3]), np.array([True] * 6 + [False, True])
    draw = jax.jit(jax.vmap(lambda key: verification.partners(key, labels, mask)))
    same, other, has_same, has_other = map(np.asarray, draw(jax.random.split(jax.random.key(0), 200)))
    assert (has_same == np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)).all()  # 2's second image is padding
    assert (has_other == mask).all()
    for row in range(5):
        alike = set(np.flatnonzero((labels == labels[row]) & mask)) - {row}
        assert set(same[:, row]) == alike
        assert set(other[:, row]) == set(np.flatnonzero((labels != labels[row]) & mask))


def test_cross_entropy_over_the_images_that_still_lose():
    """A loss that is exactly 0 does not count; by hand for the other."""
    logits = jnp.array([[200.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    value = identity.cross_entropy_others(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(value, np.log(np.exp([1.0, 2.0, 0.0]).sum()) - 1, rtol=1e-6)


def test_an_unknown_form():
    with pytest.raises(ConfigError, match=r"loss\.circle"):
        circle.loss(*batch(), form="square", margin=0.25, scale=64.0)
