"""Center loss (Wen et al., ECCV 2016) as in BoT and AGW."""

import jax.numpy as jnp

from reid_jax.losses import batch


def loss(features, centers, labels, mask=None, axis_name=None):
    """Mean squared distance of features [B,D] to the centers [K,D] of their labels i32[B]: f[]."""
    mask = batch.rows(mask, features)
    gap = batch.wide(features) - centers[jnp.where(mask, labels, 0)]
    return batch.mean(jnp.square(gap).sum(-1), mask, axis_name)
