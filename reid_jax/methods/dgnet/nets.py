"""Networks of DG-Net: structure encoder E_s, appearance encoder E_a, generator G, discriminator D, teacher T.

G and D are models.gan's. Submodules are called as in the published keys, with `_0` for `.0`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.config import choice, namespace
from reid_jax.errors import ConfigError
from reid_jax.fields import plain
from reid_jax.models import backbones, gan, heads
from reid_jax.models.blocks import Aspp, ClassBlock, ConvBlock, Residual, doubled, leaky
from reid_jax.models.layers import wide
from reid_jax.models.pooling import spatial_pool

SMALL = 128  # rows up to which images are doubled before E_a and the teacher


class Residuals(nn.Module):
    """Residual blocks `model_0`, ... with instance norm."""

    blocks: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        for i in range(self.blocks):
            x = Residual("instance", dtype=self.dtype, name=f"model_{i}")(x)
        return x


class StructureEncoder(nn.Module):
    """E_s: grey images [B,H,W,1] -> structure [B,H/4,W/4,8 width] (halvings 2)."""

    width: int = 16
    blocks: int = 4
    halvings: int = 2
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        width, shapes = 2 * self.width, [(self.width, 3, 2), (2 * self.width, 3, 1)]
        for _ in range(self.halvings - 1):
            shapes += [(width, 3, 1), (2 * width, 3, 2)]
            width *= 2
        options = dict(norm="instance", act=leaky, dtype=self.dtype)
        for i, shape in enumerate(shapes):
            x = ConvBlock(*shape, **options, name=f"model_{i}")(x)
        x = Residuals(self.blocks, self.dtype, name=f"model_{len(shapes)}")(x)
        return Aspp(2 * width, dtype=self.dtype, name=f"model_{len(shapes) + 1}")(x)


class Look(NamedTuple):
    """What E_a sees in images."""

    code: jax.Array  # f[B,parts C], appearance: channel by channel, its stripes from top to bottom
    prim: jax.Array  # f[B,K] logits of classifier1
    fine: jax.Array  # of classifier2
    neck_prim: jax.Array  # f[B,D], test features
    neck_fine: jax.Array


class AppearanceEncoder(nn.Module):
    """E_a: images [B,H,W,3] -> Look.

    live: gradients pass through the code; the published code detaches it. unit: codes at unit length.
    """

    base: nn.Module
    classifier1: ClassBlock
    classifier2: ClassBlock
    pool: str = "max"
    parts: int = 4
    live: bool = False
    unit: bool = False
    enlarge: bool = True

    def __call__(self, x, train):
        x = wide(self.base(enlarged(x, self.enlarge), train))
        code = stripes(x, self.parts, self.pool).reshape(len(x), -1)
        if self.unit:
            code = code / (jnp.linalg.norm(code, axis=1, keepdims=True) + 1e-8)
        v = spatial_pool(x, self.pool)
        (neck1, prim), (neck2, fine) = self.classifier1(v, train), self.classifier2(v, train)
        return Look(code if self.live else jax.lax.stop_gradient(code), prim, fine, neck1, neck2)


def stripes(x, parts, pool):
    """Horizontal stripes of maps [B,H,W,C], each pooled: [B,C,parts]; as PyTorch's adaptive pooling."""
    height = x.shape[1]
    rows = [(i * height // parts, -(-(i + 1) * height // parts)) for i in range(parts)]
    return jnp.stack([spatial_pool(x[:, first:end], pool) for first, end in rows], -1)


def enlarged(x, on=True):
    """Images [B,H,W,3] at twice the size if they have at most SMALL rows."""
    return doubled(x) if on and x.shape[1] <= SMALL else x


def grey(x):
    """Mean of the three normalised channels: [B,H,W,3] -> [B,H,W,1]."""
    return x.mean(-1, keepdims=True)


# ---- construction from a config


def trunk(model, axis_name):
    """The backbone of config.model; ConfigError for one that takes clips."""
    if not heads.frames_apart(model):
        raise ConfigError(
            f"config.model.backbone {model.backbone!r} takes clips, dgnet single images; use a ResNet, slim "
            "or narrow"
        )
    return heads.trunk(model, axis_name)


def appearance_encoder(config, info, dropout=True):
    """E_a of a config; dropout: False for its frozen copy."""
    d, base = config.dgnet, trunk(config.model, info.axis_name)
    pool = choice("model.pool", config.model.pool, ("avg", "max"))
    axis = backbones.group_axis(config.model, info.axis_name)

    def block(rate):
        rows = config.model.bn_rows
        return ClassBlock(
            info.num_pids, d.neck_dim, rate if dropout else 0.0, axis, info.axis_name, rows=rows
        )

    blocks = block(d.dropout_prim), block(d.dropout_fine)
    return AppearanceEncoder(base, *blocks, pool, d.parts, d.live_code, d.unit_code, d.scale2)


def structure_encoder(config):
    """E_s of a config; ConfigError for images that it cannot halve as often."""
    d, size = config.dgnet, (config.data.height, config.data.width)
    if config.data.frames:
        raise ConfigError(
            f"config.data.frames is {config.data.frames}; dgnet takes single images, leave it at 0"
        )
    if any(n % 2**d.halvings for n in size):
        raise ConfigError(
            f"config.data.height and width are {size[0]} and {size[1]}; dgnet halves and doubles them "
            f"{d.halvings} times (config.dgnet.halvings): use multiples of {2**d.halvings}"
        )
    return StructureEncoder(d.width, d.blocks, d.halvings, compute_type(config))


def generator(config):
    """G of a config."""
    d = config.dgnet
    if d.blocks > d.parts:
        raise ConfigError(
            f"config.dgnet.blocks is {d.blocks}, and a code has {d.parts} parts (config.dgnet.parts): every "
            "residual block needs one of its own"
        )
    sizes = content_dim(d), d.mlp_dim, d.blocks, d.parts, d.halvings
    return gan.Generator(*sizes, True, compute_type(config))


def content_dim(d):
    """Channels of the structure."""
    return d.width * 2 ** (d.halvings + 1)


def discriminator(config):
    """D of a config."""
    d = config.dgnet
    sizes = d.scales, d.discriminator_width, d.discriminator_blocks, d.discriminator_std
    return gan.Discriminator(*sizes, True, d.discriminator_halvings, compute_type(config))


def teacher_model(config, dropout=True):
    """config.model as the teacher has it: mean pooling, one ClassBlock."""
    d = config.dgnet
    fields = dict(head="classblock", pool="avg", last_stride=d.teacher_stride, classblock_dim=d.neck_dim)
    fields |= dict(classblock_dropout=d.teacher_dropout if dropout else 0.0, classblock_act="none")
    return namespace(plain(config.model) | fields | dict(classblock_test="neck"))


def teacher(config, info, dropout=True):
    """T of a config."""
    return heads.build(teacher_model(config, dropout), info.num_pids, info.axis_name)


def compute_type(config):
    """Compute type of the convolutions outside the backbone: the backbone's."""
    return trunk(config.model, None).dtype
