"""Style layers by name: per-image means and deviations of maps, changed at random in training.

A module lists its layers in NAMES, {config.model.style: (config.model, axis_name) -> (place -> module)}, and
their usual places in PLACES. A layer is the identity in test mode. It draws from the rngs' "style"; what
belongs to a row comes from its number in the global batch, so that n devices draw as one.
"""

import jax.numpy as jnp

from reid_jax import models
from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.layers import wide

FIELDS = dict(
    style_p=0.5,  # probability that a style layer acts, drawn for a whole batch
    style_at=(),  # places: "stem" (before its norm), "pool" and numbers of stages; () = its usual ones
)


def build(model, places, axis_name=None):
    """None, or the function of a place of a net (of `places`) that gives its style layer or None.

    Raises ConfigError for a style or a place that is not there and a probability outside 0 to 1.
    """
    offered = models.offers("styles")
    name = choice("model.style", model.style, ("none", *offered))
    if name == "none":
        return None
    if not places:
        raise ConfigError(
            f"config.model.style is {name!r}, and config.model.backbone {model.backbone!r} has no place for "
            "it: set style=none"
        )
    if not 0 <= model.style_p <= 1:
        raise ConfigError(f"config.model.style_p is {model.style_p}; it is a probability")
    for place in model.style_at:
        choice("model.style_at", place, tuple(places))
    chosen = tuple(model.style_at) or offered[name].PLACES[name]
    layer = offered[name].NAMES[name](model, axis_name)
    return lambda place: layer(place) if place in chosen else None


def statistics(x, epsilon=1e-6):
    """(x in at least float32, mean, deviation [...,1,1,C]) of the channels of every map of x [...,H,W,C].

    The deviation is sqrt(unbiased variance + epsilon).
    """
    x = wide(x)
    mean = x.mean((-3, -2), keepdims=True)
    pixels = x.shape[-3] * x.shape[-2]
    variance = jnp.square(x - mean).sum((-3, -2), keepdims=True) / max(pixels - 1, 1)
    return x, mean, jnp.sqrt(variance + epsilon)


def drawn(module, name):
    """The key that a style layer draws from in training; ConfigError when apply got none."""
    if not module.has_rng("style"):
        raise ConfigError(
            f"config.model.style {name!r} draws numbers in training: give rngs={{'style': key}} to apply, or "
            "rng=key to the encoder's apply"
        )
    return module.make_rng("style")


def per_row(values, x):
    """values [B] or [B,C] with axes of one so that they broadcast to x [B,...,H,W,C]."""
    channels = values.shape[1:] or (1,)
    return values.reshape(len(values), *(1,) * (x.ndim - 2), *channels)
