"""Dual causality (SNR, Jin et al., CVPR 2020): with what was given back a map tells more, with the rest less.

Of vectors f[3,B,C] or logits f[3,B,K] of the normalised map, that with what belongs to the identity, and that
with the rest.
"""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.losses import batch, triplet

MINING = ("f", "plus", "random")


def entropies(logits, axis_name=None):
    """Mean entropy of softmax of logits [...,B,K] over the rows of all devices: f[...].

    Entries below 1e-6 count as 0, as in the published code.
    """
    p = jax.nn.softmax(batch.wide(logits))
    counts = p >= 1e-6
    mean = -jnp.where(counts, p * jnp.log(jnp.where(counts, p, 1)), 0).sum(-1).mean(-1)
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def by_entropy(logits, axis_name=None):
    """(plus f[], minus f[]), softplus of how much surer f is than plus, minus than f; logits f[3,B,K]."""
    f, plus, minus = entropies(logits, axis_name)
    return jax.nn.softplus(plus - f), jax.nn.softplus(f - minus)


def by_triplets(vectors, positive, negative, valid=None, axis_name=None):
    """(plus f[], minus f[]), means over the anchors, all rows; vectors f[3,B,C].

    positive, negative i32[B]: rows of the global batch. With d(u, w) = (1 - cos(u, w)) / 2 the plus vectors
    of an anchor and its positive shall be nearer than those of f, of it and its negative farther; the minus
    vectors the other way round. Each as a softplus of the difference.
    """

    def distance(x, rows):
        x = batch.wide(x)
        square = jnp.square(x).sum(-1, keepdims=True)
        x = x * lax.rsqrt(jnp.where(square > 0, square, 1))
        return 0.5 - 0.5 * (x * batch.gather(x, axis_name)[rows]).sum(-1)

    near, far = ([distance(x, rows) for x in vectors] for rows in (positive, negative))
    plus = jax.nn.softplus(near[1] - near[0]) + jax.nn.softplus(far[0] - far[1])
    minus = jax.nn.softplus(near[0] - near[2]) + jax.nn.softplus(far[2] - far[0])
    return tuple(batch.mean(x, valid, axis_name) for x in (plus, minus))


def mined(vectors, labels, mining, keys=None, axis_name=None):
    """triplet.Hardest of the anchors by Euclid on f or plus, or drawn with keys [B]; without gradient."""
    everyone = batch.gather(labels, axis_name)
    if mining == "random":
        distance = jax.vmap(lambda key: jax.random.uniform(key, everyone.shape))(keys)
        rows = batch.first_row(labels, axis_name) + jnp.arange(len(labels))
        distance = distance.at[jnp.arange(len(labels)), rows].set(-1)  # no positive of its own
    else:
        x = lax.stop_gradient(vectors[MINING.index(mining)])
        distance = triplet.pairwise(x, metric="euclidean", axis_name=axis_name)
    everywhere = jnp.ones(len(labels), bool), jnp.ones(len(everyone), bool)
    return triplet.mine(distance, labels, everyone, *everywhere)
