"""Support samples between clusters (ISE: implicit sample extension, Zhang et al., CVPR 2022), by its code.

A support lies a little way from a feature in the direction from its centroid to the nearest other one. It is
trained with the features, and keeps its label against the supports of all other rows.
"""

import math

import jax.numpy as jnp
from jax import lax

from reid_jax.losses import batch


def progress(share, base=1.0):
    """The weight of the interpolation when `share` f[] of the training is done: from 0 to base / 2."""
    return 0.5 * base * jnp.log((math.e - 1) * share + 1)


def supports(f, label, centroids, weight, used=None):
    """Unit features f[B,D] moved by half of weight (c_near - c_own): f[B,D] of unit length.

    centroids f[M,D], the first `used` of which count (None: all); c_near: the one most like f but its own.
    """
    centroids = lax.stop_gradient(centroids)
    places = jnp.arange(len(centroids))
    others = (places < (len(centroids) if used is None else used)) & (places != label[:, None])
    near = jnp.where(others, f @ centroids.T, -jnp.inf).argmax(1)
    moved = f + 0.5 * weight * (centroids[near] - centroids[label])
    moved = jnp.where(others.any(1)[:, None], moved, f)
    return moved / jnp.maximum(jnp.linalg.norm(moved, axis=1, keepdims=True), 1e-12)


def preserving(f, support, label, per, temperature, axis_name=None):
    """Label-preserving loss, f[]: mean of -log(p / (p + n + 1e-6) + 1e-6).

    f, support f[B,D] of unit length; label i32[B]. With e = exp(f s / temperature), p is the least e of a row
    to a support of its label, n the sum of the largest of every run of `per` supports of other labels.
    """
    bank, labels = (batch.gather(x, axis_name) for x in (support, label))
    e = jnp.exp(f @ bank.T / temperature)
    same = label[:, None] == labels
    least = jnp.where(same, e, jnp.inf).min(1)
    runs = jnp.where(same, 0, e).reshape(len(f), -1, per).max(2)
    return -jnp.log(least / (least + runs.sum(1) + 1e-6) + 1e-6).mean()
