"""Losses on pairs of features and on identities of a batch (DSANet, WACV 2023)."""

import jax.numpy as jnp

from reid_jax.losses import batch


def cosine_hinge(a, b):
    """max(0, cosine similarity) of the rows of a, b f[B,D]: f[B] (L_dis); norms are at least 1e-12."""
    return jnp.maximum(cosine(a, b), 0)


def cosine(a, b):
    """Cosine similarity of the rows of a, b f[B,D]: f[B]; norms are at least 1e-12."""
    a, b = batch.wide(a), batch.wide(b)
    return (a * b).sum(-1) / (_norm(a) * _norm(b))


def _norm(x):
    return jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-24))


def intra_class(features, labels, *, reduce="mean", axis_name=None):
    """L_ic: for each identity of the global batch the mean over its rows of |f - mean|^2, summed: f[].

    features f[B,D], labels i32[B]. reduce: 'mean' or 'sum' over the D features (sum: the printed formula).
    Under `axis_name` the mean over devices is the loss of the global batch.
    """
    features = batch.wide(features)
    bank, labels_all = batch.gather(features, axis_name), batch.gather(labels, axis_name)
    same = (labels[:, None] == labels_all).astype(features.dtype)
    count = same.sum(1, keepdims=True)
    square = jnp.square(features - same @ bank / count)
    rows = (square.mean(-1) if reduce == "mean" else square.sum(-1)) / count[:, 0]
    return rows.sum() * (len(bank) // len(features))  # number of devices
