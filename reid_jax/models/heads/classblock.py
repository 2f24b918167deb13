"""A classifier on an embedding of the pooled vector, as in layumi's baselines, DG-Net and CamStyle."""

import functools

import flax.linen as nn

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models import pooling
from reid_jax.models.backbones import group_axis
from reid_jax.models.blocks import ClassBlock
from reid_jax.models.heads._branches import Branches, Head

FIELDS = dict(
    classblock_dim=512,  # head "classblock": numbers between the pooled vector and the classifier
    classblock_act="none",  # behind their batch norm: none | relu | leaky (slope 0.1)
    classblock_dropout=0.5,  # before the classifier, in training
    classblock_test="neck",  # the test feature: neck (the normalised numbers) | pooled
)
ACTS = {"none": None, "relu": nn.relu, "leaky": functools.partial(nn.leaky_relu, negative_slope=0.1)}


class ClassBlockHead(Head):
    """Pooling; linear layer, batch norm, activation, dropout, classifier in the module `classifier`."""

    num_classes: int
    pooling: nn.Module = pooling.Average()
    dim: int = 512
    dropout: float = 0.5
    act: str = "none"
    test: str = "neck"
    axis_name: str | None = None
    rows: int = 0
    dropout_axis: str | None = None  # device axis over which dropout draws as one

    classifiers = ("classifier_0",)

    def pool(self, x):
        return self.pooling(x)

    @nn.compact
    def __call__(self, x, train):
        sizes = self.num_classes, self.dim, self.dropout
        fields = self.axis_name, self.dropout_axis, ACTS[self.act], self.rows
        neck, logits = ClassBlock(*sizes, *fields, name="classifier")(x, train)
        return Branches((logits,), (x,), (neck,), x if self.test == "pooled" else neck)


def build(model, num_classes, axis_name, num_features):
    """ClassBlockHead of config.model; ConfigError for values that describe none."""
    if model.classblock_dim < 1 or not 0 <= model.classblock_dropout < 1:
        raise ConfigError(
            f"config.model.classblock_dim is {model.classblock_dim} and classblock_dropout "
            f"{model.classblock_dropout}; they must be at least 1 and in [0, 1)"
        )
    if num_features:
        raise ConfigError("config.model.head 'classblock' has an embedding of its own; use head 'global'")
    act = choice("model.classblock_act", model.classblock_act, tuple(ACTS))
    test = choice("model.classblock_test", model.classblock_test, ("neck", "pooled"))
    sizes = num_classes, pooling.build(model), model.classblock_dim, model.classblock_dropout
    return ClassBlockHead(*sizes, act, test, group_axis(model, axis_name), model.bn_rows, axis_name)


NAMES = {"classblock": build}
