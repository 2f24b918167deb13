"""Heads on one vector of the whole map: "global" with neck and classifier, "contrast" for unit features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.models import classifiers, pooling
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, normal

FIELDS = dict(
    embedding=0,  # head "global": numbers that a linear layer reduces the vector to before the neck; 0: none
    contrast_bias=False,  # head "contrast": whether the neck's bias is trained
)


class GlobalHead(Head):
    """Pooling, `neck`, `classifier`.

    neck 'ap3d': batch norm with trained bias, classifier with bias; 'bnneck': the norm's bias frozen at 0,
    classifier without bias; 'none': no norm, after_bn is before_bn.
    num_features > 0: MMT's embedding, a linear layer `feat` before the neck and, in training only, a ReLU
    after it. embedding > 0: fast-reid's, `feat` without bias and without the ReLU.
    margin: None for a linear classifier, or the models.classifiers.Margin of one by cosines.
    """

    num_classes: int
    pooling: nn.Module = pooling.Average()
    neck: str = "ap3d"
    num_features: int = 0
    axis_name: str | None = None
    rows: int = 0
    embedding: int = 0
    margin: Any = None
    std: float = 0.001  # of the classifier's first weights
    domains: int = 1  # this and the next: see layers.RunningMoments
    test_domain: int = 0

    classifiers = ("classifier",)

    @property
    def frozen(self):
        return ("^neck/bias$",) if self.neck == "bnneck" else ()

    def pool(self, x):
        return self.pooling(x)

    @nn.compact
    def __call__(self, x, train):
        before = x
        if self.embedding:
            init = nn.initializers.kaiming_normal()
            x = nn.Dense(self.embedding, use_bias=False, kernel_init=init, name="feat")(x)
        if self.num_features:
            x = nn.Dense(self.num_features, kernel_init=nn.initializers.kaiming_normal(), name="feat")(x)
        if self.neck != "none":
            x = self._neck(x, train)
        if self.num_features and train:
            x = nn.relu(x)
        options = dict(bias=self.neck != "bnneck", std=self.std, name="classifier")
        classifier = classifiers.layer(self.num_classes, self.margin, **options)
        return Branches((classifier(x),), (before,), (x,), x, self.margin)

    def _neck(self, x, train):
        trained = self.neck == "ap3d"
        init = normal(1.0, 0.02) if trained else nn.initializers.ones
        fields = dict(axis_name=self.axis_name, rows=self.rows, scale_init=init)
        fields |= dict(domains=self.domains, test_domain=self.test_domain)
        return BatchNorm(frozen_bias=not trained, name="neck", **fields)(x, train)


class ContrastHead(Head):
    """Pooling, batch norm `neck` with its bias frozen at 0 (or trained, `bias`), unit length; no classifier.

    The unit feature is the test feature and what methods with memories train.
    """

    pooling: nn.Module = pooling.Gem()
    axis_name: str | None = None
    rows: int = 0
    domains: int = 1  # this and the next: see layers.RunningMoments
    test_domain: int = 0
    bias: bool = False

    @property
    def frozen(self):
        return () if self.bias else ("^neck/bias$",)

    def pool(self, x):
        return self.pooling(x)

    @nn.compact
    def __call__(self, x, train):
        fields = dict(axis_name=self.axis_name, rows=self.rows, frozen_bias=not self.bias, name="neck")
        neck = BatchNorm(domains=self.domains, test_domain=self.test_domain, **fields)
        after = neck(x, train)
        unit = after / jnp.maximum(jnp.linalg.norm(after, axis=-1, keepdims=True), 1e-12)
        return Branches((), (x,), (after,), unit)


def _global(model, num_classes, axis_name, num_features):
    axis = group_axis(model, axis_name)
    neck = choice("model.neck", model.neck, ("ap3d", "bnneck", "none"))
    if num_features and model.embedding:
        raise ConfigError(
            f"config.model.embedding is {model.embedding}, and this method has an embedding of its own: set "
            "it to 0"
        )
    within("model", model, embedding=(0, None))
    fields = dict(embedding=model.embedding, margin=classifiers.margin(model), std=model.classifier_std)
    return GlobalHead(num_classes, pooling.build(model), neck, num_features, axis, model.bn_rows, **fields)


def _contrast(model, num_classes, axis_name, num_features):
    if num_features:
        raise ConfigError("config.model.head 'contrast' has no embedding before its neck; use head 'global'")
    axis = group_axis(model, axis_name)
    return ContrastHead(pooling.build(model), axis, model.bn_rows, bias=model.contrast_bias)


NAMES = {"global": _global, "contrast": _contrast}
