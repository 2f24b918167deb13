"""MixStyle (Zhou et al., ICLR 2021): images of a batch lend each other their means and deviations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.layers import global_rows, row_keys, wide
from reid_jax.models.styles import drawn, per_row, statistics

FIELDS = dict(
    style_alpha=0.1,  # mixstyle: the share of an image's own statistics is drawn from Beta(alpha, alpha)
    style_mix="random",  # mixstyle: random | crossdomain: with any row, or with one of the next domain
    style_domains=2,  # crossdomain: domains, whose rows stand block by block in a device's batch,
    style_run=0,  # or, > 0, take turns after so many rows, as in batches of domains (data.instances)
)


def mix(x, share, mean, deviation, epsilon=1e-6):
    """x [B,...,H,W,C], its statistics mixed with (mean, deviation), own share [B]; they have no gradient."""
    own_mean, own_deviation = lax.stop_gradient(statistics(x, epsilon)[1:])
    share = per_row(share, x)
    y = (wide(x) - own_mean) / own_deviation * (share * own_deviation + (1 - share) * deviation)
    return (y + share * own_mean + (1 - share) * mean).astype(x.dtype)


def partners(key, count, devices=1, domains=1, run=0):
    """For every row of a global batch of `count` rows another row: i32[count].

    domains 1: a permutation of all rows. Else each device's rows are so many blocks of equal size (run > 0:
    runs of so many rows, of one domain after the other), and a row gets one of the next block's (the first
    after the last), drawn without replacement over all devices.
    """
    if domains == 1:
        return jax.random.permutation(key, count)
    shape = (-1, domains, run) if run else (devices, domains, -1)
    rows = jnp.arange(count).reshape(shape).swapaxes(0, 1).reshape(domains, -1)
    others = jax.random.permutation(key, jnp.roll(rows, -1, 0), axis=1, independent=True)
    return jnp.zeros(count, rows.dtype).at[rows].set(others)


class MixStyle(nn.Module):
    """With probability p, drawn once for the batch, `mix` with the statistics of `partners`."""

    p: float = 0.5
    alpha: float = 0.1
    domains: int = 1
    run: int = 0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        if not train:
            return x
        coin, share, others = jax.random.split(drawn(self, "mixstyle"), 3)
        keys = row_keys(share, len(x), self.axis_name)
        share = jax.vmap(lambda key: jax.random.beta(key, self.alpha, self.alpha))(keys)
        mixed = mix(x, share, *self.statistics_of_others(x, others))
        return jnp.where(jax.random.bernoulli(coin, self.p), mixed, x)

    def statistics_of_others(self, x, key):
        """Mean and deviation of every row's partner, without gradient."""
        if len(x) % (self.domains * max(self.run, 1)):
            raise ConfigError(
                f"config.model.style_mix is crossdomain, style_domains {self.domains} and style_run "
                f"{self.run}; they must divide the {len(x)} rows of a device's batch"
            )
        both = lax.stop_gradient(statistics(x)[1:])
        if self.axis_name is not None:
            both = jax.tree.map(lambda a: lax.all_gather(a, self.axis_name, tiled=True), both)
        count = len(both[0])
        others = partners(key, count, count // len(x), self.domains, self.run)[
            global_rows(len(x), self.axis_name)
        ]
        return tuple(a[others] for a in both)


def build(model, axis_name):
    """Function of a place that makes a MixStyle of config.model."""
    mixing = choice("model.style_mix", model.style_mix, ("random", "crossdomain"))
    if not model.style_alpha > 0 or model.style_domains < 2 or model.style_run < 0:
        raise ConfigError(
            f"config.model.style_alpha is {model.style_alpha}, style_domains {model.style_domains} and "
            f"style_run {model.style_run}; they must be above 0, at least 2 and at least 0"
        )
    domains = model.style_domains if mixing == "crossdomain" else 1
    fields = (model.style_p, model.style_alpha, domains, model.style_run, axis_name)
    return lambda place: MixStyle(*fields, name=f"style_{place}")


NAMES = {"mixstyle": build}
PLACES = {"mixstyle": (1, 2)}
