"""AP3D-NL ResNet-50 (Gu et al., ECCV 2020): appearance-preserving 3D convolution and non-local blocks.

Clips are [B,T,H,W,C]. Convolutions over space alone are 2-D ones on every frame, so a plain ResNet is
already the paper's C2D; kernels over time are [kt,1,1,in,out]. Module names follow AP3D's keys.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models.backbones.resnet import Bottleneck, ResNet, fields_of
from reid_jax.models.layers import BatchNorm, Conv, kernel_uniform

FIELDS = dict(
    ap3d_temperature=4.0,  # AP3D only: of the softmax over a neighbouring frame's pixels
    ap3d_contrastive=True,  # AP3D only: weaken rebuilt pixels that look unlike the frame's own
)


def _wide(x):
    """At least float32: softmax and sigmoid are not taken in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def shift(x, offset):
    """Frame t of the result is frame t + offset, zeros beyond the ends: [B,T,...] -> [B,T,...]."""
    length, empty = x.shape[1], jnp.zeros_like(x[:, : min(abs(offset), x.shape[1])])
    if offset < 0:
        return jnp.concatenate([empty, x[:, : max(length + offset, 0)]], 1)
    return jnp.concatenate([x[:, offset:], empty], 1)


class AppearancePreserving(nn.Module):
    """APM: neighbouring frames rebuilt to line up with each frame, pixel by pixel.

    [B,T,H,W,C] -> [B,T,time,H,W,C]: for every frame its rebuilt neighbours with itself in the middle;
    neighbours beyond the ends are zero.

    contrastive: rebuilt pixels that do not look like the frame's own are weakened. That attention sees
    features without passing gradient to them.
    """

    time: int = 3
    temperature: float = 4.0
    contrastive: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        inner = max(x.shape[-1] // 16, 1)
        conv = functools.partial(Conv, dtype=self.dtype, init=kernel_uniform)
        semantic = _wide(conv(inner, name="semantic_mapping")(x))
        norm = jnp.sqrt(jnp.maximum(jnp.square(semantic).sum(-1, keepdims=True), 1e-24))
        semantic = (semantic / norm).astype(x.dtype)
        if self.contrastive:
            x_map = conv(inner, name="x_mapping")
            n_map = conv(inner, name="n_mapping")
            attend = conv(1, name="contrastive_att_net_0")
            x_mapped = x_map(jax.lax.stop_gradient(x))
        frames, half = [], self.time // 2
        for offset in range(-half, half + 1):
            if offset == 0:
                frames.append(x)
                continue
            near = self.rebuild(semantic, shift(semantic, offset), shift(x, offset))
            if self.contrastive:
                score = _wide(attend(x_mapped * n_map(jax.lax.stop_gradient(near))))
                near = near * jax.nn.sigmoid(score).astype(near.dtype)
            frames.append(near)
        return jnp.stack(frames, 2)

    def rebuild(self, centre, other, values):
        """Every pixel as the mean of the other frame's, weighted by how alike they look."""
        centre, other, flat = (a.reshape(*a.shape[:2], -1, a.shape[-1]) for a in (centre, other, values))
        alike = _wide(jnp.einsum("btpc,btqc->btpq", centre, other))
        weights = jax.nn.softmax(self.temperature * alike, -1).astype(values.dtype)
        return jnp.einsum("btpq,btqc->btpc", weights, flat).reshape(values.shape)


class App3dConv(nn.Module):
    """APP3DC: a 3x3 convolution of every frame plus one over time of its appearance-preserving neighbours.

    [B,T,H,W,C] -> [B,T,h,w,features]. The kernel over time starts at zero: a fresh net is C2D.
    """

    features: int
    stride: int = 1
    time: int = 3
    temperature: float = 4.0
    contrastive: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        x = Conv(self.features, 3, self.stride, 1, dtype=self.dtype, name="spatial_conv3d")(x)
        near = AppearancePreserving(self.time, self.temperature, self.contrastive, self.dtype, name="APM")(x)
        return x + TimeConv(self.features, self.time, self.dtype, name="temporal_conv3d")(near)


class TimeConv(nn.Module):
    """Weighted sum over `time` frames: [B,T,time,H,W,C] -> [B,T,H,W,features].

    Kernel [time,1,1,C,features].
    """

    features: int
    time: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        shape = (self.time, 1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        return jnp.einsum("btkhwc,kco->bthwo", x.astype(dtype), kernel[:, 0, 0].astype(dtype))


class NonLocal(nn.Module):
    """Non-local block: attention from every pixel of a clip to all of its pixels, added to it.

    [B,T,H,W,C] -> the same. sub_sample: keys and values are max pooled 2x2. The last norm starts at
    zero: a fresh block changes nothing.
    """

    sub_sample: bool = True
    inner: int = 0  # 0: C / 2
    dtype: jnp.dtype | None = None
    norm: Callable = BatchNorm  # constructor of the last norm

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype)
        inner, pooled = self.inner or x.shape[-1] // 2, "_0" if self.sub_sample else ""
        values = self.pool(conv(inner, name=f"g{pooled}")(x))
        query = conv(inner, name="theta")(x)
        keys = self.pool(conv(inner, name=f"phi{pooled}")(x))
        query, keys, values = (a.reshape(a.shape[0], -1, inner) for a in (query, keys, values))
        weights = jax.nn.softmax(_wide(jnp.einsum("bpc,bqc->bpq", query, keys)), -1)
        seen = jnp.einsum("bpq,bqc->bpc", weights.astype(values.dtype), values)
        y = conv(x.shape[-1], name="W_0")(seen.reshape(*x.shape[:-1], inner))
        norm = self.norm(scale_init=nn.initializers.zeros, name="W_1")
        return x + norm(y, train)

    def pool(self, x):
        return nn.max_pool(x, (2, 2), (2, 2)) if self.sub_sample else x


class App3dBottleneck(Bottleneck):
    """Bottleneck with APP3DC in the middle."""

    temperature: float = 4.0
    contrastive: bool = True

    def middle(self, conv):
        return App3dConv(
            self.features,
            self.stride,
            temperature=self.temperature,
            contrastive=self.contrastive,
            dtype=self.dtype,
            name="conv2",
        )


class Ap3dResNet(ResNet):
    """Clips [B,T,H,W,3] -> maps [B,T,h,w,2048].

    temporal: per stage, which blocks have APP3DC; non_local: after which blocks a non-local block
    stands, which takes the next key of the stage.
    """

    temporal: tuple[tuple[int, ...], ...] = ((), (0, 2), (0, 2, 4), ())
    non_local: tuple[tuple[int, ...], ...] = ((), (), (), ())
    temperature: float = 4.0
    contrastive: bool = True

    def stem(self, x, train):
        """The stem's map of clips, before the max pooling."""
        if x.ndim != 5:
            raise ConfigError("AP3D backbones need clips [B,T,H,W,3]; choose another config.model.backbone")
        return super().stem(x, train)

    def modules(self, stage, index):
        """Block `index` of a stage, both from 0, and the non-local block behind it."""
        if index in self.temporal[stage]:
            fields = dict(temperature=self.temperature, contrastive=self.contrastive)
            yield self.make(App3dBottleneck, stage, index, **fields)
        else:
            yield self.make(self.block, stage, index)
        if index in self.non_local[stage]:
            block = nn.remat(NonLocal, static_argnums=(2,)) if self.remat else NonLocal
            yield block(dtype=self.dtype, norm=self.norms.batch)


Ap3dResNet50 = functools.partial(Ap3dResNet, Bottleneck, (3, 4, 6, 3))
Ap3dNlResNet50 = functools.partial(Ap3dResNet50, non_local=((), (1, 3), (1, 3, 5), ()))


def _built(net):
    def build(model, dtype, axis_name):
        attention = dict(temperature=model.ap3d_temperature, contrastive=model.ap3d_contrastive)
        return net(**attention, **fields_of(model, dtype, axis_name))

    return build


NAMES = {"ap3d_resnet50": _built(Ap3dResNet50), "ap3dnl_resnet50": _built(Ap3dNlResNet50)}
FRAMES_APART = False
