"""CycleGAN's networks (Zhu et al., ICCV 2017): residual generator, patch discriminator, bare norms.

Modules are called by their place in the published sequences, `model_4` for `model.4`. Images [B,H,W,3] are
in -1 to 1.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from reid_jax.models.blocks import reflect
from reid_jax.models.layers import Conv, Dropout, conv, instance_norm, normal

INIT = dict(use_bias=True, init=normal(0.0, 0.02), bias_init=nn.initializers.zeros)


class Upward(nn.Module):
    """Transposed 3x3 convolution to twice the size: [B,H,W,C] -> [B,2H,2W,features].

    kernel [3,3,features,C] as PyTorch's transposed layers have it, so that it turns like other kernels.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        shape = (3, 3, self.features, x.shape[-1])
        kernel = self.param("kernel", INIT["init"], shape, jnp.float32)
        bias = self.param("bias", INIT["bias_init"], (self.features,), jnp.float32)
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        zeros = ((0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0))  # between the pixels, and one row at the end
        spread = lax.pad(x.astype(dtype), jnp.zeros((), dtype), zeros)
        turned = kernel[::-1, ::-1].swapaxes(2, 3).astype(dtype)
        return conv(spread, turned, 1, 1) + bias.astype(dtype)


class Block(nn.Module):
    """Two reflected 3x3 convolutions with instance norm, ReLU and dropout between them, the input added."""

    dropout: float = 0.5
    dtype: jnp.dtype | None = None
    dropout_axis: str | None = None

    @nn.compact
    def __call__(self, x, noise):
        first = Conv(x.shape[-1], 3, dtype=self.dtype, **INIT, name="conv_block_1")
        y = nn.relu(instance_norm(first(reflect(x, 1))))
        y = Dropout(self.dropout, self.dropout_axis)(y, noise)
        last = Conv(x.shape[-1], 3, dtype=self.dtype, **INIT, name="conv_block_6")
        return x + instance_norm(last(reflect(y, 1)))


class Generator(nn.Module):
    """Images [B,H,W,3] -> images of another style; noise: whether dropout is on, in training or not."""

    width: int = 64
    blocks: int = 9
    dropout: float = 0.5
    dtype: jnp.dtype | None = None
    dropout_axis: str | None = None

    @nn.compact
    def __call__(self, x, noise):
        def layer(place, features, size, stride=1, padding=0):
            fields = dict(dtype=self.dtype, **INIT, name=f"model_{place}")
            return Conv(features, size, stride, padding, **fields)

        x = nn.relu(instance_norm(layer(1, self.width, 7)(reflect(x, 3))))
        for i in (1, 2):
            x = nn.relu(instance_norm(layer(1 + 3 * i, 2**i * self.width, 3, 2, 1)(x)))
        for i in range(self.blocks):
            x = Block(self.dropout, self.dtype, self.dropout_axis, name=f"model_{10 + i}")(x, noise)
        for i in (0, 1):
            up = Upward(2 ** (1 - i) * self.width, self.dtype, name=f"model_{10 + self.blocks + 3 * i}")
            x = nn.relu(instance_norm(up(x)))
        return jnp.tanh(layer(17 + self.blocks, 3, 7)(reflect(x, 3)))


class Discriminator(nn.Module):
    """Images [B,H,W,3] -> map [B,h,w,1] of how real each patch is."""

    width: int = 64
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        strides = ((1, 2), (2, 2), (4, 2), (8, 1))
        for i, (times, stride) in enumerate(strides):
            fields = dict(dtype=self.dtype, **INIT, name=f"model_{3 * i - 1 if i else 0}")
            x = Conv(times * self.width, 4, stride, 1, **fields)(x)
            x = nn.leaky_relu(instance_norm(x) if i else x, 0.2)
        return Conv(1, 4, 1, 1, dtype=self.dtype, **INIT, name="model_11")(x)
