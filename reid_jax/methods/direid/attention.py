"""DFEN's attention: weights of f_sen's channels from a description of the degradation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.methods.direid import nets as networks
from reid_jax.models.blocks import LinearBlock, Mlp
from reid_jax.models.layers import RunningMoments, kernel_uniform, uniform, wide

INPUTS = ("score", "feature", "code", "self", "none")
FORMS = ("sigmoid", "softmax", "guided")


class Standardised(RunningMoments):
    """f[B,C] by the moments of the batch in training, by the running ones in a test."""

    @nn.compact
    def __call__(self, x, train):
        mean, var = self.moments(x, train)
        return (x - mean) * lax.rsqrt(var + self.epsilon)


class Attention(nn.Module):
    """Weights of f_sen's channels from a description of the degradation: f[B,C] -> [B,features] in 0..1.

    pairs: softmax over the outputs i and i + features, the first half kept; else a sigmoid.
    """

    features: int = 2048
    hidden: int = 256
    pairs: bool = False
    standard: bool = False  # f is standardised first: batch moments in training, running ones in a test
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        widths = (self.hidden,) * 3 + (self.features * (2 if self.pairs else 1),)
        x = lax.stop_gradient(wide(x))
        if self.standard:
            x = Standardised(axis_name=self.axis_name, name="moments")(x, train)
        x = Mlp(widths, True, nn.relu, True, self.axis_name, name="mlp")(x, train)
        if self.pairs:
            first, second = jnp.split(x, 2, -1)
            return jax.nn.sigmoid(first - second)
        return jax.nn.sigmoid(x)


class GuidedAttention(nn.Module):
    """Weights [B,features] from a latent vector made of f_sen or of a degradation code [B,C]."""

    features: int = 2048
    hidden: int = 256
    latent: int = 128
    axis_name: str | None = None

    def setup(self):
        widths, axis_name = (self.hidden, self.hidden, self.latent), self.axis_name
        self.identity2latent = Mlp(widths, True, nn.relu, True, axis_name)
        init = (kernel_uniform, uniform(self.latent))
        self.deg2latent = LinearBlock(self.latent, True, nn.relu, *init, axis_name)
        self.latent2weight = nn.Dense(self.features, use_bias=False, kernel_init=kernel_uniform)

    def from_feature(self, f_sen, train):
        return jax.nn.sigmoid(self.latent2weight(self.identity2latent(lax.stop_gradient(f_sen), train)))

    def from_code(self, code, train):
        return jax.nn.sigmoid(self.latent2weight(self.deg2latent(lax.stop_gradient(code), train)))

    def __call__(self, f_sen, code, by_code, train):
        """By the code where by_code (bool[]) holds, else by f_sen; without a code (None) by f_sen.

        In training the running statistics of both ways move.
        """
        feature = self.from_feature(f_sen, train)
        return feature if code is None else jnp.where(by_code, self.from_code(code, train), feature)


def modules(config, info):
    """{"A_deg": the attention, and the frozen network that it reads: "D_deg" or "E_deg"}; {} for "none"."""
    d = config.direid
    source = choice("direid.attention_input", d.attention_input, INPUTS)
    choice("direid.attention_form", d.attention_form, FORMS)
    if source == "none":
        return {}
    if d.attention_form == "guided" and source not in ("code", "self"):
        raise ConfigError(
            "config.direid.attention_form 'guided' works on degradation codes or f_sen: set attention_input "
            "to 'code' or 'self'"
        )
    if d.attention_form == "guided" and d.attention_norm:
        raise ConfigError(
            "config.direid.attention_norm is for the forms sigmoid and softmax; form 'guided' has norms of "
            "its own"
        )
    nets = {"A_deg": attention(config, info)}
    if source in ("score", "feature"):
        nets["D_deg"] = networks.degradation_discriminator(config)
    elif source == "code":
        nets["E_deg"] = networks.degradation_encoder(config)
    return nets


def attention(config, info):
    """A_deg of a config."""
    d = config.direid
    features = d.neck_dim if d.attention_on == "neck" else channels(config, info)
    fields = dict(hidden=d.attention_dim, axis_name=networks.norm_axis(config, info))
    if d.attention_form == "guided":
        return GuidedAttention(features, latent=d.code_dim, **fields)
    return Attention(features, pairs=d.attention_form == "softmax", standard=d.attention_norm, **fields)


def channels(config, info):
    """Channels of f_sen."""
    whole = networks.identity_encoder(config, info)
    image = jax.ShapeDtypeStruct((1, config.data.height, config.data.width, 3), jnp.float32)
    shape = jax.eval_shape(lambda x: networks.init(whole, jax.random.key(0), x), image)["params"]
    return shape["classifier"]["add_block_0"]["kernel"].shape[0]
