"""Heads on one vector of the whole map: "global" with neck and classifier, "contrast" for unit features."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models import pooling
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, normal


class GlobalHead(Head):
    """Pooling, `neck`, `classifier`.

    neck 'ap3d': batch norm with trained bias, classifier with bias; 'bnneck': the norm's bias frozen at 0,
    classifier without bias; 'none': no norm, after_bn is before_bn.
    num_features > 0: MMT's embedding, a linear layer `feat` before the neck and, in training only, a ReLU
    after it.
    """

    num_classes: int
    pooling: nn.Module = pooling.Average()
    neck: str = "ap3d"
    num_features: int = 0
    axis_name: str | None = None
    rows: int = 0

    classifiers = ("classifier",)

    @property
    def frozen(self):
        return ("^neck/bias$",) if self.neck == "bnneck" else ()

    def pool(self, x):
        return self.pooling(x)

    @nn.compact
    def __call__(self, x, train):
        before = x
        if self.num_features:
            x = nn.Dense(self.num_features, kernel_init=nn.initializers.kaiming_normal(), name="feat")(x)
        if self.neck != "none":
            x = self._neck(x, train)
        if self.num_features and train:
            x = nn.relu(x)
        bias = self.neck != "bnneck"
        classifier = nn.Dense(self.num_classes, bias, kernel_init=normal(0.0, 0.001), name="classifier")
        return Branches((classifier(x),), (before,), (x,), x)

    def _neck(self, x, train):
        trained = self.neck == "ap3d"
        init = normal(1.0, 0.02) if trained else nn.initializers.ones
        fields = dict(axis_name=self.axis_name, rows=self.rows, scale_init=init)
        return BatchNorm(frozen_bias=not trained, name="neck", **fields)(x, train)


class ContrastHead(Head):
    """Pooling, batch norm `neck` with its bias frozen at 0, unit length; no classifier.

    The unit feature is the test feature and what methods with memories train.
    """

    pooling: nn.Module = pooling.Gem()
    axis_name: str | None = None
    rows: int = 0

    frozen = ("^neck/bias$",)

    def pool(self, x):
        return self.pooling(x)

    @nn.compact
    def __call__(self, x, train):
        neck = BatchNorm(axis_name=self.axis_name, rows=self.rows, frozen_bias=True, name="neck")
        after = neck(x, train)
        unit = after / jnp.maximum(jnp.linalg.norm(after, axis=-1, keepdims=True), 1e-12)
        return Branches((), (x,), (after,), unit)


def _global(model, num_classes, axis_name, num_features):
    axis = group_axis(model, axis_name)
    neck = choice("model.neck", model.neck, ("ap3d", "bnneck", "none"))
    return GlobalHead(num_classes, pooling.build(model), neck, num_features, axis, model.bn_rows)


def _contrast(model, num_classes, axis_name, num_features):
    if num_features:
        raise ConfigError("config.model.head 'contrast' has no embedding before its neck; use head 'global'")
    return ContrastHead(pooling.build(model), group_axis(model, axis_name), model.bn_rows)


NAMES = {"global": _global, "contrast": _contrast}
