"""Blocks of image generators: convolutions, linear layers, classifier, ASPP, sizes of maps.

Submodules are called as in the keys of DG-Net and of those who built on it, with `_0` for `.0`. Images and
maps are [B,H,W,C].
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    instance_norm,
    kernel_uniform,
    normal,
    uniform,
    wide,
)

SLOPE = 0.2
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
HE_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def leaky(x):
    return nn.leaky_relu(x, SLOPE)


class LayerNorm(nn.Module):
    """Norm of the decoder, per image over H, W and C: (x - mean) / (unbiased std + 1e-5) gamma + beta."""

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.uniform(1.0), x.shape[-1:], jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        y = wide(x)
        std = y.std((1, 2, 3), keepdims=True, ddof=1)
        return ((y - y.mean((1, 2, 3), keepdims=True)) / (std + 1e-5) * gamma + beta).astype(x.dtype)


class ConvBlock(nn.Module):
    """Padding, convolution `conv`, norm, activation: [B,H,W,C] -> [B,h,w,features].

    reflect: pads by reflection, else with zeros. norm: 'none', 'batch', 'instance' (no parameters) or
    'layer'. act: a function, or None.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    reflect: bool = True
    use_bias: bool = True
    norm: str = "none"
    act: Callable | None = None
    init: Callable = HE
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        pad = self.dilation * (self.kernel_size - 1) // 2
        shape = (self.features, self.kernel_size, self.stride)
        if self.reflect:
            x, pad = reflect(x, pad), 0
        options = dict(dtype=self.dtype, init=self.init, bias_init=nn.initializers.zeros, name="conv")
        x = Conv(*shape, pad, self.dilation, self.groups, self.use_bias, **options)(x)
        if self.norm == "batch":
            x = BatchNorm(axis_name=self.axis_name, name="norm")(x, train)
        elif self.norm == "instance":
            x = instance_norm(x)
        elif self.norm == "layer":
            x = LayerNorm(name="norm")(x)
        return x if self.act is None else self.act(x)


def reflect(x, pad):
    """[B,H,W,C] with `pad` reflected rows and columns on every side."""
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else x


class LinearBlock(nn.Module):
    """Linear layer `fc`, batch norm (or none), activation (or none): [B,C] -> [B,features]."""

    features: int
    norm: bool = False
    act: Callable | None = None
    kernel_init: Callable = HE
    bias_init: Callable = nn.initializers.zeros
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.features, kernel_init=self.kernel_init, bias_init=self.bias_init, name="fc")(x)
        if self.norm:
            x = BatchNorm(axis_name=self.axis_name, name="norm")(x, train)
        return x if self.act is None else self.act(x)


class Mlp(nn.Module):
    """Linear blocks `model_0`, ...; the last one is linear only.

    widths: of every layer. uniform: drawn as PyTorch's linear layers instead of He normal.
    """

    widths: tuple[int, ...]
    norm: bool = False
    act: Callable = leaky
    uniform: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        for i, width in enumerate(self.widths):
            last = i == len(self.widths) - 1
            init = (kernel_uniform, uniform(x.shape[-1])) if self.uniform else (HE, nn.initializers.zeros)
            block = LinearBlock(
                width,
                self.norm and not last,
                None if last else self.act,
                *init,
                self.axis_name,
                name=f"model_{i}",
            )
            x = block(x, train)
        return x


class ClassBlock(nn.Module):
    """Linear layer, batch norm, dropout, classifier: f[B,C] -> (neck [B,dim], logits [B,num_classes]).

    neck is what the batch norm gives. act: an activation behind it, or None. dropout_axis: device axis over
    which dropout draws as one; None: the key tells devices apart.
    """

    num_classes: int
    dim: int = 512
    dropout: float = 0.5
    axis_name: str | None = None
    dropout_axis: str | None = None
    act: Callable | None = None
    rows: int = 0  # see layers.RunningMoments

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.dim, kernel_init=HE_OUT, name="add_block_0")(wide(x))
        fields = dict(axis_name=self.axis_name, rows=self.rows, scale_init=normal(1.0, 0.02))
        neck = BatchNorm(name="add_block_1", **fields)(x, train)
        x = neck if self.act is None else self.act(neck)
        x = Dropout(self.dropout, self.dropout_axis)(x, train)
        return neck, nn.Dense(self.num_classes, kernel_init=normal(0.0, 0.001), name="classifier_0")(x)


class Residual(nn.Module):
    """Two reflected 3x3 convolutions with a norm, LReLU between them, the input added."""

    norm: str = "none"  # see ConvBlock
    init: Callable = HE
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        block = dict(norm=self.norm, init=self.init, dtype=self.dtype)
        y = ConvBlock(x.shape[-1], 3, act=leaky, **block, name="model_0")(x)
        return x + ConvBlock(x.shape[-1], 3, **block, name="model_1")(y)


class Aspp(nn.Module):
    """Four branches of dilated convolutions on a map: [B,H,W,C] -> [B,H,W,features].

    halved: a 2x2 max pooling behind them, [B,H/2,W/2,features]. Reflection by 9 pixels reads best where H and
    W are at least 10.
    """

    features: int
    halved: bool = False
    rates: tuple[int, ...] = (3, 6, 9)
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        width = self.features // 4

        def block(features, name, *shape, act=None):
            return ConvBlock(features, *shape, norm="instance", act=act, dtype=self.dtype, name=name)

        branches = [block(width, "conv1")(x)]
        for rate, name in zip(self.rates, ("conv6", "conv12", "conv18"), strict=True):
            y = block(width, f"{name}_0", act=leaky)(x)
            branches.append(block(width, f"{name}_1", 3, 1, rate)(y))
        x = block(self.features, "fuse")(jnp.concatenate(branches, -1))
        return nn.max_pool(x, (2, 2), (2, 2)) if self.halved else x


def doubled(x):
    """Every pixel four times: [B,H,W,C] -> [B,2H,2W,C]."""
    return jnp.repeat(jnp.repeat(x, 2, -3), 2, -2)


def upsample(x, height, width):
    """Bilinear, corners aligned (row i from i (h - 1) / (height - 1)): [B,h,w,C] -> [B,height,width,C]."""
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = _bilinear(x.shape[1], height), _bilinear(x.shape[2], width)
    precision = jax.lax.Precision.HIGHEST
    y = jnp.einsum("oh,bhwc->bowc", rows.astype(x.dtype), x, precision=precision)
    return jnp.einsum("ow,bhwc->bhoc", columns.astype(x.dtype), y, precision=precision)


def _bilinear(size, out):
    """Weights [out,size] of the two neighbours of every output position."""
    place = jnp.arange(out) * ((size - 1) / max(out - 1, 1))
    return jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(size)), 0)
