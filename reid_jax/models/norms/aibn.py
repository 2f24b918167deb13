"""AIBN (IICS, Xuan and Zhang, CVPR 2021): instance and batch norm, mixed by one weight of a block."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.layers import affine
from reid_jax.models.norms import StagedNorms

# hard: AIBN's weight is clipped, and beyond 0 and 1 gets no gradient (IICS) | straight: it gets that of the
# clipped value, and can come back
FIELDS = dict(aibn_clip="hard")


class AdaptiveNorm(nn.Module):
    """AIBN, a mix of instance and batch norm (IICS, Xuan and Zhang, CVPR 2021): [...,H,W,C] -> [...,H,W,C].

    With m_i, v_i the mean and the unbiased variance of a channel of image i, and those of the batch
    m_b = mean m_i, v_b = mean(v_i + m_i^2) - m_b^2, in test mode their running values, the statistics are
    (1 - a) (m_i, v_i) + a (m_b, v_b), a = clip(alpha, 0, 1). Gradients flow through all of them. Statistics
    are taken in at least float32. Parameters and statistics are called as BatchNorm's, whose weights fit.

    axis_name: device axis over which m_b and v_b are joined; None: this device's images.
    """

    momentum: float = 0.9  # of the old value
    epsilon: float = 1e-5
    axis_name: str | None = None
    straight: bool = False  # gradients pass the clip as if it were not there

    @nn.compact
    def __call__(self, x, train, alpha):
        """alpha: f[1] or f[], the share of batch statistics. Raises ConfigError for maps of one pixel."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        own_mean, own_var = self._own(x)
        if train:
            batch_mean, batch_var = self._batch(own_mean, own_var)
            for running, value in ((mean, batch_mean), (var, batch_var)):
                value = lax.stop_gradient(value).astype(running.value.dtype)
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        else:
            batch_mean, batch_var = mean.value, var.value
        a = jnp.clip(alpha, 0, 1)
        if self.straight:
            a = alpha + lax.stop_gradient(a - alpha)
        mixed = (1 - a) * own_mean + a * batch_mean, (1 - a) * own_var + a * batch_var
        return affine(x, *mixed, scale, bias, self.epsilon)

    def _own(self, x):
        """Mean and unbiased variance of every image's channels, [...,1,1,C]."""
        pixels = x.shape[-3] * x.shape[-2]
        if pixels == 1:
            raise ConfigError(
                "AIBN needs maps of more than one pixel in the last stages: make config.data.height and "
                "width larger, or use config.model.norm=batch"
            )
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean((-3, -2), keepdims=True)
        return mean, jnp.square(wide - mean).sum((-3, -2), keepdims=True) / (pixels - 1)

    def _batch(self, own_mean, own_var):
        """m_b, v_b [C]; v_b as mean v_i + mean (m_i - m_b)^2, the same number and never below 0."""

        def mean(x):
            x = x.mean(tuple(range(x.ndim - 1)))
            return x if self.axis_name is None else lax.pmean(x, self.axis_name)

        batch_mean = mean(own_mean)
        return batch_mean, mean(own_var + jnp.square(own_mean - batch_mean))


@dataclasses.dataclass(frozen=True)
class Adaptive(StagedNorms):
    """Every norm of the blocks of some stages, the shortcut's too; they share one mixing weight."""

    by_domain = False
    straight: bool = False

    @classmethod
    def given(cls, model):
        return {"straight": choice("model.aibn_clip", model.aibn_clip, ("hard", "straight")) == "straight"}

    def usual(self, stages):
        return (stages - 1, stages)

    def every(self, block):
        if not self.has(block):
            return super().every(block)
        alpha = block.param("adaptive_weight", nn.initializers.constant(0.1), (1,), jnp.float32)

        def norm(name):
            layer = AdaptiveNorm(axis_name=self.axis_name, straight=self.straight, name=name)
            return functools.partial(layer, alpha=alpha)

        return norm


NAMES = {"aibn": Adaptive}
