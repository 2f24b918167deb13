"""PCB's head (Sun et al., ECCV 2018): a classifier for each horizontal stripe of the map."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, Conv, Dropout, normal
from reid_jax.models.pooling import stripe_pool

FIELDS = dict(
    stripes_parts=6,  # head "stripes": stripes, each with a classifier
    stripes_dim=256,  # numbers that a stripe's classifier sees
    stripes_dropout=0.5,  # of the stripes' means in training
)


class StripesHead(Head):
    """Means g_i of `parts` stripes; dropout, one shared 1x1 convolution, batch norm, ReLU: h_i; classifiers.

    before_bn are the g_i [B,C], after_bn the h_i [B,dim]. The test feature [B,parts C] are the g_i, each at
    unit length, one behind the other. Modules are called as in PCB_RPP_for_reID.
    """

    num_classes: int
    parts: int = 6
    dim: int = 256
    dropout: float = 0.5
    axis_name: str | None = None
    rows: int = 0
    dropout_axis: str | None = None  # device axis over which dropout draws as one

    @property
    def classifiers(self):
        return tuple(f"instance{i}" for i in range(self.parts))

    def pool(self, x):
        """Maps [...,H,W,C] -> [...,parts C], stripe by stripe; ConfigError unless `parts` divides H."""
        if x.shape[-3] % self.parts:
            raise ConfigError(
                f"config.model.stripes_parts is {self.parts} and the map has {x.shape[-3]} rows; it must "
                "divide them: change config.data.height"
            )
        x = stripe_pool(x, self.parts)
        return x.reshape(*x.shape[:-2], -1)

    @nn.compact
    def __call__(self, x, train):
        g = x.reshape(len(x), self.parts, -1)
        y = Dropout(self.dropout, self.dropout_axis)(g, train)
        y = Conv(self.dim, name="local_conv")(y[:, :, None])
        norm = BatchNorm(axis_name=self.axis_name, rows=self.rows, name="feat_bn2d")
        h = nn.relu(norm(y, train))[:, :, 0]
        after = tuple(h[:, i] for i in range(self.parts))
        logits = tuple(self.classifier(name)(a) for name, a in zip(self.classifiers, after, strict=True))
        unit = g / jnp.maximum(jnp.linalg.norm(g, axis=-1, keepdims=True), 1e-12)
        return Branches(logits, tuple(g[:, i] for i in range(self.parts)), after, unit.reshape(x.shape))

    def classifier(self, name):
        return nn.Dense(self.num_classes, kernel_init=normal(0.0, 0.001), name=name)


def build(model, num_classes, axis_name, num_features):
    """StripesHead of config.model; ConfigError for sizes that describe none."""
    if model.stripes_parts < 1 or model.stripes_dim < 1 or not 0 <= model.stripes_dropout < 1:
        raise ConfigError(
            f"config.model.stripes_parts is {model.stripes_parts}, stripes_dim {model.stripes_dim} and "
            f"stripes_dropout {model.stripes_dropout}; they must be at least 1, at least 1 and in [0, 1)"
        )
    if num_features:
        raise ConfigError("config.model.head 'stripes' has no embedding before its neck; use head 'global'")
    sizes = (model.stripes_parts, model.stripes_dim, model.stripes_dropout)
    return StripesHead(num_classes, *sizes, group_axis(model, axis_name), model.bn_rows, axis_name)


NAMES = {"stripes": build}
