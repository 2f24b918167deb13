"""Classification losses."""

import jax
import jax.numpy as jnp
import optax

from reid_jax.losses import batch


def cross_entropy(logits, labels, *, label_smooth=0.0, mask=None, axis_name=None):
    """Mean cross entropy of logits [B,K] against labels i32[B] (any value where mask is False).

    label_smooth e: target (1 - e) onehot + e / K, as MMT and fast-reid use it with e = 0.1.
    """
    mask = batch.rows(mask, logits)
    logits, labels = batch.wide(logits), jnp.where(mask, labels, 0)
    if label_smooth:
        onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        values = optax.softmax_cross_entropy(logits, optax.smooth_labels(onehot, label_smooth))
    else:
        values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return batch.mean(values, mask, axis_name)
