"""Instance norm at places of a net: IBN-Net (Pan et al., ECCV 2018), DualNorm (Jia et al., BMVC 2019).

ibn_a     the first norm of every block is half instance norm; stages 1 to 3
ibn_b     instance norm behind the residual sum of a stage's last block, unless it is the first one too;
          stages 1 and 2; and in place of the stem's batch norm
dualnorm  instance norm behind the residual sum of a stage's last block; stages 1 to 3
instance  instance norm in place of every batch norm
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.models.layers import BatchNorm, InstanceNorm
from reid_jax.models.norms import Norms, StagedNorms


class InstanceBatchNorm(nn.Module):
    """IBN-a: instance norm on the first half of the channels (rounded down), batch norm on the others."""

    batch: Callable = BatchNorm  # makes the batch norm

    @nn.compact
    def __call__(self, x, train):
        half = x.shape[-1] // 2
        styled = InstanceNorm(name="IN")(x[..., :half])
        batch = self.batch(name="BN")
        return jnp.concatenate([styled, batch(x[..., half:], train)], -1)


class IbnA(StagedNorms):
    """IBN-a."""

    def usual(self, stages):
        return (1, 2, 3)

    def first(self, block, norm):
        if not self.has(block):
            return norm
        return lambda name: InstanceBatchNorm(self.batch, name=name)


class IbnB(StagedNorms):
    """IBN-b."""

    def usual(self, stages):
        return (1, 2)

    def stem(self):
        return InstanceNorm()

    def after(self, block):
        return InstanceNorm(name="IN") if self.has(block) and block.last and not block.first else None


class DualNorm(StagedNorms):
    """DualNorm's backbone; its second norm is the neck's (config.model.neck "bnneck")."""

    def usual(self, stages):
        return (1, 2, 3)

    def after(self, block):
        return InstanceNorm(name="IN") if self.has(block) and block.last else None


class Instance(Norms):
    """No batch norm."""

    by_domain = False

    def stem(self):
        return InstanceNorm()

    def every(self, block):
        return lambda name: InstanceNorm(name=name)


NAMES = {"instance": Instance, "ibn_a": IbnA, "ibn_b": IbnB, "dualnorm": DualNorm}
