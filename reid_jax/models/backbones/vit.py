"""Vision transformers in TransReID's form (He et al., ICCV 2021): overlapping patches, embedded cameras.

Images become tokens [...,1+N,C], the class token first. Modules are called as in TransReID and timm.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.backbones import Backbone
from reid_jax.models.backbones.vit_grids import grid_of
from reid_jax.models.layers import Conv, Dropout, normal

FIELDS = dict(
    vit_stride=16,  # ViTs: pixels from patch to patch; less than a patch: they overlap
    vit_sie=0.0,  # > 0: an embedding of the picture's camera, times this, is added to every token
    vit_drop_path=0.1,  # stochastic depth of the last block, rising from 0 at the first
    vit_attention="auto",  # auto (cuDNN's fused one where there is one) | xla | cudnn
    vit_width=64,  # backbone "vit_narrow" only, and the next three: channels,
    vit_depth=4,  # blocks,
    vit_heads=4,
    vit_patch=8,  # pixels of a patch's side
)


class Sizes(NamedTuple):
    """What sets one ViT apart from another."""

    width: int
    depth: int
    heads: int
    ratio: float = 4.0  # width of the MLP over `width`
    patch: int = 16
    qkv_bias: bool = True
    scale: float | None = None  # of the scores; None: 1 / sqrt(width / heads)
    epsilon: float = 1e-6  # of all layer norms


SIZES = {
    "vit_b16": Sizes(768, 12, 12),
    "deit_s16": Sizes(384, 12, 6),
    "deit_t16": Sizes(192, 12, 3),
    "vit_small": Sizes(768, 8, 8, 3.0, qkv_bias=False, scale=768**-0.5),  # TransReID's own
}


def attention(q, k, v, scale=None, implementation="auto"):
    """softmax(scale q k^T) v of [B,N,heads,D], the softmax in at least float32.

    implementation: of jax.nn.dot_product_attention: "xla", "cudnn", or "auto": cuDNN's for half precision on
    GPUs whose cuDNN has it for these sizes, else XLA's.
    """
    product = functools.partial(jax.nn.dot_product_attention, q, k, v, scale=scale)
    if implementation == "auto" and jax.default_backend() == "gpu" and q.dtype.itemsize == 2:
        try:
            return product(implementation="cudnn")
        except (NotImplementedError, RuntimeError, ValueError):  # as it says of sizes and cards it has not
            pass
    return product(implementation="xla" if implementation == "auto" else implementation)


def layer_norm(sizes, **fields):
    """Layer norm, in at least float32 whatever the compute type."""
    return nn.LayerNorm(epsilon=sizes.epsilon, use_fast_variance=False, **fields)


class Attention(nn.Module):
    """Self-attention of tokens [...,N,C]."""

    sizes: Sizes
    dtype: jnp.dtype | None = None
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x):
        s = self.sizes
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=normal(0.0, 0.02))
        qkv = dense(3 * s.width, s.qkv_bias, name="qkv")(x)
        q, k, v = jnp.unstack(qkv.reshape(-1, x.shape[-2], 3, s.heads, s.width // s.heads), axis=2)
        y = attention(q, k, v, s.scale, self.implementation)
        return dense(s.width, name="proj")(y.reshape(*x.shape[:-1], s.width))


class Mlp(nn.Module):
    """Two layers with the exact GELU between them."""

    hidden: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=normal(0.0, 0.02))
        y = nn.gelu(dense(self.hidden, name="fc1")(x), approximate=False)
        return dense(x.shape[-1], name="fc2")(y)


class DropPath(nn.Module):
    """Stochastic depth: whole rows of x [B,...] to 0 in training, the others over 1 - rate; see Dropout."""

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        ones = jnp.ones((len(x), *(1,) * (x.ndim - 1)), x.dtype)
        return x * Dropout(self.rate, self.axis_name)(ones, train) if train and self.rate else x


class Block(nn.Module):
    """Pre-norm transformer block on tokens [B,...,N,C]; drop: rate of its stochastic depth, by row."""

    sizes: Sizes
    drop: float = 0.0
    dtype: jnp.dtype | None = None
    axis_name: str | None = None
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x, train):
        s = self.sizes
        y = layer_norm(s, name="norm1")(x)
        y = Attention(s, self.dtype, self.implementation, name="attn")(y)
        x = x + DropPath(self.drop, self.axis_name)(y, train)
        y = Mlp(int(s.width * s.ratio), self.dtype, name="mlp")(layer_norm(s, name="norm2")(x))
        return x + DropPath(self.drop, self.axis_name)(y, train)


class PatchEmbed(nn.Module):
    """Images [...,H,W,3] -> maps [...,h,w,width] of patches that may overlap."""

    width: int
    patch: int
    stride: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        if min(x.shape[-3:-1]) < self.patch:
            raise ConfigError(
                f"config.data.height and width are {x.shape[-3]} and {x.shape[-2]}; this backbone needs a "
                f"patch of {self.patch} pixels at least"
            )
        return Conv(self.width, self.patch, self.stride, use_bias=True, dtype=self.dtype, name="proj")(x)


class Tokens(nn.Module):
    """Images [B,...,H,W,3] -> tokens [B,...,1+N,C] with positions and, if there are any, cameras.

    Patches come row by row behind the class token. camera: i32[B], None or out of range for an unknown one,
    which gets the mean of all embeddings.
    """

    sizes: Sizes
    stride: int = 16
    weight: float = 0.0
    cameras: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, camera=None):
        s = self.sizes
        x = PatchEmbed(s.width, s.patch, self.stride, self.dtype, name="patch_embed")(x)
        *lead, height, width, channels = x.shape
        first, origin = (self.drawn(name, (1, 1, channels)) for name in ("cls_token", "cls_pos"))
        grid = self.drawn("pos_embed", (height, width, channels))
        x = x.reshape(*lead, -1, channels)
        x = jnp.concatenate([jnp.broadcast_to(first[0], (*lead, 1, channels)), x], -2)
        x = x + jnp.concatenate([origin[0], grid.reshape(-1, channels)])
        if self.cameras:
            added = self.weight * self.of(camera)
            x = x + added.reshape(-1, *(1,) * (x.ndim - 2), channels)
        return x.astype(self.dtype or x.dtype)

    def of(self, camera):
        """Embeddings of cameras, [B,C] or [1,C]."""
        table = self.drawn("sie_embed", (self.cameras, 1, self.sizes.width))[:, 0]
        mean = table.mean(0, keepdims=True)
        if camera is None:
            return mean
        known = (camera >= 0) & (camera < self.cameras)
        return jnp.where(known[:, None], table[jnp.clip(camera, 0, self.cameras - 1)], mean)

    def drawn(self, name, shape):
        return self.param(name, normal(0.0, 0.02), shape, jnp.float32)


class ViT(Backbone):
    """Images [...,H,W,3] -> tokens [...,1+N,C] behind the last norm; stages are blocks.

    stride, drop_path, implementation: config.model's vit_ fields. weight: of the cameras' embeddings, one for
    each of `cameras`; 0: none. remat: the activations inside a block are computed again in the backward pass.
    """

    sizes: Sizes
    stride: int = 16
    drop_path: float = 0.0
    weight: float = 0.0
    cameras: int = 0
    implementation: str = "auto"
    remat: bool = False

    only_batch_norm = tokens = True
    places = ()

    @property
    def wants_camera(self):
        return self.weight > 0

    @property
    def depth(self):
        return self.sizes.depth

    def setup(self):
        self.embed = Tokens(self.sizes, self.stride, self.weight, self.cameras, self.dtype)
        nn.share_scope(self, self.embed)
        for i in range(self.depth):
            setattr(self, f"blocks_{i}", self.block(i)())
        self.norm = layer_norm(self.sizes)

    def block(self, i):
        """Constructor of block i, from 0."""
        make = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        drop = self.drop_path * i / max(self.depth - 1, 1)
        return functools.partial(make, self.sizes, drop, self.dtype, self.axis_name, self.implementation)

    def stem(self, x, train, camera=None):
        """Tokens before the first block."""
        return self.embed(x, camera)

    def stage(self, number, x, train):
        """Tokens after block `number`, from 1."""
        return getattr(self, f"blocks_{number - 1}")(x, train)

    def __call__(self, x, train, camera=None):
        return self.norm(self.stage(self.depth, self.before_last(x, train, camera), train))

    def before_last(self, x, train, camera=None):
        """Tokens before the last block, for heads that have one of their own; block and norm are not made."""
        x = self.stem(x, train, camera)
        for number in range(1, self.depth):
            x = self.stage(number, x, train)
        return x


def build(model, dtype, axis_name):
    """ViT of config.model, without cameras; ConfigError for sizes that describe none."""
    s = sizes_of(model)
    choice("model.vit_attention", model.vit_attention, ("auto", "xla", "cudnn"))
    if not 1 <= model.vit_stride <= s.patch or model.vit_sie < 0 or not 0 <= model.vit_drop_path < 1:
        raise ConfigError(
            f"config.model.vit_stride is {model.vit_stride}, vit_sie {model.vit_sie} and vit_drop_path "
            f"{model.vit_drop_path}; they must be from 1 to {s.patch} (a patch), at least 0, and in [0, 1)"
        )
    settings = (model.vit_stride, model.vit_drop_path, model.vit_sie)
    settings += (0, model.vit_attention, model.remat)
    return ViT(s, *settings, dtype=dtype, axis_name=axis_name)


def sizes_of(model):
    """Sizes of config.model.backbone."""
    if model.backbone != "vit_narrow":
        return SIZES[model.backbone]
    s = Sizes(model.vit_width, model.vit_depth, model.vit_heads, patch=model.vit_patch)
    if s.depth < 2 or s.patch < 1 or s.heads < 1 or s.width < 1 or s.width % s.heads:
        raise ConfigError(
            f"config.model.vit_width is {s.width}, vit_depth {s.depth}, vit_heads {s.heads} and vit_patch "
            f"{s.patch}; it needs 2 blocks or more, heads that divide the width and patches of 1 or more"
        )
    return s


def image_size(model, positions):
    """(height, width) of images that have the grid of positions, ours [h,w,C] or a file's [1,1+N,C]."""
    s = sizes_of(model)
    grid = positions.shape[:2]
    if grid[0] == 1 and positions.shape[1] > 1:
        grid = grid_of(positions.shape[1] - 1)
    return tuple((n - 1) * model.vit_stride + s.patch for n in grid)


NAMES = dict.fromkeys((*SIZES, "vit_narrow"), build)
PUBLISHED = {"vit_b16": ("jx_vit_base_p16_224-80ecf9dd.pth", "timm")}
