"""ResNets with non-local blocks behind the last blocks of their stages, as in the code of AGW and fast-reid.

Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", PAMI 2021. Their keys are those
of both repositories, NL_2.0.theta.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from reid_jax import models
from reid_jax.errors import ConfigError
from reid_jax.models.backbones.resnet import Bottleneck, ResNet, fields_of, slim_sizes
from reid_jax.models.layers import BatchNorm, Conv, kernel_uniform, wide
from reid_jax.models.weights.names import dotted, leaf_name

FIELDS = dict(
    nl_blocks=(0, 2, 3, 0),  # backbones *_nl: how many of each stage's last blocks a non-local one follows
    nl_inner=1,  # its inner channels, 1 in both repositories; 0: half of the map's, as in Wang et al. 2018
)


class LinearNonLocal(nn.Module):
    """x + BN(W y): [...,H,W,C] -> the same, with y_i = sum_j (theta_i . phi_j) g_j / N over the N pixels.

    No softmax, so the sum over j is taken first and no N x N matrix is made. The norm's scale and bias start
    at 0: a fresh block changes nothing.
    """

    inner: int = 1  # 0: C / 2
    dtype: jnp.dtype | None = None
    norm: functools.partial = BatchNorm  # constructor of the norm

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype, init=kernel_uniform)
        inner = self.inner or max(x.shape[-1] // 2, 1)
        flat = (*x.shape[:-3], x.shape[-3] * x.shape[-2], inner)
        g, theta, phi = (wide(conv(inner, name=n)(x)).reshape(flat) for n in ("g", "theta", "phi"))
        seen = jnp.einsum("...jc,...jd->...cd", phi, g) / flat[-2]
        y = jnp.einsum("...ic,...cd->...id", theta, seen).astype(x.dtype)
        y = conv(x.shape[-1], name="W_0")(y.reshape(*x.shape[:-1], inner))
        return x + self.norm(scale_init=nn.initializers.zeros, name="W_1")(y, train)


class NonLocalResNet(ResNet):
    """ResNet with a non-local block behind each of the last `non_local[s]` blocks of stage s + 1."""

    non_local: tuple[int, ...] = (0, 2, 3, 0)
    inner: int = 1

    def add(self, stage):
        """Puts the modules of a stage (from 0) in their places; their names in order."""
        names = []
        for index, name in enumerate(super().add(stage)):
            names.append(name)
            after = index - self.counts[stage] + self.non_local[stage]
            if after >= 0:
                names.append(f"NL_{stage + 1}_{after}")
                block = nn.remat(LinearNonLocal, static_argnums=(2,)) if self.remat else LinearNonLocal
                setattr(self, names[-1], block(self.inner, self.dtype, self.norms.batch))
        return tuple(names)


def _built(counts, width=64):
    return lambda model, *settings: net_of(model, counts, width, settings)


def _slim(model, *settings):
    return net_of(model, *slim_sizes(model), settings)


def net_of(model, counts, width, settings, module=NonLocalResNet, **more):
    """NonLocalResNet or a subclass, with more fields; ConfigError for blocks that are not there."""
    blocks = tuple(model.nl_blocks)
    if len(blocks) != len(counts) or any(not 0 <= n <= c for n, c in zip(blocks, counts, strict=True)):
        raise ConfigError(
            f"config.model.nl_blocks is {blocks} and the stages of {model.backbone} have {counts} blocks; it "
            "must be a number for each stage, of 0 to all of its blocks"
        )
    if model.nl_inner < 0:
        raise ConfigError(f"config.model.nl_inner is {model.nl_inner}; it must be 0 or more")
    fields = dict(width=width, non_local=blocks, inner=model.nl_inner)
    return module(Bottleneck, counts, **fields, **more, **fields_of(model, *settings))


NAMES = {
    "resnet50_nl": _built((3, 4, 6, 3)),
    "resnet50_nl_ibn_a": _built((3, 4, 6, 3)),
    "resnet101_nl": _built((3, 4, 23, 3)),
    "slim_nl": _slim,
}
NORM = {"resnet50_nl_ibn_a": "ibn_a"}

_AGW = {"neck": "bottleneck", "pooling": "global_pool"}


def _agw(modules, leaf):
    """AGW's name of a leaf."""
    first, *inside = modules
    return [".".join([_AGW.get(first, first), *map(dotted, inside), leaf_name(leaf)])]


def _agw_net(entries):
    """AGW's ResNet-50; a net of its code without non-local blocks is a plain one."""
    name = "resnet50_nl" if any(".NL_" in key for key in entries) else "resnet50"
    return {"backbone": name, "stem_relu": False}


def _is_agw(entries):
    return any(key.startswith(("base.NL_", "global_pool.")) for key in entries) and any(
        key.startswith("base.layer") for key in entries
    )


KEYS = {"agw": models.Keys(_agw, _is_agw, fields=_agw_net)}
