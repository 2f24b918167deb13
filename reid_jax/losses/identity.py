"""Classification losses."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

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


def cross_entropy_used(logits, labels, used, *, label_smooth=0.0):
    """`cross_entropy` among the first `used` of the K classes, i32[]; the others have no share."""
    target = smooth_target(logits, labels, used, label_smooth)
    return -(target * log_softmax_used(logits, used)).sum(-1).mean()


def smooth_target(logits, labels, used, label_smooth):
    """(1 - e) onehot + e / used over the classes in use, 0 elsewhere: f[B,K]."""
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=batch.wide(logits).dtype)
    return (1 - label_smooth) * onehot + label_smooth * (jnp.arange(logits.shape[-1]) < used) / used


def log_softmax_used(logits, used):
    """Logarithms of the probabilities of the first `used` classes, 0 for the others: f[B,K]."""
    place = jnp.arange(logits.shape[-1]) < used
    return jnp.where(place, jax.nn.log_softmax(jnp.where(place, batch.wide(logits), -jnp.inf)), 0)


def cross_entropy_others(logits, labels, *, label_smooth=0.0, adaptive=0.2, mask=None, axis_name=None):
    """fast-reid's cross entropy: smoothed over the other classes, mean over the losses that are not 0.

    Target 1 - e on the class and e / (K - 1) on each other one. label_smooth e < 0: each image has its own,
    `adaptive` times the probability it gives its class; the target gets no gradient. Else as `cross_entropy`.
    """
    mask = batch.rows(mask, logits)
    logits, labels = batch.wide(logits), jnp.where(mask, labels, 0)
    scores = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    chosen = jnp.exp((scores * one_hot).sum(-1, keepdims=True))
    smooth = lax.stop_gradient(adaptive * chosen) if label_smooth < 0 else label_smooth
    target = one_hot * (1 - smooth) + (1 - one_hot) * (smooth / max(logits.shape[-1] - 1, 1))
    values = -(target * scores).sum(-1)
    return batch.mean(values, mask & (values != 0), axis_name)
