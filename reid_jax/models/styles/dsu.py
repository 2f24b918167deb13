"""DSU (Li et al., ICLR 2022): means and deviations of maps made uncertain by how they vary in the batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.errors import ConfigError
from reid_jax.models.layers import row_keys
from reid_jax.models.styles import drawn, per_row, statistics


def perturb(x, mean_noise, deviation_noise, axis_name=None, epsilon=1e-6):
    """x [B,...,H,W,C] with its mean and deviation moved by noise [B,C] times their deviations over the batch.

    Gradients flow through all statistics. axis_name: device axis of the batch, None: this device's rows.
    """
    wide, mean, deviation = statistics(x, epsilon)
    new_mean = mean + per_row(mean_noise, x) * _spread(mean, axis_name, epsilon)
    new_deviation = deviation + per_row(deviation_noise, x) * _spread(deviation, axis_name, epsilon)
    return ((wide - mean) / deviation * new_deviation + new_mean).astype(x.dtype)


def _spread(values, axis_name, epsilon):
    """sqrt(unbiased variance over the rows + epsilon), [1,...]."""

    def mean(a):
        a = a.mean(0, keepdims=True)
        return a if axis_name is None else lax.pmean(a, axis_name)

    count = len(values) * (1 if axis_name is None else lax.axis_size(axis_name))
    if count < 2:
        raise ConfigError("config.model.style 'dsu' needs two or more images on each device; raise data.ids")
    return jnp.sqrt(mean(jnp.square(values - mean(values))) * count / (count - 1) + epsilon)


class Dsu(nn.Module):
    """With probability p, drawn once for the batch, `perturb` with standard normal noise.

    axis_name: of the draws. batch_axis: over which the batch's statistics are joined.
    """

    p: float = 0.5
    axis_name: str | None = None
    batch_axis: str | None = None

    @nn.compact
    def __call__(self, x, train):
        if not train:
            return x
        coin, noise = jax.random.split(drawn(self, "dsu"))
        keys = row_keys(noise, len(x), self.axis_name)
        noise = jax.vmap(lambda key: jax.random.normal(key, (2, x.shape[-1])))(keys)
        moved = perturb(x, noise[:, 0], noise[:, 1], self.batch_axis)
        return jnp.where(jax.random.bernoulli(coin, self.p), moved, x)


def build(model, axis_name):
    """Function of a place that makes a Dsu of config.model."""
    fields = (model.style_p, axis_name, axis_name if model.bn_group == "global" else None)
    return lambda place: Dsu(*fields, name=f"style_{place}")


NAMES = {"dsu": build}
PLACES = {"dsu": ("stem", "pool", 1, 2, 3, 4)}
