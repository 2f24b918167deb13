"""Losses against forgetting: LwF's distillation (Li and Hoiem, 2016), AKA's stability (Pu et al., 2021).

AKA's plasticity is losses.triplet.batch_hard with distance "softplus".
"""

import jax

from reid_jax.losses import batch


def distillation(logits, old_logits, *, temperature=2.0, axis_name=None):
    """-T^2 mean over the rows of sum_k softmax(old / T)_k log softmax(new / T)_k, f[].

    logits f[B,K] of all classes, old_logits f[B,O] of the first O <= K, without gradient: new classes have
    probability 0 in the old network and a share in the new one's softmax.
    """
    new = jax.nn.log_softmax(batch.wide(logits) / temperature)[:, : old_logits.shape[1]]
    old = jax.nn.softmax(batch.wide(jax.lax.stop_gradient(old_logits)) / temperature)
    return temperature**2 * batch.mean(-(old * new).sum(1), None, axis_name)


def stability(vertices, old_vertices):
    """Mean over the vertices of |unit(old) - unit(new)|^2, f[]; both f[V,D], old without gradient."""
    moved = batch.unit(vertices) - batch.unit(jax.lax.stop_gradient(old_vertices))
    return (moved**2).sum(1).mean()
