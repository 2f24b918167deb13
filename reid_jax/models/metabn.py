"""MetaBN (M3L, Zhao et al., CVPR 2021): a neck's inputs mixed with noise of other domains' statistics."""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.models.layers import row_keys


def statistics(v, deviation=False, rows=0, axis_name=None):
    """(mean, biased variance or deviation) f[S,n,D] of vectors v [S,n,D] of S domains, without gradient.

    Of every domain as its norm takes them: over axis_name, or of `rows` consecutive rows at a time.
    """
    parts = lax.stop_gradient(v).reshape(len(v), -1, rows or v.shape[1], v.shape[2])
    moments = parts.mean(2), jnp.square(parts).mean(2)
    mean, square = moments if axis_name is None else lax.pmean(moments, axis_name)
    spread = jnp.maximum(square - jnp.square(mean), 0)
    return tuple(jnp.repeat(x, parts.shape[2], 1) for x in (mean, jnp.sqrt(spread) if deviation else spread))


def mix(v, statistics, share, noise):
    """v [n,D] with a share f[] of noise [S,n,D] in the statistics of S domains: [S,n,D].

    The code takes the variance for the deviation of a normal distribution, see `statistics`.
    """
    mean, spread = statistics
    return share * (mean + spread * noise.astype(v.dtype)) + (1 - share) * v


def normal(key, shape, axis_name=None):
    """N(0, 1) f[S,n,D], of every row by its number in the global batch of a domain."""
    keys = row_keys(key, shape[1], axis_name)
    return jax.vmap(lambda key: jax.random.normal(key, (shape[0], shape[2])))(keys).swapaxes(0, 1)
