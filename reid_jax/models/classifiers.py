"""Classifiers of heads: linear layers, and cosines to the classes' weights with a margin (as fast-reid's).

A margin needs the labels, which a net does not see: the net gives logits without it and its Branches the
`Margin` that the losses put into them.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.layers import normal

KINDS = ("linear", "circle", "cosface", "arcface")
FIELDS = dict(
    classifier="linear",  # linear | circle | cosface | arcface (cosines with a margin)
    classifier_scale=64.0,  # of the cosines
    classifier_margin=0.35,
    classifier_std=0.001,  # of a classifier's first weights (fast-reid: 0.01)
)
_NEAR_ONE = 1 - 1e-7  # largest cosine that arcface takes the angle of: at 1 it has no gradient


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Margin:
    """Puts a margin into logits: (scale * cosines f[B,K], labels i32[B]) -> f[B,K]. No arrays, a constant."""

    kind: str
    scale: float
    margin: float

    def __call__(self, logits, labels):
        s = logits / self.scale
        one_hot = jax.nn.one_hot(labels, s.shape[-1], dtype=bool)
        return self.scale * getattr(self, f"_{self.kind}")(s, one_hot)

    def _cosface(self, s, one_hot):
        """Wang et al., CVPR 2018."""
        return s - self.margin * one_hot

    def _arcface(self, s, one_hot):
        """Deng et al., CVPR 2019."""
        angle = jnp.arccos(jnp.clip(s, -_NEAR_ONE, _NEAR_ONE))
        return jnp.where(one_hot, jnp.cos(angle + self.margin), s)

    def _circle(self, s, one_hot):
        """Sun et al., CVPR 2020: weights of the classes without gradient."""
        still = lax.stop_gradient(s)
        positive = jax.nn.relu(1 + self.margin - still) * (s - (1 - self.margin))
        return jnp.where(one_hot, positive, jax.nn.relu(still + self.margin) * (s - self.margin))


def margin(model):
    """The Margin of config.model, None for a linear classifier; ConfigError for what it does not know."""
    kind = choice("model.classifier", model.classifier, KINDS)
    if kind == "linear":
        return None
    if model.classifier_scale <= 0 or model.classifier_margin < 0:
        raise ConfigError(
            f"config.model.classifier_scale is {model.classifier_scale} and classifier_margin "
            f"{model.classifier_margin}; they must be positive, and not negative"
        )
    return Margin(kind, float(model.classifier_scale), float(model.classifier_margin))


def with_margin(branches, labels):
    """The logits of Branches as the identity loss takes them, tuple of f[B,K]; labels i32[B]."""
    if branches.margin is None:
        return branches.logits
    return tuple(branches.margin(x, labels) for x in branches.logits)


def layer(num_classes, margin, *, bias, std, name):
    """The classifier as a module x f[B,D] -> logits f[B,K]: linear, or with a Margin the scaled cosines."""
    if margin is not None:
        return Cosines(num_classes, margin.scale, std, name=name)
    return nn.Dense(num_classes, bias, kernel_init=normal(0.0, std), name=name)


class Cosines(nn.Module):
    """x f[B,D] -> f[B,K]: `scale` times the cosines to the classes' weights, kernel [D,K]."""

    num_classes: int
    scale: float
    std: float = 0.01

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", normal(0.0, self.std), (x.shape[-1], self.num_classes), jnp.float32)
        return self.scale * (unit(x, -1) @ unit(kernel, 0))


def unit(x, axis):
    """x over its L2 norm along an axis; 0 stays 0, with a finite gradient."""
    square = jnp.sum(x * x, axis, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-24))
