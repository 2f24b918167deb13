"""Body points on a map: heat maps and visible stripes; the head of Miao et al., ICCV 2019, on both.

Points are f[...,18,3]: x, y in pixels and confidence; a point is sure where its confidence is above a
threshold and neither x nor y is exactly 0. Where no point is sure the pose is not known: the heat is 1
everywhere, and every stripe counts as visible.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from PIL import Image

from reid_jax.errors import ConfigError
from reid_jax.models.layers import BatchNorm, Dropout, maximum, normal, wide
from reid_jax.models.pooling import stripe_pool

HE_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
FEWEST = 3  # sure points from which on stripes are called hidden


class Parts(NamedTuple):
    """What `PoseNet` returns, at least float32; P stripes, C channels, E numbers, K classes."""

    logits: tuple  # of f[B,K], of the stripes
    pose_logits: jax.Array  # f[B,K]
    stripes: jax.Array  # f[B,P,C], means of the stripes: their test features
    joined: jax.Array  # f[B,2C], mean of the map beside the largest heated mean
    pose: jax.Array  # f[B,E], behind the batch norm: the test feature of the pose


class ClassBlock(nn.Module):
    """Dropout, linear layer, batch norm, dropout, classifier: [B,C] -> ([B,dim], logits [B,num_classes])."""

    num_classes: int
    dim: int = 256
    dropout: float = 0.5
    norm: Any = BatchNorm  # its constructor, with the settings of the net
    axis_name: str | None = None  # over which dropout draws as one

    @nn.compact
    def __call__(self, x, train):
        x = Dropout(self.dropout, self.axis_name, name="dropout_in")(wide(x), train)
        x = nn.Dense(self.dim, kernel_init=HE_OUT, name="add_block_0")(x)
        neck = self.norm(scale_init=normal(1.0, 0.02), name="add_block_1")(x, train)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(neck, train)
        return neck, nn.Dense(self.num_classes, kernel_init=normal(0.0, 0.001), name="classifier_0")(x)


class PoseNet(nn.Module):
    """Backbone `base`, a ClassBlock for each of `parts` stripes and one, `global`, for the pose.

    x: images [B,H,W,3]; heat: None, or maps f[B,J,h,w] of the size of the backbone's, or a function of that
    size (h, w) that gives them.
    """

    base: nn.Module
    block: Any  # ClassBlock's constructor, with its settings
    parts: int = 3

    frozen = ()
    classifiers = ("classifier_0",)  # what belongs to the training identities

    @property
    def top(self):
        """Whoever looks for the head's classifiers finds them here."""
        return self

    @property
    def bounds(self):
        """((pattern, least, most), ...): parameters clipped after every step, see norms."""
        return getattr(getattr(self.base, "norms", None), "bounds", ())

    @nn.compact
    def __call__(self, x, train, heat=None):
        x = wide(self.base(x, train))
        if x.shape[1] % self.parts:
            raise ConfigError(
                f"the map has {x.shape[1]} rows, which {self.parts} stripes do not divide: change "
                "config.data.height or the number of parts"
            )
        heat = heat(x.shape[1:3]) if callable(heat) else heat
        stripes, joined = stripe_pool(x, self.parts), pose_pool(x, heat)
        parts = [self.block(name=f"partial{i}")(stripes[:, i], train)[1] for i in range(self.parts)]
        pose, logits = self.block(name="global")(joined, train)
        return Parts(tuple(parts), logits, stripes, joined, pose)


def pose_pool(x, heat=None):
    """f[B,h,w,C] -> f[B,2C]: the mean beside the maximum over points j of the mean of heat_j x.

    heat: f[B,J,h,w]; None: ones.
    """
    mean = x.mean((1, 2))
    if heat is None:
        return jnp.concatenate([mean, mean], -1)
    heated = jnp.einsum("bjhw,bhwc->bjc", heat.astype(x.dtype), x) / (x.shape[1] * x.shape[2])
    return jnp.concatenate([mean, maximum(heated, (1, 1))], -1)


def above(points, threshold):
    """bool[...,J]: confidence of points [...,J,3] above the threshold, both as float32."""
    return points[..., 2].astype(np.float32) > np.float32(threshold)


def sure(points, threshold):
    """bool[...,J] of points [...,J,3]."""
    return above(points, threshold) & (points[..., 0] != 0) & (points[..., 1] != 0)


def visible(points, height, parts, threshold=0.2):
    """f32[...,parts]: 1 where a sure point lies strictly inside of a stripe, or fewer than 3 are sure.

    points [...,J,3] in pixels of a picture of `height` f[...]. Here confidence alone makes a point sure.
    """
    counts = above(points, threshold)
    step = jnp.asarray(height)[..., None] / parts
    lower = jnp.arange(parts) * step
    y = points[..., None, :, 1]
    inside = (y > lower[..., None]) & (y < (lower + step)[..., None]) & counts[..., None, :]
    return (inside.any(-1) | (counts.sum(-1) < FEWEST)[..., None]).astype(jnp.float32)


def cell_heat(points, size, shape, view, *, threshold=0.2, flip=None, crop=None, pad=0):
    """Heat maps f[B,J,h,w]: each point's Gaussian averaged exactly over the cells of the map.

    points f[B,J,3] in pixels of the original pictures, size f[B,2] their height and width; shape (h, w) of
    the map, view (H, W) of what the net sees. The Gaussian stands on the middle of the point's pixel; its
    deviation is height * width / 1000 pixels of the picture (Miao et al.'s code). flip bool[B], crop i[B,2]:
    how the view was augmented, after `pad` pixels at each side (data.augment.view).
    """
    scale = jnp.asarray(view) / size  # [B,2], pixels of the view for one of the picture
    y, x = (jnp.floor(points[..., i]) + 0.5 for i in (1, 0))
    y, x = y * scale[:, :1], x * scale[:, 1:]
    if flip is not None:
        x = jnp.where(flip[:, None], view[1] - x, x)
    if crop is not None:
        y, x = y + pad - crop[:, :1], x + pad - crop[:, 1:]
    deviation = size.prod(-1, keepdims=True) / 1000 * scale
    rows = over_cells(y, deviation[:, :1], view[0], shape[0])
    columns = over_cells(x, deviation[:, 1:], view[1], shape[1])
    known = sure(points, threshold)
    heat = jnp.where(known[..., None, None], rows[..., :, None] * columns[..., None, :], 0)
    return jnp.where(known.any(-1)[:, None, None, None], heat, 1)


def over_cells(centre, deviation, length, count):
    """Means f[B,J,count] of exp(-(t - centre)^2 / (2 deviation^2)) over equal parts of 0 <= t <= length."""
    edges = jnp.linspace(0, length, count + 1)
    deviation = deviation[..., None]
    rise = jnp.diff(erf((edges - centre[..., None]) / (deviation * 2**0.5)), axis=-1)
    return rise * deviation * (np.pi / 2) ** 0.5 * count / length


def pillow_heat(points, size, shape, threshold=0.2):
    """Heat maps f32[B,J,h,w] as the published code draws them: whole pixels, 8 bits, Pillow's resize.

    NumPy arrays as in `cell_heat`; of the picture as it is, neither flipped nor cropped.
    """
    points, size = np.asarray(points), np.asarray(size)
    known = sure(points, threshold)
    heat = np.ones((*points.shape[:2], *shape), np.float32)
    for i in np.flatnonzero(known.any(1)):
        for j in range(points.shape[1]):
            heat[i, j] = shrunk(gaussian(points[i, j], size[i]), shape) if known[i, j] else 0
    return heat


def gaussian(point, size):
    """f64[H,W] around a point (x, y, ..), cut to a whole pixel, in a picture of size (H, W)."""
    height, width = (int(n) for n in size)
    y, x = np.arange(height)[:, None] - int(point[1]), np.arange(width) - int(point[0])
    return np.exp(-(x * x + y * y) / 2 / (height * width / 1000) ** 2)


def shrunk(heat, shape):
    """f32[h,w]: heat f[H,W] to 8 bits, cut off, resized by Pillow."""
    small = Image.fromarray((heat * 255).astype(np.uint8)).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / 255
