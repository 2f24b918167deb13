"""Device side of the augmentation: draws of the host applied to uint8 images, then normalisation."""

import jax
import jax.numpy as jnp
from jax import lax


def view(image, flip, crop, erase, *, pad, mean, std, fill, dtype):
    """One augmented view of a batch.

    image u8[B,H,W,3]; flip bool[B]; crop i32[B,2]: y, x offset into the image padded by `pad` zeros on each
    side; erase i32[B,4]: y, x, h, w (h = w = 0: nothing). Order: flip, pad, crop, normalise, erase with
    `fill` (a value per channel, in the normalised image). Returns dtype[B,H,W,3].
    """
    height, width = image.shape[1:3]
    image = jnp.where(flip[:, None, None, None], image[:, :, ::-1], image)
    if pad:
        image = jax.vmap(lambda i, c: _crop(i, c, pad, height, width))(image, crop)
    y, x, h, w = (erase[:, i, None, None] for i in range(4))
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    gone = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
    pixels = plain(image, mean=mean, std=std, dtype=dtype)
    return jnp.where(gone[..., None], jnp.asarray(fill, pixels.dtype), pixels)


def plain(image, *, mean, std, dtype):
    """Normalised, not augmented: u8[B,H,W,3] -> dtype[B,H,W,3], (image / 255 - mean) / std per channel."""
    work = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(mean, work), jnp.asarray(std, work)
    return ((jnp.asarray(image).astype(work) / 255 - mean) / std).astype(dtype)


def _crop(image, offset, pad, height, width):
    """u8[H,W,3] -> the [H,W,3] window at `offset` of the zero-padded image."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return lax.dynamic_slice(padded, (offset[0], offset[1], 0), (height, width, image.shape[-1]))
