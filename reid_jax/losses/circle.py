"""Circle loss (Sun et al., CVPR 2020) and the pairwise form of cosface, on cosines of a batch's pairs.

With a_p = max(0, 1 + m - s) and a_n = max(0, s + m), both without gradient: L_p = -g a_p (s - (1 - m)) of
two images of one person, L_n = g a_n (s - m) of two persons.
"""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.losses import batch, triplet

FORMS = ("pairs", "anchor", "cosface")
_NEVER = -1e9  # logit of what is no pair; finite, so that gradients are


def loss(features, labels, *, form, margin, scale, mask=None, axis_name=None):
    """f[] of features [B,D] with labels i32[B].

    form: "pairs", softplus(log sum exp L_n + log sum exp L_p) over all pairs of the batch, once (the paper);
      "anchor", the same for each image over its own pairs, then the mean (fast-reid); "cosface", as anchor
      with L_p = -g s and L_n = g (s + m). Images without a positive count as 0. ConfigError for another.
    """
    choice("loss.circle", form, FORMS)
    mask = batch.rows(mask, features)
    s = -triplet.pairwise(features, metric="cosine", axis_name=axis_name)
    rows = batch.first_row(features, axis_name) + jnp.arange(len(features))
    everyone = jnp.arange(s.shape[1])
    counted = mask[:, None] & batch.gather(mask, axis_name)
    counted &= rows[:, None] < everyone if form == "pairs" else rows[:, None] != everyone
    same = labels[:, None] == batch.gather(labels, axis_name)
    positive, negative = _logits(s, form, margin, scale)
    positive = jnp.where(counted & same, positive, _NEVER)
    negative = jnp.where(counted & ~same, negative, _NEVER)
    if form == "pairs":
        return jax.nn.softplus(_all(positive, axis_name) + _all(negative, axis_name))
    values = jax.nn.softplus(jax.nn.logsumexp(positive, 1) + jax.nn.logsumexp(negative, 1))
    return batch.mean(values, mask, axis_name)


def _logits(s, form, margin, scale):
    """L_p and L_n of all cosines."""
    if form == "cosface":
        return -scale * s, scale * (s + margin)
    still = lax.stop_gradient(s)
    positive = -scale * jax.nn.relu(1 + margin - still) * (s - (1 - margin))
    return positive, scale * jax.nn.relu(still + margin) * (s - margin)


def _all(logits, axis_name):
    """log sum exp over all rows of all devices, the same on each; -1e9 or so where there is none."""
    return jax.nn.logsumexp(batch.gather(jax.nn.logsumexp(logits.ravel())[None], axis_name))
