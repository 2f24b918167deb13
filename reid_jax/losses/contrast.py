"""Memories of unit features: centroids of clusters, how queries move them, losses against their places."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def centroids(features, labels, places):
    """Unit means f32[places,D] of the unit features of every label; host arrays.

    features f[N,D], labels i[N] from 0 (-1: left out). Places beyond the labels are 0. ValueError when there
    are more labels than places.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    if labels.max(initial=-1) >= places:
        raise ValueError(f"{labels.max() + 1} labels; the memory has {places} places")
    sums = np.zeros((places, features.shape[1]), np.float32)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    np.add.at(sums, labels[labels >= 0], unit[labels >= 0])
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def moved(memory, f, place, momentum, hard=False):
    """Memory [M,D] after the unit features f [B,D] of places i32[B] (-1: none).

    v <- momentum v + (1 - momentum) f, brought to unit length, one row after the other in their order; hard:
    only the row of each place that is least like it (the first of equals).
    """
    rows = jnp.arange(len(f))
    counts = place >= 0
    if hard:
        likeness = (f * memory[place]).sum(1)
        rank = jnp.lexsort((rows, likeness))
        order = jnp.zeros_like(rank).at[rank].set(rows)
        first = jnp.full(len(memory), len(f)).at[place].min(order)
        counts &= first[place] == order
    return _in_turns(memory, f, place, momentum, counts)


def _in_turns(memory, f, place, momentum, counts):
    """Rows that share no place move together: turn t takes the t-th counted row of every place."""
    same = (place[:, None] == place) & counts & counts[:, None]
    turn = jnp.where(counts, jnp.tril(same, -1).sum(1), -1)

    def take(state):
        t, memory = state
        now = turn == t
        new = momentum * memory[place] + (1 - momentum) * f
        new = new / jnp.maximum(jnp.linalg.norm(new, axis=1, keepdims=True), 1e-12)
        return t + 1, memory.at[jnp.where(now, place, len(memory))].set(new, mode="drop")

    return lax.while_loop(lambda state: state[0] <= turn.max(), take, (0, memory))[1]


def class_scores(scores, label):
    """Means over the places of every class: (f[B,M], bool[M]: classes that have places).

    scores f[B,M]: of rows and places; label i32[M]: the class of every place, 0..M-1 (-1: none). SpCL's
    similarity of a feature and a class.
    """
    count = jax.ops.segment_sum((label >= 0).astype(scores.dtype), label, len(label))
    sums = jax.ops.segment_sum(scores.T, label, len(label)).T
    return sums / jnp.maximum(count, 1), count > 0


def inter_camera(scores, positive, negative, hard):
    """Cross entropy of every row over its positives and its `hard` highest negatives: f[B].

    scores f[B,M]: over the temperature. positive, negative: bool[B,M]. The target is uniform over the
    positives; a row without any gives 0, one with fewer negatives takes those there are. CAP's loss between
    cameras (Wang et al., AAAI 2021, eq. 7), also ICE's and PPLR's.
    """
    some = positive.any(1)
    highest, _ = lax.top_k(jnp.where(negative, scores, -jnp.inf), min(hard, scores.shape[1]))
    both = jnp.concatenate([jnp.where(positive, scores, -jnp.inf), highest], 1)
    both = jnp.where(some[:, None], both, 0)  # else the gradient of a row without entries is NaN
    mean = jnp.where(positive, scores, 0).sum(1) / jnp.maximum(positive.sum(1), 1)
    return jnp.where(some, jax.nn.logsumexp(both, 1) - mean, 0)
