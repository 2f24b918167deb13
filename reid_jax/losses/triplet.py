"""Triplet losses over a batch: hardest pairs (Hermans et al. 2017; cosine form of AP3D, softmax forms of MMT)
and all pairs with weights (AGW, Ye et al. 2021).

Anchors are the local rows; positives and negatives come from the whole (global) batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.losses import batch

DISTANCES = ("cosine", "euclidean", "softmax", "softplus", "unit")
MINING = ("hard", "weighted")
_TINY = 1e-12  # clamp of squared distances


class Hardest(NamedTuple):
    """Per local anchor: indices into the global batch and which anchors count."""

    positive: jax.Array  # i32[B], the farthest row with the anchor's label, the anchor included
    negative: jax.Array  # i32[B], the nearest row with another label
    valid: jax.Array  # bool[B], the anchor is no padding and has a negative


def batch_hard(features, labels, *, distance, margin, soft=False, mask=None, axis_name=None):
    """Mean batch-hard triplet loss of features [B,D] with labels i32[B]: (loss, aux).

    distance: "cosine" (minus the cosine similarity), "euclidean" and "unit" (the squared distance of unit
      vectors, 2 - 2 cos, as fast-reid) and "softplus" (log(1 + exp d) of a Euclidean d, AKA) give the hinge
      max(0, d_ap - d_an + margin), with `soft` the soft margin log(1 + exp(d_ap - d_an)); "softmax" gives
      MMT's -m log p_ap - (1 - m) log p_an with
      p = softmax([d_ap, d_an]) on Euclidean distances and m = margin in [0, 1); m = 0 is the soft margin.
    The hardest positive may be the anchor itself. Anchors without any negative are left out of the
    mean; with no anchor left, loss and gradient are 0. Ties: the first index.
    aux: shares of the counted anchors, "active" (hinge above 0; all of them under softmax) and
      "correct" (d_an > d_ap), and the mean distances "d_ap", "d_an".
    """
    choice("loss.triplet", distance, DISTANCES)
    labels_all, mask, mask_all = _everyone(features, labels, mask, axis_name)
    d = _distances(features, distance, axis_name)
    hardest = mine(lax.stop_gradient(d), labels, labels_all, mask, mask_all)
    d_ap, d_an = _take(d, hardest.positive), _take(d, hardest.negative)
    return _means(d_ap, d_an, hardest.valid, (distance, margin, soft), axis_name)


def weighted(features, labels, *, distance, margin, soft=True, guard=1e-6, mask=None, axis_name=None):
    """Weighted regularised triplet loss (AGW; fast-reid without hard mining), arguments as `batch_hard`.

    d_ap = sum of w d over the rows of the anchor's identity, itself included, w = softmax(d); d_an = the same
    over all others with w = softmax(-d). Gradients flow through the weights.
    guard: what the published codes add to the weights' sum after a shift by max(d * mask), which is 0 for
      the negatives: with far features exp(-d) drowns in their 1e-6 and d_an vanishes. 0 is the true softmax.
    """
    means = weighted_distances(features, labels, distance, guard, mask, axis_name)
    return _means(*means, (distance, margin, soft), axis_name)


def weighted_distances(features, labels, distance, guard, mask=None, axis_name=None):
    """(d_ap f[B], d_an f[B], which anchors count bool[B]), see `weighted`."""
    choice("loss.triplet", distance, DISTANCES)
    labels_all, mask, mask_all = _everyone(features, labels, mask, axis_name)
    d = _distances(features, distance, axis_name)
    same = labels[:, None] == labels_all
    d_ap = (d * _weights(d, same & mask_all, guard)).sum(1)
    d_an = (d * _weights(-d, ~same & mask_all, guard)).sum(1)
    return d_ap, d_an, mask & (~same & mask_all).any(1)


def _weights(x, among, guard):
    """exp(x) over its sum plus a guard, of the entries `among` [B,N]; 0 elsewhere."""
    masked = jnp.where(among, x, 0 if guard else -jnp.inf)
    shift = _take(masked, lax.stop_gradient(masked).argmax(1))[:, None]
    shift = jnp.where(among.any(1)[:, None], shift, 0)
    power = jnp.where(among, jnp.exp(jnp.where(among, x - shift, 0)), 0)
    total = power.sum(1, keepdims=True) + guard
    return power / jnp.where(total > 0, total, 1)


def _distances(features, distance, axis_name):
    """`pairwise` [B,N] of a name of DISTANCES."""
    if distance == "softplus":
        return jax.nn.softplus(pairwise(features, metric="euclidean", axis_name=axis_name))
    if distance == "unit":
        return 2 + 2 * pairwise(features, metric="cosine", axis_name=axis_name)
    return pairwise(features, metric="cosine" if distance == "cosine" else "euclidean", axis_name=axis_name)


def _means(d_ap, d_an, valid, form, axis_name):
    """(mean loss, aux) of the distances [B] of anchors; form: distance, margin, soft."""
    distance, margin, soft = form
    if distance == "softmax":
        values = _cross(jnp.array([margin, 1 - margin], d_ap.dtype), d_ap, d_an)
    else:
        values = jax.nn.softplus(d_ap - d_an) if soft else jax.nn.relu(d_ap - d_an + margin)

    def mean(x):
        return batch.mean(x, valid, axis_name)

    shares = {"active": values > 0, "correct": d_an > d_ap, "d_ap": d_ap, "d_an": d_an}
    return mean(values), {k: lax.stop_gradient(mean(v.astype(d_ap.dtype))) for k, v in shares.items()}


def softmax_soft(features, teacher_features, labels, *, mask=None, axis_name=None):
    """MMT's soft softmax triplet: the student's p against the teacher's, both [B,D] -> scalar.

    The pairs are the student's hardest; the target is softmax of the teacher's distances [d_ap, d_an]
    at the same indices, without gradient.
    """
    labels_all, mask, mask_all = _everyone(features, labels, mask, axis_name)
    d = pairwise(features, metric="euclidean", axis_name=axis_name)
    teacher = lax.stop_gradient(pairwise(teacher_features, metric="euclidean", axis_name=axis_name))
    hardest = mine(lax.stop_gradient(d), labels, labels_all, mask, mask_all)
    pair = jnp.stack([_take(teacher, hardest.positive), _take(teacher, hardest.negative)], -1)
    values = _cross(jax.nn.softmax(pair), _take(d, hardest.positive), _take(d, hardest.negative))
    return batch.mean(values, hardest.valid, axis_name)


def pairwise(features, *, metric, axis_name=None):
    """Distances [B,N] of the local rows of features [B,D] to all rows of the global batch.

    "cosine": minus the cosine similarity (0 for a zero vector). "euclidean":
    sqrt(max(|a|^2 + |b|^2 - 2ab, 1e-12)), with zero gradient where the clamp acts. A row's distance to
    itself is the constant it has in exact arithmetic (-1, 1e-6): rounding must not give it a gradient.
    """
    features = batch.wide(features)
    if metric == "cosine":
        square = jnp.sum(features * features, -1, keepdims=True)
        features = features * lax.rsqrt(jnp.where(square > 0, square, 1))
    bank = batch.gather(features, axis_name)
    product = jnp.matmul(features, bank.T, precision=lax.Precision.HIGHEST)
    rows = batch.first_row(features, axis_name) + jnp.arange(len(features))
    self_pair = rows[:, None] == jnp.arange(len(bank))
    if metric == "cosine":
        return jnp.where(self_pair, -1, -product)
    square = jnp.sum(bank * bank, -1)
    square = jnp.sum(features * features, -1)[:, None] + square - 2 * product
    clamped = self_pair | (square <= _TINY)
    return jnp.sqrt(jnp.where(clamped, _TINY, square))


def mine(distance, labels, labels_all, mask, mask_all):
    """Hardest pairs in distance [B,N]; labels i32[B], i32[N], masks bool[B], bool[N] -> Hardest."""
    same = labels[:, None] == labels_all
    positive = jnp.where(same & mask_all, distance, -jnp.inf).argmax(1)
    negative = jnp.where(~same & mask_all, distance, jnp.inf).argmin(1)
    return Hardest(positive, negative, mask & (~same & mask_all).any(1))


def _everyone(features, labels, mask, axis_name):
    """(labels of the global batch, local mask, mask of the global batch)."""
    mask = batch.rows(mask, features)
    return batch.gather(labels, axis_name), mask, batch.gather(mask, axis_name)


def _take(distance, index):
    return jnp.take_along_axis(distance, index[:, None], 1)[:, 0]


def _cross(target, d_ap, d_an):
    """Cross entropy [B] of target [...,2] and softmax([d_ap, d_an])."""
    return -(target * jax.nn.log_softmax(jnp.stack([d_ap, d_an], -1))).sum(-1)
