"""Memories of unit features: centroids of clusters, and how queries move them."""

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
