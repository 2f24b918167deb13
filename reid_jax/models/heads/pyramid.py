"""Pyramid's head (Zheng et al., CVPR 2019): a feature and a classifier for every run of neighbouring stripes.

The order everywhere: runs of one stripe from the top, of two, and so on to the whole map. Modules are called
as in the authors' group's code, PersonReID-YouReID.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax import models
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, Conv, Dropout, he_normal, maximum, normal
from reid_jax.models.weights.names import dotted, leaf_name

FIELDS = dict(
    pyramid_stripes=6,  # head "pyramid": stripes that the map is cut into
    pyramid_levels=(1, 2, 3, 4, 5, 6),  # lengths of the runs that have a branch
    pyramid_dim=128,  # numbers of a branch's feature
    pyramid_dropout=0.2,  # before its classifier, in training
)


class PyramidHead(Head):
    """Mean plus maximum of every run of stripes; 1x1 convolution, batch norm, ReLU; dropout, classifier.

    before_bn: the pooled vectors f[B,C]; after_bn: the features f[B,dim]; test: each at unit length, one
    behind the other, and the whole at unit length.
    """

    num_classes: int
    stripes: int = 6
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    dim: int = 128
    dropout: float = 0.2
    axis_name: str | None = None
    rows: int = 0
    dropout_axis: str | None = None  # device axis over which dropout draws as one

    @property
    def runs(self):
        """((first stripe, end), ...) of the branches in order."""
        starts = ((length, i) for length in sorted(self.levels) for i in range(self.stripes - length + 1))
        return tuple((i, i + length) for length, i in starts)

    @property
    def classifiers(self):
        return tuple(f"pyramid_fc_list0_{i}" for i in range(len(self.runs)))

    def pool(self, x):
        """Maps [...,H,W,C] -> [...,V C], branch by branch; ConfigError unless `stripes` divides H."""
        if x.shape[-3] % self.stripes:
            raise ConfigError(
                f"config.model.pyramid_stripes is {self.stripes} and the map has {x.shape[-3]} rows; it must "
                "divide them: change config.data.height"
            )
        x = x.reshape(*x.shape[:-3], self.stripes, -1, x.shape[-1])
        mean, most = x.mean(-2), maximum(x, (-2,))
        runs = [mean[..., a:b, :].mean(-2) + maximum(most[..., a:b, :], (-2,)) for a, b in self.runs]
        return jnp.concatenate(runs, -1)

    @nn.compact
    def __call__(self, x, train):
        vectors, features, logits = jnp.split(x, len(self.runs), -1), [], []
        for i, (name, v) in enumerate(zip(self.classifiers, vectors, strict=True)):
            settings = (self.dim, self.axis_name, self.rows)
            features.append(BranchFeature(*settings, name=f"pyramid_conv_list0_{i}")(v, train))
            y = Dropout(self.dropout, self.dropout_axis)(features[-1], train)
            logits.append(nn.Dense(self.num_classes, kernel_init=normal(0.0, 0.001), name=name)(y))
        test = unit(jnp.concatenate([unit(f) for f in features], -1))
        return Branches(tuple(logits), tuple(vectors), tuple(features), test)


class BranchFeature(nn.Module):
    """1x1 convolution with bias, batch norm, ReLU: f[B,C] -> f[B,dim]."""

    dim: int
    axis_name: str | None = None
    rows: int = 0

    @nn.compact
    def __call__(self, x, train):
        fields = dict(use_bias=True, init=he_normal, bias_init=nn.initializers.zeros)
        y = Conv(self.dim, name="conv", **fields)(x[:, None, None])[:, 0, 0]
        return nn.relu(BatchNorm(axis_name=self.axis_name, rows=self.rows, name="norm")(y, train))


def unit(x):
    """Rows over their L2 norms; a row of zeros, which a ReLU can give, stays so and has a finite gradient."""
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def build(model, num_classes, axis_name, num_features):
    """PyramidHead of config.model; ConfigError for sizes that describe none."""
    within("model", model, pyramid_stripes=(1, None), pyramid_dim=(1, None))
    levels, stripes = tuple(model.pyramid_levels), model.pyramid_stripes
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(range(1, stripes + 1)):
        raise ConfigError(
            f"config.model.pyramid_levels is {levels}; it must be different lengths from 1 to the "
            f"{stripes} stripes (config.model.pyramid_stripes)"
        )
    if not 0 <= model.pyramid_dropout < 1:
        raise ConfigError(f"config.model.pyramid_dropout is {model.pyramid_dropout}; it must be in [0, 1)")
    if num_features:
        raise ConfigError("config.model.head 'pyramid' has no embedding before its neck; use head 'global'")
    sizes = (stripes, levels, model.pyramid_dim, model.pyramid_dropout)
    return PyramidHead(num_classes, *sizes, group_axis(model, axis_name), model.bn_rows, axis_name)


NAMES = {"pyramid": build}


def _keys(modules, leaf):
    """PersonReID-YouReID's name of a leaf."""
    first, *inside = modules
    inside = [dotted({"conv": "0", "norm": "1"}.get(m, m) if first != "base" else m) for m in inside]
    return [".".join(["resnet" if first == "base" else dotted(first), *inside, leaf_name(leaf)])]


def _matches(entries):
    return any(key.startswith("pyramid_fc_list0.") for key in entries)


def _net(entries):
    """The ResNet of a file, by the number of blocks of its third stage, and the head."""
    blocks = sum(f"resnet.layer3.{i}.conv1.weight" in entries for i in range(36))
    return {"head": "pyramid", "backbone": "resnet101" if blocks > 6 else "resnet50"}


KEYS = {"pyramid": models.Keys(_keys, _matches, fields=_net)}
