"""Batch-instance norms: every norm is a mixture with a trained gate for each channel.

    bin       Batch-Instance Normalization (Nam and Kim, NeurIPS 2018): one scale and bias for both
    metabin   MetaBIN (Choi et al., CVPR 2021): batch and instance norm have their own scale and bias
    bin_half  MetaBIN's ablation: the same, all gates 0.5 for ever

Gates start at 1 (batch norm alone) and are clipped to [0, 1] after every step.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from reid_jax.models.layers import BatchNorm, InstanceNorm, RunningMoments, affine, instance_norm
from reid_jax.models.norms import Norms


class BatchInstanceNorm(RunningMoments):
    """scale (gate BN(x) + (1 - gate) IN(x)) + bias, BN and IN without parameters: [...,H,W,C] -> the same."""

    @nn.compact
    def __call__(self, x, train, update=True):
        gate = self.param("gate", nn.initializers.ones, x.shape[-1:], jnp.float32)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        batch = affine(x, *self.moments(x, train, update), scale * gate, bias, self.epsilon)
        return batch + instance_norm(x, scale * (1 - gate), 0.0, self.epsilon)


class GatedNorm(nn.Module):
    """gate BN(x) + (1 - gate) IN(x), `bat_n` and `ins_n`: [...,H,W,C] -> the same.

    On maps of one pixel the second term is 0, as in the authors' code.
    """

    axis_name: str | None = None
    rows: int = 0
    fixed: float | None = None  # the gate of every channel, which is no parameter then

    @nn.compact
    def __call__(self, x, train, update=True):
        gate = jnp.full(x.shape[-1:], self.fixed or 0.0, jnp.float32)
        if self.fixed is None:
            gate = self.param("gate", nn.initializers.ones, x.shape[-1:], jnp.float32)
        batch = BatchNorm(axis_name=self.axis_name, rows=self.rows, name="bat_n")(x, train, update)
        instance = InstanceNorm(name="ins_n")(x)
        share = (1 - gate) * (x.shape[-3] * x.shape[-2] > 1)
        return gate.astype(x.dtype) * batch + share.astype(x.dtype) * instance


def virtual_gate(gate, gradient, rate):
    """clip(gate - rate gradient, 0, 1), the clip without effect on derivatives (straight through)."""
    moved = gate - rate * gradient
    return moved + lax.stop_gradient(jnp.clip(moved, 0, 1) - moved)


class _Gated(Norms):
    bounds = (("(^|/)gate$", 0.0, 1.0),)
    by_domain = False

    def every(self, block):
        return lambda name: self.gated(name=name)

    def stem(self):
        return self.gated()


class Bin(_Gated):
    """BIN for every norm."""

    def gated(self, **fields):
        return BatchInstanceNorm(axis_name=self.axis_name, rows=self.rows, **fields)


class MetaBin(_Gated):
    """MetaBIN's layer for every norm."""

    def gated(self, **fields):
        return GatedNorm(self.axis_name, self.rows, **fields)


class BinHalf(MetaBin):
    """MetaBIN's layer with gates that do not move."""

    bounds = ()

    def gated(self, **fields):
        return super().gated(fixed=0.5, **fields)


NAMES = {"bin": Bin, "metabin": MetaBin, "bin_half": BinHalf}
