"""Device side of the augmentation: draws of the host applied to uint8 images, then normalisation."""

import jax
import jax.numpy as jnp
from jax import lax


def view(image, flip, crop, erase, *, pad, mean, std, fill, dtype, edge=False):
    """One augmented view of a batch of images, or of clips, whose frames are all treated alike.

    image u8[B,H,W,3] or u8[B,T,H,W,3]; flip bool[B]; crop i32[B,2]: y, x offset into the image padded by
    `pad` zeros on each side (edge: by the pixels at the edge); erase i32[B,4]: y, x, h, w (h = w = 0:
    nothing). Order: flip, pad, crop, normalise, erase with `fill` (a value per channel, in the normalised
    image). Returns dtype of image's shape.
    """
    height, width = image.shape[-3:-1]
    image = jnp.where(_spread(flip, image.ndim), image[..., ::-1, :], image)
    if pad:
        image = jax.vmap(lambda i, c: _crop(i, c, pad, height, width, edge))(image, crop)
    y, x, h, w = (_spread(erase[:, i], image.ndim - 1) for i in range(4))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    gone = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
    pixels = plain(image, mean=mean, std=std, dtype=dtype)
    return jnp.where(gone[..., None], jnp.asarray(fill, pixels.dtype), pixels)


def plain(image, *, mean, std, dtype):
    """Normalised, not augmented: u8[...,3] -> dtype[...,3], (image / 255 - mean) / std per channel."""
    work = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(mean, work), jnp.asarray(std, work)
    return ((jnp.asarray(image).astype(work) / 255 - mean) / std).astype(dtype)


def _crop(image, offset, pad, height, width, edge):
    """u8[...,H,W,3] -> the [...,H,W,3] window at `offset` of the padded image."""
    *lead, _, _, channels = image.shape
    widths = [(0, 0)] * len(lead) + [(pad, pad), (pad, pad), (0, 0)]
    padded = jnp.pad(image, widths, mode="edge" if edge else "constant")
    start = (*[0] * len(lead), offset[0], offset[1], 0)
    return lax.dynamic_slice(padded, start, (*lead, height, width, channels))


def _spread(x, ndim):
    """[B] -> [B,1,...,1] with ndim axes."""
    return x.reshape(-1, *[1] * (ndim - 1))
