"""A small residual net for runs of minutes on a CPU."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models.layers import BatchNorm, Conv
from reid_jax.models.resnet import AdaptiveBasicBlock, BasicBlock, refined


def check(model):
    """Raises ConfigError for fields of config.model that describe no narrow net."""
    if not tuple(model.narrow_widths) or min(model.narrow_widths) < 1:
        raise ConfigError(
            f"config.model.narrow_widths is {model.narrow_widths!r}; it must be channels of 1 or more, the "
            "stem's and those of every block"
        )
    for name in ("narrow_stripes", "narrow_dim"):
        if getattr(model, name) < 1:
            raise ConfigError(f"config.model.{name} is {getattr(model, name)!r}; it must be 1 or more")


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
    norm: 'batch', or 'aibn': AIBN in the last two blocks. refine: as ResNet's, stage 1 being the stem.
    part: (a, b) gives the map [...,h,w,C] of blocks a to b - 1 alone (from 0), on the map before them; the
    stem belongs to block 0.
    """

    widths: tuple[int, ...] = (16, 32, 48, 64)
    stripes: int = 4
    dim: int = 128
    dtype: jnp.dtype | None = None
    axis_name: str | None = None
    norm: str = "batch"
    refine: Callable | None = None
    part: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x, train, stages=False):
        """stages: gives the maps of the stem and of every block [...,h,w,C] instead of the vector."""
        maps, last = [], len(self.widths) - 1
        first, end = self.part or (0, last)
        if first == 0:
            x = Conv(self.widths[0], 5, 2, 2, dtype=self.dtype, name="conv1")(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(x, train))
            maps.append(x := refined(self.refine, 1, x))
        for i in range(first + 1, end + 1):
            block = AdaptiveBasicBlock if self.norm == "aibn" and i >= last - 1 else BasicBlock
            stride = 1 if i == last else 2
            x = block(self.widths[i], stride, self.dtype, self.axis_name, name=f"layer{i}_0")(x, train)
            maps.append(x := refined(self.refine, i + 1, x))
        if stages:
            return maps
        if self.part:
            return x
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = stripe_pool(x, self.stripes)
        return nn.Dense(self.dim, name="project")(x.reshape(*x.shape[:-2], -1))
