"""SpCL's hybrid memory: what it holds at first, which class a place is of, the loss against its classes."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.losses import contrast

_GUARD = 1e-6  # bounds the loss at 13.8


def joined(parts):
    """The rows of a source and of a target one after the other, on every device its own."""
    return jnp.concatenate(parts)


def start(source, pid, target, classes):
    """The memory f32[C + N, D] at first: unit means of the source features of every identity, unit target
    features; source f[S,D], pid i[S] from 0 to C - 1, target f[N,D]."""
    sums = np.zeros((classes, target.shape[1]), np.float32)
    np.add.at(sums, pid, np.asarray(source, np.float32))
    both = np.concatenate([sums, np.asarray(target, np.float32)])
    return both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)


def classes(labels, sources):
    """The class i32[C + N] of every place, the source's first; labels i32[N] of the target (-1: none)."""
    source = jnp.arange(sources, dtype=labels.dtype)
    return jnp.concatenate([source, jnp.where(labels < 0, -1, sources + labels)])


def in_use(labels):
    """The class i32[N] of places that stand for classes, each for its own; labels i32[N] without gaps."""
    place = jnp.arange(len(labels), dtype=labels.dtype)
    return jnp.where(place <= labels.max(), place, -1)


def singles(labels):
    """Number f32[] of classes of one image; labels i32[N] below N."""
    count = (
        jnp.zeros(len(labels), jnp.int32).at[jnp.where(labels < 0, len(labels), labels)].add(1, mode="drop")
    )
    return (count == 1).sum().astype(jnp.float32)


def hybrid(f, memory, label, place, temperature):
    """(losses f[B] of unit features f [B,D] of places i32[B], whether the likeliest class is theirs bool[B]).

    memory f[M,D], label i32[M]: class of every place. Of class k the score is the mean of f . v / temperature
    over its places; loss -log(p + 1e-6), p = e^s / (sum e^s + 1e-6) over classes with places (eq. 1).
    """
    scores = f @ lax.stop_gradient(memory).T / temperature
    means, used = contrast.class_scores(scores, label)
    means, wanted = jnp.where(used, means, -jnp.inf), label[place]
    top = lax.stop_gradient(means.max(1, keepdims=True))
    e = jnp.exp(means - top)
    p = jnp.take_along_axis(e, wanted[:, None], 1) / (e.sum(1, keepdims=True) + _GUARD * jnp.exp(-top))
    return -jnp.log(p[:, 0] + _GUARD), means.argmax(1) == wanted
