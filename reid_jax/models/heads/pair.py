"""HA-CNN's head: a classifier for each of the two vectors that the backbone gives."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import kernel_uniform, uniform


class PairHead(Head):
    """The global and the local vector, each with a classifier with bias; local: False: the global one alone.

    The test feature [B,2 D] are both vectors at unit length, one behind the other. Modules are called as in
    torchreid: classifier_global, classifier_local.
    """

    num_classes: int
    local: bool = True

    @property
    def classifiers(self):
        return ("classifier_global", "classifier_local")[: 1 + self.local]

    def pool(self, x):
        """Maps [...,1,2,D] -> [...,2 D]; ConfigError for any others."""
        if x.shape[-3:-1] != (1, len(self.classifiers)):
            raise ConfigError(
                "config.model.head 'pair' is for backbones of two vectors (hacnn), not for maps of "
                f"{x.shape[-3]}x{x.shape[-2]}; use head global"
            )
        return x.reshape(*x.shape[:-3], -1)

    @nn.compact
    def __call__(self, x, train):
        pair = tuple(jnp.split(x, len(self.classifiers), -1))
        init = dict(kernel_init=kernel_uniform, bias_init=uniform(pair[0].shape[-1]))
        layers = [nn.Dense(self.num_classes, name=name, **init) for name in self.classifiers]
        logits = tuple(layer(v) for layer, v in zip(layers, pair, strict=True))
        unit = [v / jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in pair]
        return Branches(logits, pair, pair, jnp.concatenate(unit, -1))


def build(model, num_classes, axis_name, num_features):
    """PairHead of config.model; ConfigError with an embedding."""
    del axis_name
    if num_features:
        raise ConfigError(
            "config.model.head 'pair' has no embedding before its classifiers; use head 'global'"
        )
    return PairHead(num_classes, model.hacnn_local)


NAMES = {"pair": build}
