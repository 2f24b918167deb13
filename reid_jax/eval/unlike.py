"""How unlike images are by whole, by parts and by camera, and the least unlike ones; nothing is N x N.

The distance of softened similarity (Lin et al., CVPR 2020), tile by tile with a running top k.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TILE = 2048  # images compared with as many at a time


def nearest(whole, parts, camid, k, lambda_p, lambda_c, tile=_TILE) -> np.ndarray:
    """The k other images least unlike each: i32[N,k], nearest first; equal ones by index.

    whole f[N,D], parts f[N,P,C] (P or C may be 0), camid i[N]; lambda_p, lambda_c: see `dissimilarity`.
    """
    count = len(whole)
    tile, tiles = min(tile, count), range(0, count, tile)
    settings = (k, lambda_p, lambda_c)
    indices = []
    for a in tiles:
        best = jnp.full((tile, k), jnp.inf, jnp.result_type(whole)), jnp.full((tile, k), -1, jnp.int32)
        rows = block(a, tile, whole, parts, camid)
        for b in tiles:
            best = nearer(best, rows, block(b, tile, whole, parts, camid), a, b, count, settings)
        indices.append(np.asarray(best[1]))
    return np.concatenate(indices)[:count]


def block(start, tile, *arrays):
    """Rows start, start + 1, ... of arrays, padded with zeros to `tile` of them."""
    cut = [np.asarray(x[start : start + tile]) for x in arrays]
    return tuple(np.pad(x, [(0, tile - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in cut)


@functools.partial(jax.jit, static_argnums=6)
def nearer(best, rows, columns, a, b, count, settings):
    """(dissimilarities f[T,k], indices i32[T,k]) of the nearest among `best` and the columns b, b + 1, ..."""
    k, lambda_p, lambda_c = settings
    column = b + jnp.arange(len(columns[0]))
    itself = (a + jnp.arange(len(rows[0])))[:, None] == column
    d = jnp.where(itself | (column >= count), jnp.inf, dissimilarity(rows, columns, lambda_p, lambda_c))
    values = jnp.concatenate([best[0], d], 1)
    indices = jnp.concatenate([best[1], jnp.broadcast_to(column.astype(jnp.int32), d.shape)], 1)
    least, place = lax.top_k(-values, k)
    return -least, jnp.take_along_axis(indices, place, 1)


def dissimilarity(rows, columns, lambda_p, lambda_c):
    """How unlike images are, f[R,C]; rows and columns: (whole f[R,D], parts f[R,P,E], camid i[R]).

    (1 - lambda_p) |whole - whole'| + lambda_p mean over parts |part - part'| + lambda_c [one camera].
    """
    (whole, parts, camid), (whole2, parts2, camid2) = rows, columns
    d = (1 - lambda_p) * distances(whole, whole2)
    if lambda_p and parts.shape[1]:
        stripes = range(parts.shape[1])
        d += lambda_p * sum(distances(parts[:, m], parts2[:, m]) for m in stripes) / len(stripes)
    return d + lambda_c * (camid[:, None] == camid2)


def distances(x, y):
    """Euclidean distances f[R,C] of rows x f[R,D] and y f[C,D]."""
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    return jnp.sqrt(jnp.maximum(squares, 0))
