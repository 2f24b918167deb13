"""DI-REID's self-degradations for batches on the device, as `degrade` does them on the host.

All pictures of a batch have one size; where that is not a picture's own, the host's down-sampling is another
one. Otherwise results differ from the host's by a level or two of 255, see each function.
"""

import jax.numpy as jnp
from jax import lax


def darken(images, gamma, gain):
    """`darken` of images u8[B,H,W,3] by gamma f32[B], gain f32[B]; at most one level beside the host's."""
    levels = jnp.arange(256, dtype=jnp.float32) / 255
    table = jnp.trunc(255.999 * gain[:, None] * levels ** gamma[:, None]).astype(jnp.uint8)
    return jnp.take_along_axis(table, images.reshape(len(images), -1).astype(jnp.int32), 1).reshape(
        images.shape
    )


def lower(images, ratio, *, most=1):
    """`degrade.shrink` by ratio f32[B] >= 1 and `enlarge` to the old size: u8[B,H,W,3] -> u8[B,H,W,3].

    most: the smallest ratio that occurs, which bounds the arrays in between. At most two levels beside the
    host's at sides of 2 to 1, where one value in 300 differs. At sizes where PIL takes rows before columns
    the roundings between the passes differ: one value in 6, by a level, in noise by up to five.
    """
    height, width = images.shape[1:3]
    sizes = [(side, jnp.maximum(jnp.floor(side / ratio), 1), int(side / most)) for side in (height, width)]
    down = [_resampling(side, small, side, limit, _triangle, 1) for side, small, limit in sizes]
    up = [_resampling(small, side, limit, side, _cubic, 2) for side, small, limit in sizes]
    x = images.astype(jnp.float32)
    for rows, columns in (down, up):
        x = _levels(jnp.einsum("bow,bhwc->bhoc", columns, x, precision=lax.Precision.HIGHEST))
        x = _levels(jnp.einsum("boh,bhwc->bowc", rows, x, precision=lax.Precision.HIGHEST))
    return x.astype(jnp.uint8)


def _levels(x):
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)


def _resampling(size, new, entries, outputs, kernel, support):
    """PIL's weights [B,outputs,entries] for lines of `size` pixels (f32[B] or a number) made `new` pixels.

    Both may be shorter than the arrays; what is beyond them has weight 0.
    """
    size, scale = jnp.reshape(size, (-1, 1, 1)), jnp.reshape(size / new, (-1, 1, 1))
    centre = (jnp.arange(outputs)[:, None] + 0.5) * scale
    pixel = jnp.arange(entries)
    offset = (pixel + 0.5 - centre) / jnp.maximum(scale, 1)
    weight = jnp.where((pixel < size) & (jnp.abs(offset) < support), kernel(offset), 0)
    total = weight.sum(-1, keepdims=True)
    return weight / jnp.where(total == 0, 1, total)


def _triangle(x):
    return jnp.maximum(1 - jnp.abs(x), 0)


def _cubic(x):
    """Keys' kernel with a = -0.5, as PIL's BICUBIC."""
    a, x = -0.5, jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return jnp.where(x < 1, near, (((x - 5) * x + 8) * x - 4) * a)
