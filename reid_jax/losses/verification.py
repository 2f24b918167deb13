"""Pairs for the verification loss: each image with one of its person and one of another, drawn at random."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from reid_jax.losses import batch, identity


class Partners(NamedTuple):
    """Of every local row: rows of the global batch, and whether there is such a row."""

    same: jax.Array  # i32[B], another image of the person
    other: jax.Array  # i32[B]
    has_same: jax.Array  # bool[B]
    has_other: jax.Array  # bool[B]


def partners(key, labels, mask=None, axis_name=None):
    """Partners of labels i32[B], equally likely; key: the same on every device."""
    mask = batch.rows(mask, labels)
    labels_all, mask_all = batch.gather(labels, axis_name), batch.gather(mask, axis_name)
    index = batch.first_row(labels, axis_name) + jnp.arange(len(labels))
    among = mask[:, None] & mask_all
    same = labels[:, None] == labels_all
    alike, other = among & same & (index[:, None] != jnp.arange(len(labels_all))), among & ~same
    draws = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), labels_all.shape))(index)
    chosen = (jnp.where(rows, draws, -1).argmax(1) for rows in (alike, other))
    return Partners(*chosen, alike.any(1), other.any(1))


def loss(verify, features, labels, key, mask=None, axis_name=None):
    """Mean cross entropy of "same" (0) and "other" (1) over both pairs of every row: f[].

    verify: (f, g [B,D], 0 for pairs of one person or 1) -> logits [B,2]. Those are half of the pairs, if
    everybody has two images.
    """
    drawn = partners(key, labels, mask, axis_name)
    everyone = batch.gather(features, axis_name)
    logits = [verify(features, everyone[rows], i) for i, rows in enumerate((drawn.same, drawn.other))]
    target = jnp.repeat(jnp.arange(2), len(features))
    valid = jnp.concatenate([drawn.has_same, drawn.has_other])
    return identity.cross_entropy(jnp.concatenate(logits), target, mask=valid, axis_name=axis_name)
