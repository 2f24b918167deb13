"""Device side of the augmentation: draws of the host applied to uint8 images, then normalisation."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax


def view(image, flip, crop, erase, *, pad, mean, std, fill, dtype, pad_mode="zeros", jitter=None):
    """One augmented view of a batch of images, or of clips, whose frames are all treated alike.

    image u8[B,H,W,3] or u8[B,T,H,W,3]; flip bool[B]; crop i32[B,2]: y, x offset into the image padded by
    `pad` pixels on each side ("zeros" or the "edge"); jitter: None or f32[B,4], see `jittered`; erase
    i32[B,4]: y, x, h, w (h = w = 0: nothing). Order: flip, pad, crop, jitter, normalise, erase with `fill`: a
    value per channel, in the normalised image, or "normal" or "uniform", noise from the seed erase[:,4].
    Returns dtype of image's shape.
    """
    height, width = image.shape[-3:-1]
    image = jnp.where(_spread(flip, image.ndim), image[..., ::-1, :], image)
    if pad:
        image = jax.vmap(lambda i, c: _crop(i, c, pad, height, width, pad_mode))(image, crop)
    if jitter is not None:
        image = jax.vmap(jittered)(image, jitter)
    y, x, h, w = (_spread(erase[:, i], image.ndim - 1) for i in range(4))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    gone = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
    pixels = plain(image, mean=mean, std=std, dtype=dtype)
    if isinstance(fill, str):
        filled = _noise(erase[:, 4], pixels, fill, mean, std)
    else:
        filled = jnp.asarray(fill, pixels.dtype)
    return jnp.where(gone[..., None], filled, pixels)


def _noise(seeds, pixels, kind, mean, std):
    """Noise like pixels [B,...,3]: N(0, 1), or uniform colours, normalised."""
    draw = {"normal": jax.random.normal, "uniform": jax.random.uniform}[kind]
    noise = jax.vmap(lambda seed: draw(jax.random.key(seed), pixels.shape[1:], jnp.float32))(seeds)
    if kind == "uniform":
        noise = (noise - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
    return noise.astype(pixels.dtype)


def jittered(image, draws):
    """u8[...,H,W,3] -> f32 of 0 to 255, brightness, contrast and saturation times draws f32[4][:3].

    As torchvision's: each a blend with black, the mean grey, the picture's grey, cut to 0..255; in the order
    of number draws[3] of the 6 there are.
    """
    image = image.astype(jnp.float32)
    orders = jnp.array([*itertools.permutations(range(3))])[draws[3].astype(jnp.int32)]

    def change(image, which):
        grey = image @ jnp.array([0.299, 0.587, 0.114])
        behind = (0.0 * image, jnp.zeros_like(image) + grey.mean((-2, -1), keepdims=True)[..., None])
        behind = jnp.stack([*behind, jnp.broadcast_to(grey[..., None], image.shape)])[which]
        return jnp.clip(behind + draws[which] * (image - behind), 0, 255), None

    return lax.scan(change, image, orders)[0]


def plain(image, *, mean, std, dtype):
    """Normalised, not augmented: u8[...,3] -> dtype[...,3], (image / 255 - mean) / std per channel."""
    work = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(mean, work), jnp.asarray(std, work)
    return ((jnp.asarray(image).astype(work) / 255 - mean) / std).astype(dtype)


def _crop(image, offset, pad, height, width, mode):
    """u8[...,H,W,3] -> the [...,H,W,3] window at `offset` of the padded image."""
    *lead, _, _, channels = image.shape
    widths = [(0, 0)] * len(lead) + [(pad, pad), (pad, pad), (0, 0)]
    padded = jnp.pad(image, widths, mode="edge" if mode == "edge" else "constant")
    start = (*[0] * len(lead), offset[0], offset[1], 0)
    return lax.dynamic_slice(padded, start, (*lead, height, width, channels))


def _spread(x, ndim):
    """[B] -> [B,1,...,1] with ndim axes."""
    return x.reshape(-1, *[1] * (ndim - 1))
