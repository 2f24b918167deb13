"""DFEN, DI-REID's second stage: f_sen weighted by the degradation, f_inv, and their fusion.

Networks, each its own tree: E_con (content encoder), E_id (identity encoder, whole or on E_con's stem), C
(classifier of both features), A_deg (attention); frozen ones that only the attention reads: D_deg or E_deg.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.methods.direid import nets
from reid_jax.methods.direid.layers import LinearBlock, Mlp, run, wide
from reid_jax.models.layers import kernel_uniform, uniform

INPUTS = ("score", "feature", "code", "self", "none")
FORMS = ("sigmoid", "softmax", "guided")


class Attention(nn.Module):
    """Weights of f_sen's channels from a description of the degradation: f[B,C] -> [B,features] in 0..1.

    pairs: softmax over the outputs i and i + features, the first half kept; else a sigmoid.
    """

    features: int = 2048
    hidden: int = 256
    pairs: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        widths = (self.hidden,) * 3 + (self.features * (2 if self.pairs else 1),)
        x = Mlp(widths, True, nn.relu, True, self.axis_name, name="mlp")(lax.stop_gradient(wide(x)), train)
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


class Models(NamedTuple):
    """Modules of the second stage; those a config does not have are None."""

    E_con: Any
    E_id: Any
    C: Any
    A_deg: Any = None
    D_deg: Any = None
    E_deg: Any = None
    shared: bool = False  # E_id is only the last stage, on E_con's stem
    attention: str = "none"  # one of INPUTS


class Outputs(NamedTuple):
    """Features and logits of a batch, at least float32."""

    f_fuse: jax.Array  # [B,2D] f_sen (after attention), then f_inv
    f_inv: jax.Array  # [B,D]
    f_sen: jax.Array  # [B,D] after attention
    p_fuse: jax.Array  # [B,K] logits
    p_inv: jax.Array
    p_sen: jax.Array
    neck_inv: jax.Array  # [B,N] test features
    neck_sen: jax.Array

    def test(self):
        """Test features by name: fuse [B,2N] (sen, then inv), inv and sen [B,N]."""
        fuse = jnp.concatenate([self.neck_sen, self.neck_inv], -1)
        return {"fuse": fuse, "inv": self.neck_inv, "sen": self.neck_sen}


def build(config, info):
    """Models of config.direid."""
    d, m = config.direid, config.model
    axis_name = None if m.bn_group == "device" else info.axis_name
    shared = choice("direid.dfen", d.dfen, ("dual", "shared")) == "shared"
    source = choice("direid.attention_input", d.attention_input, INPUTS)
    choice("direid.attention_form", d.attention_form, FORMS)
    E_con, E_id = nets.content_encoder(config, info), nets.identity_encoder(config, info, shared)
    dtype = E_con.base.dtype
    models = Models(E_con, E_id, nets.class_block(config, info), shared=shared, attention=source)
    if source == "none":
        return models
    if d.attention_form == "guided" and source not in ("code", "self"):
        raise ConfigError(
            "config.direid.attention_form 'guided' works on degradation codes or f_sen: set attention_input "
            "to 'code' or 'self'"
        )
    features = _features(config, info, E_id)
    fields = dict(hidden=d.attention_dim, axis_name=axis_name)
    if d.attention_form == "guided":
        attention = GuidedAttention(features, latent=d.code_dim, **fields)
    else:
        attention = Attention(features, pairs=d.attention_form == "softmax", **fields)
    models = models._replace(A_deg=attention)
    if source in ("score", "feature"):
        return models._replace(D_deg=nets.degradation_discriminator(config, dtype))
    if source == "code":
        return models._replace(E_deg=nets.degradation_encoder(config, dtype))
    return models


def _features(config, info, E_id):
    """Channels of f_sen."""
    whole = nets.identity_encoder(config, info)
    image = jax.ShapeDtypeStruct((1, config.data.height, config.data.width, 3), jnp.float32)
    shape = jax.eval_shape(lambda x: nets.init(whole, jax.random.key(0), x), image)["params"]
    return shape["classifier"]["add_block_0"]["kernel"].shape[0]


def init(key, image, models):
    """Fresh variables of every network for images [B,H,W,3], by name; D_deg and E_deg come from stage one."""
    keys = dict(zip(("E_con", "E_id", "C", "A_deg"), jax.random.split(key, 4), strict=True))
    image = image[:2]
    found = {"E_con": nets.init(models.E_con, keys["E_con"], image)}
    f_inv, last = models.E_con.apply(found["E_con"], image, False, method="shared")
    own = last if models.shared else image
    found["E_id"] = nets.init(models.E_id, keys["E_id"], own)
    f_sen = models.E_id.apply(found["E_id"], own, False)
    fused = jnp.concatenate([f_sen, f_inv], -1)
    found["C"] = dict(models.C.init(keys["C"], fused, False))
    for name in ("D_deg", "E_deg"):
        module = getattr(models, name)
        if module is not None:
            found[name] = nets.init(module, keys["A_deg"], image)
    if models.A_deg is not None:

        def first(name, *args):
            found[name] = dict(getattr(models, name).init(keys[name], *args, False))
            return 1

        attend(first, found, image, f_sen, models, False, None)
    return found


def describe(variables, x, f_sen, models):
    """What the attention is given, [B,C] without gradient: scores or features of D_deg, codes, or f_sen."""
    if models.attention == "score":
        maps = models.D_deg.apply(variables["D_deg"], x)
        given = jnp.stack([o.mean((1, 2, 3)) for o in maps], -1)
    elif models.attention == "feature":
        given = models.D_deg.apply(variables["D_deg"], x, method="pooled")
    elif models.attention == "code":
        given = models.E_deg.apply(variables["E_deg"], x)
    else:
        given = f_sen
    return lax.stop_gradient(given)


def forward(variables, x, train, *, models, key=None):
    """(Outputs, {network: batch_stats}) of normalised images [B,H,W,3].

    variables: {network: variables}. key: for dropout and the guided attention's choice, in training.
    """
    stats = {}
    keys = [None] * 4 if key is None else jax.random.split(key, 4)

    def call(name, *args, method=None, key=None):
        own = {**variables[name], "batch_stats": stats.get(name, variables[name].get("batch_stats", {}))}
        out, stats[name] = run(getattr(models, name), own, *args, train=train, method=method, key=key)
        return out

    f_inv, last = call("E_con", x, method="shared")
    f_sen = call("E_id", last if models.shared else x)
    if models.A_deg is not None:
        f_sen = f_sen * attend(call, variables, x, f_sen, models, train, keys[3])
    neck_inv, p_inv = call("E_con", f_inv, method="classify", key=keys[0])
    neck_sen, p_sen = call("E_id", f_sen, method="classify", key=keys[1])
    f_fuse = jnp.concatenate([f_sen, f_inv], -1)
    _, p_fuse = call("C", f_fuse, key=keys[2])
    return Outputs(f_fuse, f_inv, f_sen, p_fuse, p_inv, p_sen, neck_inv, neck_sen), stats


def attend(call, variables, x, f_sen, models, train, key):
    """Weights [B,D] of f_sen; call(name, *args) applies a network."""
    given = describe(variables, x, f_sen, models)
    if not isinstance(models.A_deg, GuidedAttention):
        return call("A_deg", given)
    # training draws one of the two ways for the whole batch, tests go by the code
    by_code = jax.random.bernoulli(key) if train and models.attention == "code" else True
    return call("A_deg", f_sen, None if models.attention == "self" else given, by_code)
