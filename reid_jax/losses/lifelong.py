"""Losses against forgetting: LwF's distillation (Li and Hoiem, 2016), AKA's stability (Pu et al., 2021),
KRKC's agreement of two networks (Yu et al., 2023).

AKA's plasticity is losses.triplet.batch_hard with distance "softplus".
"""

import jax
import jax.numpy as jnp

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


def agreement(target, logits, temperature=2.0, axis_name=None):
    """T^2 times the Jensen-Shannon divergence of softmax(target / T) and softmax(logits / T), f[].

    The mean over the rows. The mixture is softmax((target + logits) / 2 T), as in KRKC's code, and not the
    mean of both. target f[B,K] gets no gradient, logits f[B,K] do, through the mixture too.
    """
    target = batch.wide(jax.lax.stop_gradient(target)) / temperature
    logits = batch.wide(logits) / temperature
    mixture = jax.nn.log_softmax((target + logits) / 2)
    scores = (jax.nn.log_softmax(x) for x in (target, logits))
    each = sum((jnp.exp(x) * (x - mixture)).sum(1) for x in scores)
    return temperature**2 * batch.mean(each / 2, None, axis_name)


def smoothed_by(logits, labels, classes, *, label_smooth, axis_name=None):
    """Mean cross entropy, targets (1 - e) onehot + e / classes, which need not sum to 1; logits f[B,K]."""
    scores = jax.nn.log_softmax(batch.wide(logits))
    chosen = jnp.take_along_axis(scores, labels[:, None], 1)[:, 0]
    values = -(1 - label_smooth) * chosen - label_smooth / classes * scores.sum(1)
    return batch.mean(values, None, axis_name)
