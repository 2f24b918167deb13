"""From maps [...,H,W,C] to vectors [...,D]."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.layers import maximum

FIELDS = dict(
    gem_p=3.0,  # pools of generalised means: the exponent, of "gem" the one that training starts with
    narrow_stripes=4,  # pool "stripes": horizontal stripes pooled before the projection
    narrow_dim=128,  # pool "stripes": feature size D
)


def build(model):
    """The pooling module of config.model: maps [...,H,W,C] -> [...,D] in at least float32.

    Raises ConfigError for a name it does not know and for sizes below 1.
    """
    pool = choice("model.pool", model.pool, ("auto", *NAMES))
    if pool == "auto":
        pool = "stripes" if model.backbone == "narrow" else "avg"
    return NAMES[pool](model)


def spatial_pool(x, pool):
    """[...,H,W,C] -> [...,C]: mean ('avg', 'auto') or maximum ('max') over the map."""
    if choice("model.pool", pool, ("auto", "avg", "max")) == "max":
        return maximum(x, (-3, -2))
    return x.mean((-3, -2))


def stripe_pool(x, stripes):
    """Mean over the width and over `stripes` horizontal stripes: [...,H,W,C] -> [...,stripes,C].

    Stripe i covers rows floor(i H / stripes) to ceil((i + 1) H / stripes), as in PyTorch's AdaptiveAvgPool2d,
    so any H works.
    """
    height = x.shape[-3]
    x = x.mean(-2)
    rows = [(i * height // stripes, -(-(i + 1) * height // stripes)) for i in range(stripes)]
    return jnp.stack([x[..., first:end, :].mean(-2) for first, end in rows], -2)


def join(base, owner):
    """Gives the projection of owner.pooling, where it has one, its place among the backbone's parameters.

    To be called in the setup of what holds both: weights and draws of "narrow" belong together.
    """
    if isinstance(getattr(owner, "pooling", None), Stripes):
        nn.share_scope(owner.pooling, base)


class Average(nn.Module):
    """Mean over the map."""

    def __call__(self, x):
        return spatial_pool(x, "avg")


class Maximum(nn.Module):
    """Maximum over the map."""

    def __call__(self, x):
        return spatial_pool(x, "max")


class AverageMaximum(nn.Module):
    """Mean plus maximum over the map."""

    def __call__(self, x):
        return spatial_pool(x, "avg") + spatial_pool(x, "max")


class Gem(nn.Module):
    """Generalised mean (Radenovic et al., PAMI 2019): (mean of max(x, epsilon)^p)^(1/p).

    trained: whether p is a parameter, or stays as it is.
    """

    p: float = 3.0
    epsilon: float = 1e-6
    trained: bool = True

    @nn.compact
    def __call__(self, x):
        p = self.p
        if self.trained:
            p = self.param("p", nn.initializers.constant(self.p), (1,), jnp.float32)
        return (jnp.maximum(x, self.epsilon) ** p).mean((-3, -2)) ** (1 / p)


class PowerMean(nn.Module):
    """(mean of max(x, 0)^p + 1e-12)^(1/p): GeM of the cross-modality AGW, whose maps are not negative."""

    p: float = 3.0

    def __call__(self, x):
        return ((nn.relu(x) ** self.p).mean((-3, -2)) + 1e-12) ** (1 / self.p)


class Stripes(nn.Module):
    """Means of horizontal stripes, joined and projected to `dim` numbers."""

    stripes: int = 4
    dim: int = 128

    @nn.compact
    def __call__(self, x):
        x = stripe_pool(x, self.stripes)
        return nn.Dense(self.dim, name="project")(x.reshape(*x.shape[:-2], -1))


def _stripes(model):
    for name in ("narrow_stripes", "narrow_dim"):
        if getattr(model, name) < 1:
            raise ConfigError(f"config.model.{name} is {getattr(model, name)!r}; it must be 1 or more")
    return Stripes(model.narrow_stripes, model.narrow_dim)


NAMES = {
    "avg": lambda model: Average(),
    "max": lambda model: Maximum(),
    "gem": lambda model: Gem(model.gem_p),
    "gem_fixed": lambda model: Gem(model.gem_p, trained=False),
    "power_mean": lambda model: PowerMean(model.gem_p),
    "avg_max": lambda model: AverageMaximum(),
    "stripes": _stripes,
}
