"""Light convolutions of DI-REID's networks; submodules are called as in its keys, with `_0` for `.0`."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.models.blocks import HE, reflect
from reid_jax.models.layers import BatchNorm, Conv


class LiteConv(nn.Module):
    """1x1 convolution, then a depthwise 3x3 one, batch norm, ReLU (or none)."""

    features: int
    act: bool = True
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        options = dict(use_bias=True, dtype=self.dtype, init=HE, bias_init=nn.initializers.zeros)
        x = reflect(Conv(self.features, **options, name="conv_1x1")(x), 1)
        x = Conv(self.features, 3, groups=self.features, **options, name="conv_dw")(x)
        x = BatchNorm(axis_name=self.axis_name, name="norm")(x, train)
        return nn.relu(x) if self.act else x


class LiteResidual(nn.Module):
    """Two LiteConvs, the input added, ReLU."""

    features: int
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        fields = (self.dtype, self.axis_name)
        y = LiteConv(self.features, True, *fields, name="model_0")(x, train)
        return nn.relu(LiteConv(self.features, False, *fields, name="model_1")(y, train) + x)
