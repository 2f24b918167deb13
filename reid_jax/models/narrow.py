"""A small residual net for runs of minutes on a CPU."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.models.layers import BatchNorm, Conv
from reid_jax.models.resnet import BasicBlock


def stripe_pool(x, stripes):
    """Mean over the width and over `stripes` horizontal parts: [...,H,W,C] -> [...,stripes,C].

    Part i covers rows floor(i H / stripes) to ceil((i + 1) H / stripes), as in PyTorch's AdaptiveAvgPool2d,
    so any H works.
    """
    height = x.shape[-3]
    x = x.mean(-2)
    parts = [
        x[..., i * height // stripes : -(-(i + 1) * height // stripes), :].mean(-2) for i in range(stripes)
    ]
    return jnp.stack(parts, -2)


class Narrow(nn.Module):
    """Images [...,H,W,3] -> vectors [...,dim]; 64x32 images have an 8x4 map before the stripes.

    widths: channels of the 5x5 stem (stride 2) and of the residual blocks (stride 2, the last one 1).
    """

    widths: tuple[int, ...] = (16, 32, 48, 64)
    stripes: int = 4
    dim: int = 128
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train, stages=False):
        """stages: gives the maps of the stem and of every block [...,h,w,C] instead of the vector."""
        x = Conv(self.widths[0], 5, 2, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(x, train))
        maps = [x]
        for i, width in enumerate(self.widths[1:], 1):
            stride = 1 if i == len(self.widths) - 1 else 2
            x = BasicBlock(width, stride, self.dtype, self.axis_name, name=f"layer{i}_0")(x, train)
            maps.append(x)
        if stages:
            return maps
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = stripe_pool(x, self.stripes)
        return nn.Dense(self.dim, name="project")(x.reshape(*x.shape[:-2], -1))
