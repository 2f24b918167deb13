"""HA-CNN (Li et al., CVPR 2018): a global branch with soft attention, a local one of four attended regions.

Modules are called as in torchreid, for images of 160x64 only. The regions' windows have a fixed scale and a
shift for each axis, so that a window, resized, is a matrix for the rows and one for the columns.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models import Keys
from reid_jax.models.backbones import Backbone
from reid_jax.models.layers import Conv, kernel_uniform, max_pool, uniform
from reid_jax.models.norms import Norms
from reid_jax.models.weights import names

FIELDS = dict(
    hacnn_widths=(
        32,
        128,
        256,
        384,
    ),  # backbone "hacnn" only: channels of its stem and stages, multiples of 16
    hacnn_dim=512,  # numbers of its global and of its local vector
    # whether windows are sampled with the corners' pixels at -1 and 1: published weights are of such nets
    # (PyTorch until 1.2); later PyTorch samples with False
    hacnn_align_corners=True,
    hacnn_local=True,  # False: the global branch alone, one vector
    hacnn_hard=True,  # False: the local branch's windows stay where they start
    hacnn_soft=True,  # False: the global branch's maps are not weighed
)

SIZE = (160, 64)  # of images
LOCAL = ((24, 28), (12, 14), (6, 7))  # size of a region's window at each stage
REGIONS = 4
SCALE = 0.25  # height of a window over the map's; its width is the map's
SHIFTS = (0, -0.75, 0, -0.25, 0, 0.25, 0, 0.75)  # x, y of each region before the tanh, at the start


class Unit(nn.Module):
    """Convolution with bias, batch norm, ReLU: [B,H,W,C] -> [B,h,w,features]."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        fields = dict(padding=self.kernel_size // 2, use_bias=True, dtype=self.dtype, init=kernel_uniform)
        x = Conv(self.features, self.kernel_size, self.stride, name="conv", **fields)(x)
        return nn.relu(self.norms.batch(name="bn")(x, train))


class Inception(nn.Module):
    """Streams joined along the channels: [B,H,W,C] -> [B,h,w,features]."""

    features: int
    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        unit = functools.partial(Unit, dtype=self.dtype, norms=self.norms)
        return jnp.concatenate(list(self.streams(x, train, unit)), -1)

    def stream(self, unit, name, x, train, *sizes, first=0):
        """x after units of these (features, kernel size, stride)."""
        for i, size in enumerate(sizes, first):
            x = unit(*size, name=f"{name}_{i}")(x, train)
        return x


class InceptionA(Inception):
    """Of the same size."""

    def streams(self, x, train, unit):
        part = self.features // 4
        for name in ("stream1", "stream2", "stream3"):
            yield self.stream(unit, name, x, train, (part, 1), (part, 3))
        means = nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))  # which count the padding
        yield self.stream(unit, "stream4", means, train, (part, 1), first=1)


class InceptionB(Inception):
    """Of half the size."""

    def streams(self, x, train, unit):
        part = self.features // 4
        yield self.stream(unit, "stream1", x, train, (part, 1), (part, 3, 2))
        yield self.stream(unit, "stream2", x, train, (part, 1), (part, 3), (part, 3, 2))
        yield self.stream(unit, "stream3", max_pool(x), train, (2 * part, 1), first=1)


class SpatialAttention(nn.Module):
    """[B,h,w,C] -> [B,h,w,1]."""

    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        unit = functools.partial(Unit, 1, dtype=self.dtype, norms=self.norms)
        y = unit(3, 2, name="conv1")(x.mean(-1, keepdims=True), train)
        height, width = y.shape[-3:-1]
        y = separable(y, resizing(height, 2 * height), resizing(width, 2 * width))
        return unit(name="conv2")(y, train)


class ChannelAttention(nn.Module):
    """[B,h,w,C] -> [B,1,1,C]."""

    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        unit = functools.partial(Unit, dtype=self.dtype, norms=self.norms)
        y = unit(x.shape[-1] // 16, name="conv1")(x.mean((-3, -2), keepdims=True), train)
        return unit(x.shape[-1], name="conv2")(y, train)


class SoftAttention(nn.Module):
    """Weights in (0, 1) for every entry of a map: [B,h,w,C] -> [B,h,w,C]."""

    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        fields = dict(dtype=self.dtype, norms=self.norms)
        spatial = SpatialAttention(**fields, name="spatial_attn")(x, train)
        channel = ChannelAttention(**fields, name="channel_attn")(x, train)
        return nn.sigmoid(Unit(x.shape[-1], **fields, name="conv")(spatial * channel, train))


class HardAttention(nn.Module):
    """Shifts (x, y) in (-1, 1) of the regions' windows: [B,h,w,C] -> at least f32[B,REGIONS,2]."""

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((-3, -2))
        start = dict(kernel_init=nn.initializers.zeros, bias_init=lambda *_: jnp.array(SHIFTS, jnp.float32))
        return nn.tanh(nn.Dense(2 * REGIONS, name="fc", **start)(x)).reshape(-1, REGIONS, 2)


class Attention(nn.Module):
    """Harmonious attention: (soft weights, shifts of the windows) of a map.

    soft: False: weights 1. hard: False: the shifts of the start.
    """

    soft: bool = True
    hard: bool = True
    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        soft = SoftAttention(self.dtype, self.norms, name="soft_attn")(x, train) if self.soft else 1
        start = jnp.tanh(jnp.array(SHIFTS, jnp.float32)).reshape(1, REGIONS, 2)
        return soft, HardAttention(name="hard_attn")(x) if self.hard else start.repeat(len(x), 0)


class HACNN(Backbone):
    """Images [...,160,64,3] -> the global and the local vector as a map [...,1,2,dim], in at least float32.

    local: False: no regions, and the global vector alone, [...,1,1,dim]. soft, hard: see Attention.

    The regions go through a stage's local block one after the other as far as its batch norms are concerned:
    they are parts of one batch. Raises ConfigError for images of another size.
    """

    widths: tuple[int, ...] = (32, 128, 256, 384)
    dim: int = 512
    align_corners: bool = True
    local: bool = True
    hard: bool = True
    soft: bool = True

    only_batch_norm = True
    by_domain = False  # its norms of regions see the rows in another order

    @property
    def depth(self):
        return len(self.widths) - 1

    @property
    def places(self):
        return tuple(range(1, self.depth + 1))

    @nn.compact
    def __call__(self, x, train):
        if x.shape[-3:-1] != SIZE:
            raise ConfigError(
                f"backbone 'hacnn' takes images of {SIZE[0]}x{SIZE[1]} only, these are of {x.shape[-3]}x"
                f"{x.shape[-2]}: set config.data.height={SIZE[0]} and config.data.width={SIZE[1]}"
            )
        leading = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:])
        norms = dataclasses.replace(self.norms, rows=self.norms.rows * math.prod(leading[1:]))
        by_region = dataclasses.replace(norms, rows=norms.rows or len(x))
        fields = dict(dtype=self.dtype, norms=norms)
        x, local = Unit(self.widths[0], 3, 2, **fields, name="conv")(x, train), None
        for k, (width, size) in enumerate(zip(self.widths[1:], LOCAL, strict=True), 1):
            y = InceptionA(width, **fields, name=f"inception{k}_0")(x, train)
            y = InceptionB(width, **fields, name=f"inception{k}_1")(y, train)
            attention = Attention(self.soft, self.hard and self.local, **fields, name=f"ha{k}")
            soft, shifts = attention(y, train)
            if self.local:
                regions = windows(x, shifts, size, self.align_corners)
                local = regions if local is None else regions + local
                local = InceptionB(width, self.dtype, by_region, name=f"local_conv{k}")(local, train)
            x = self.at(k, y * soft, train)
        vectors = [self.vector("fc_global", x.mean((-3, -2)), norms, train)]
        if self.local:
            local = local.mean((-3, -2)).reshape(REGIONS, len(x), -1).swapaxes(0, 1).reshape(len(x), -1)
            vectors.append(self.vector("fc_local", local, norms, train))
        return jnp.stack(vectors, 1).reshape(*leading, 1, len(vectors), self.dim)

    def vector(self, name, x, norms, train):
        """Linear layer, batch norm, ReLU."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        init = dict(kernel_init=kernel_uniform, bias_init=uniform(x.shape[-1]))
        x = nn.Dense(self.dim, name=f"{name}_0", **init)(x)
        return nn.relu(norms.batch(name=f"{name}_1")(x, train))

    def maps(self, x, train, first=0, last=None):
        """Not to be had: the local branch needs the maps of the global one."""
        raise ConfigError(
            "config.model.backbone 'hacnn' has two branches and no stages that can be called alone; use a "
            "ResNet"
        )


# ---- windows as matrices


def windows(x, shifts, size, align_corners):
    """The window of every region, resized: x [B,H,W,C], shifts [B,R,2] (x, y) -> [R B,*size,C], by region.

    As PyTorch's affine_grid and grid_sample (bilinear, zeros outside) at the map's own size and then an
    upsampling with align_corners True.
    """
    height, width = x.shape[1:3]
    x_shift, y_shift = jnp.moveaxis(shifts, -1, 0)
    product = functools.partial(jnp.matmul, precision="highest")
    rows = product(resizing(height, size[0]), sampling(height, SCALE, y_shift, align_corners))
    columns = product(resizing(width, size[1]), sampling(width, 1.0, x_shift, align_corners))
    rows, columns = (m.astype(x.dtype) for m in (rows, columns))
    y = jnp.einsum("brih,bhwc->rbiwc", rows, x)
    y = jnp.einsum("brjw,rbiwc->rbijc", columns, y)
    return y.reshape(-1, *y.shape[2:])


def sampling(length, scale, shift, align_corners):
    """Matrices [...,length,length] that sample an axis at scale * position + shift; shift [...].

    Positions run from -1 to 1: of the outer pixels' centres with align_corners, else of the axis' ends.
    """
    i = jnp.arange(length, dtype=shift.dtype)
    if align_corners:
        place = (scale * (2 * i / (length - 1) - 1) + shift[..., None] + 1) / 2 * (length - 1)
    else:
        place = ((scale * ((2 * i + 1) / length - 1) + shift[..., None] + 1) * length - 1) / 2
    return between(place, length)


def resizing(length, new):
    """Matrix f32[new,length] of bilinear resizing of an axis with align_corners True."""
    return between(jnp.arange(new) * ((length - 1) / max(new - 1, 1)), length)


def between(place, length):
    """Weights [...,length] of an axis' entries at fractional places [...], 0 of what lies outside.

    The gradient by a whole place is that from the right, as PyTorch's.
    """
    low = jnp.floor(place)[..., None]
    share, entries = place[..., None] - low, jnp.arange(length)
    return jnp.where(entries == low, 1 - share, 0) + jnp.where(entries == low + 1, share, 0)


def separable(x, rows, columns):
    """rows [h,H] and columns [w,W] applied to x [B,H,W,C] -> [B,h,w,C]."""
    rows, columns = (m.astype(x.dtype) for m in (rows, columns))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns)


# ---- by name


def build(model, dtype, axis_name):
    """HACNN of config.model; ConfigError for fields that describe none."""
    widths = tuple(model.hacnn_widths)
    if len(widths) != 4 or min(widths) < 1 or any(w % 16 for w in widths[1:]) or model.hacnn_dim < 1:
        raise ConfigError(
            f"config.model.hacnn_widths is {widths} and hacnn_dim {model.hacnn_dim}; it must be the stem's "
            "channels and those of three stages, multiples of 16, and hacnn_dim 1 or more"
        )
    if model.head != "pair":
        raise ConfigError(
            "config.model.backbone 'hacnn' gives two vectors; it needs config.model.head=pair, not "
            f"{model.head}"
        )
    fields = (widths, model.hacnn_dim, model.hacnn_align_corners)
    fields += (model.hacnn_local, model.hacnn_hard, model.hacnn_soft)
    return HACNN(*fields, dtype=dtype, axis_name=axis_name)


NAMES = {"hacnn": build}


def _matches(entries):
    return any(re.search(r"(^|\.)ha1\.hard_attn\.fc\.weight$", k) for k in entries)


def _implied(entries):
    """Fields of config.model that a file of {key: array} stands for."""
    front = next(k for k in entries if k.endswith("ha1.hard_attn.fc.weight"))[
        : -len("ha1.hard_attn.fc.weight")
    ]
    keys = ("conv.bn.weight", *(f"ha{k}.soft_attn.conv.bn.weight" for k in (1, 2, 3)), "fc_global.0.bias")
    sizes = [len(entries[front + k]) for k in keys if front + k in entries]
    whole = dict(hacnn_widths=tuple(sizes[:4]), hacnn_dim=sizes[4]) if len(sizes) == 5 else {}
    whole |= {} if front + "fc_local.0.weight" in entries else {"hacnn_local": False}
    return {"backbone": "hacnn", "head": "pair"} | whole


def _names(modules, leaf):
    return names.keys(("params", *modules, leaf), "torchvision")


KEYS = {"hacnn": Keys(_names, _matches, fields=_implied)}
