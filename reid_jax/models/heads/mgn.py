"""MGN's head (Wang et al., ACM MM 2018): vectors of whole maps and of their stripes, reduced one by one.

The order everywhere: the whole map of every branch, then the parts of the branches that have several. Modules
are called as in MGN-pytorch.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax import models
from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.models import classifiers, pooling
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, Conv, normal, wide
from reid_jax.models.weights.names import dotted, leaf_name

FIELDS = dict(
    mgn_dim=256,  # head "mgn": numbers that a vector is reduced to
    mgn_relu=True,  # a ReLU behind the reduction's norm; False: fast-reid
    mgn_shared=False,  # one reduction for all vectors; True: ReID-MGN
    mgn_wide=False,  # classifiers of the whole maps see their vectors before the reduction; True: the paper
    # what metric losses see: whole (the reduced vectors of the whole maps) | joined (these, and of every
    # branch with parts its parts as one; fast-reid)
    mgn_metric="whole",
)


class Reduction(nn.Module):
    """1x1 convolution without bias, batch norm, ReLU: f[B,C] -> f[B,dim]."""

    dim: int
    relu: bool = True
    frozen_bias: bool = False
    axis_name: str | None = None
    rows: int = 0

    @nn.compact
    def __call__(self, x, train):
        init = nn.initializers.kaiming_normal()  # fan in
        y = Conv(self.dim, init=init, name="conv")(x[:, None, None])[:, 0, 0]
        scale = nn.initializers.ones if self.frozen_bias else normal(1.0, 0.02)
        fields = dict(axis_name=self.axis_name, rows=self.rows, scale_init=scale)
        y = BatchNorm(frozen_bias=self.frozen_bias, name="norm", **fields)(y, train)
        return nn.relu(y) if self.relu else y


class MgnHead(Head):
    """Pooled vectors of `parts` of each branch's map, a Reduction and a classifier of each.

    before_bn: the vectors of the whole maps; after_bn: what metric losses see; test: all reduced vectors, one
    behind the other. frozen_bias: norms with their bias frozen at 0 and classifiers without bias (fast-reid).
    margin: None for linear classifiers, or the models.classifiers.Margin of those by cosines. std: of the
    first weights of classifiers without bias.
    """

    num_classes: int
    parts: tuple[int, ...] = (1, 2, 3)
    pooling: tuple = ()  # a module for each vector
    dim: int = 256
    relu: bool = True
    shared: bool = False
    wide: bool = False
    metric: str = "whole"
    frozen_bias: bool = False
    margin: Any = None
    std: float = 0.01
    axis_name: str | None = None
    rows: int = 0

    @property
    def maps(self):
        return len(self.parts)

    @property
    def frozen(self):
        return (r"^reduction_\d+/norm/bias$",) if self.frozen_bias else ()

    @property
    def classifiers(self):
        """Names of the classifiers in order, those of MGN-pytorch."""
        inside = [f"fc_id_256_{i}_{j}" for i, n in enumerate(self.parts) if n > 1 for j in range(n)]
        return (*(f"fc_id_2048_{i}" for i in range(len(self.parts))), *inside)

    def pooled(self, base, x, train, **options):
        """Images -> [...,V C], one vector behind the other; ConfigError unless parts divide a map's rows."""
        maps = jax.tree.map(wide, base(x, train, **options))
        pieces = list(maps)
        for number, (n, x) in enumerate(zip(self.parts, maps, strict=True), 1):
            if x.shape[-3] % n:
                raise ConfigError(
                    f"config.model.mgn_parts is {self.parts}, the map of branch {number} has {x.shape[-3]} "
                    f"rows; {n} must divide them: change config.data.height"
                )
            pieces += jnp.split(x, n, -3) if n > 1 else []
        return jnp.concatenate([pool(x) for pool, x in zip(self.pooling, pieces, strict=True)], -1)

    @nn.compact
    def __call__(self, x, train):
        count, whole = len(self.classifiers), len(self.parts)
        vectors = jnp.split(x, count, -1)
        numbers = range(1 if self.shared else count)
        settings = (self.dim, self.relu, self.frozen_bias, self.axis_name, self.rows)
        reductions = [Reduction(*settings, name=f"reduction_{i}") for i in numbers]
        reduced = [reductions[i % len(numbers)](v, train) for i, v in enumerate(vectors)]
        seen = [*vectors[:whole], *reduced[whole:]] if self.wide else reduced
        logits = [self.classifier(n)(v) for n, v in zip(self.classifiers, seen, strict=True)]
        test = jnp.concatenate(reduced, -1)
        return Branches(tuple(logits), tuple(vectors[:whole]), self.measured(reduced), test, self.margin)

    def measured(self, reduced):
        """What metric losses see of the reduced vectors."""
        vectors, at = list(reduced[: len(self.parts)]), len(self.parts)
        for n in self.parts if self.metric == "joined" else ():
            if n > 1:
                vectors.append(jnp.concatenate(reduced[at : at + n], -1))
                at += n
        return tuple(vectors)

    def classifier(self, name):
        if self.frozen_bias or self.margin is not None:
            return classifiers.layer(self.num_classes, self.margin, bias=False, std=self.std, name=name)
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        return nn.Dense(self.num_classes, kernel_init=init, name=name)


def build(model, num_classes, axis_name, num_features):
    """MgnHead of config.model; model.pool "auto" is the maximum. ConfigError for sizes that describe none."""
    within("model", model, mgn_dim=(1, None))
    if num_features:
        raise ConfigError("config.model.head 'mgn' has no embedding before its neck; use head 'global'")
    if model.pool == "stripes":
        raise ConfigError("config.model.pool 'stripes' has no place in head 'mgn'; use max, avg or gem")
    parts = tuple(model.mgn_parts)
    count = sum(1 + n * (n > 1) for n in parts)
    pools = tuple(pooling.Maximum() if model.pool == "auto" else pooling.build(model) for _ in range(count))
    return MgnHead(
        num_classes,
        parts,
        pools,
        dim=model.mgn_dim,
        relu=model.mgn_relu,
        shared=model.mgn_shared,
        wide=model.mgn_wide,
        metric=choice("model.mgn_metric", model.mgn_metric, ("whole", "joined")),
        frozen_bias=model.neck == "bnneck",
        margin=classifiers.margin(model),
        std=model.classifier_std,
        axis_name=group_axis(model, axis_name),
        rows=model.bn_rows,
    )


NAMES = {"mgn": build}

_SHARED = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}
_THERE = ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")  # fast-reid's names, in our order
_OURS = MgnHead(0).classifiers


def _sequence(modules, shared, branch):
    """The trunk's modules as both repositories number them: the split block is a member of its own."""
    if modules[0].startswith("branch"):
        stage, block = (int(n) for n in modules[1].removeprefix("layer").split("_"))
        place = f"0.{block - 1}" if stage == 3 else f"1.{block}"
        return [f"{branch}{modules[0].removeprefix('branch')}", place, *map(dotted, modules[2:])]
    stage, _, block = modules[0].partition("_")
    place = [_SHARED.get(stage, stage), *([block] if block and stage != "layer3" else [])]
    return [shared, *place, *map(dotted, modules[1:])]


def _keys(modules, leaf):
    """MGN-pytorch's name of a leaf."""
    if modules[0] == "base":
        return [".".join([*_sequence(modules[1:], "backone", "p"), leaf_name(leaf)])]
    inside = [{"conv": "0", "norm": "1"}.get(name, name) for name in modules[1:]]
    return [".".join([modules[0], *inside, leaf_name(leaf)])]


def _matches(entries):
    return any(key.startswith(("backone.", "fc_id_2048_")) for key in entries)


def _fastreid(modules, leaf):
    """fast-reid's name of a leaf: each vector has a head with pooling, reduction, norm and classifier."""
    if modules[0] == "base":
        return [".".join([*_sequence(modules[1:], "backbone", "b"), leaf_name(leaf)])]
    number = modules[0].rpartition("_")[2]
    if modules[0] in _OURS:
        return [f"{_THERE[_OURS.index(modules[0])]}_head.{leaf_name(leaf)}"]
    if not number.isdigit():  # of another head
        return [".".join([*modules, leaf_name(leaf)])]
    inside = {"conv": "bottleneck.0", "norm": "bottleneck.1", "": "pool_layer"}.get("".join(modules[1:]))
    if inside is None or int(number) >= len(_THERE):
        return [".".join([*modules, leaf_name(leaf)])]
    return [f"{_THERE[int(number)]}_head.{inside}.{leaf_name(leaf)}"]


def _net(entries):
    """The net of a file of MGN-pytorch."""
    return {"backbone": "resnet50_mgn", "head": "mgn", "last_stride": 2}


def _fastreid_net(entries):
    """The net of a file of fast-reid; its poolings have exponents where these are trained."""
    ibn = "_ibn_a" * any(".bn1.IN." in key for key in entries)
    fields = dict(backbone=f"resnet50_mgn{ibn}", stem_pool="ceil", pool="gem", neck="bnneck")
    return fields | dict(head="mgn", mgn_relu=False, mgn_metric="joined")


KEYS = {
    "mgn": models.Keys(_keys, _matches, fields=_net),
    "mgn_fastreid": models.Keys(
        _fastreid, lambda entries: any(key.startswith("b1_head.") for key in entries), fields=_fastreid_net
    ),
}
