"""Means over a batch that may be padded and spread over devices; shared by the losses."""

import jax.numpy as jnp
from jax import lax


def wide(x):
    """x in at least float32: losses of bfloat16 features are not computed in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rows(mask, values):
    """mask, or all rows of `values` when it is None: bool[B]."""
    return jnp.ones(values.shape[:1], bool) if mask is None else mask.astype(bool)


def psum(x, axis_name):
    """Sum over devices; x itself on one device."""
    return x if axis_name is None else lax.psum(x, axis_name)


def gather(x, axis_name):
    """[B,...] of every device, one after another: [N,...]; gradients flow back to their device."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def first_row(x, axis_name):
    """Index of the first local row in `gather(x, axis_name)`."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * x.shape[0]


def of_partners(x, partners, axis_name):
    """x [B,...] of the partner of every row; partners i32[N]: rows of the global batch, one for each."""
    rows = first_row(x, axis_name) + jnp.arange(len(x))
    return gather(x, axis_name)[partners[rows]]


def mean(values, mask=None, axis_name=None):
    """Mean of values [B] over the rows that mask keeps; 0 with zero gradient when it keeps none.

    Under `axis_name` the local sum is divided by (global count / number of devices), so that the
    mean over devices is the mean over all kept rows.
    """
    mask = rows(mask, values)
    count = psum(mask.sum(), axis_name).astype(values.dtype)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    return jnp.where(mask, values, 0).sum() * (devices / jnp.maximum(count, 1))


def unit(x):
    """Rows divided by their L2 norm."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
