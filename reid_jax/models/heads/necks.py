"""Head "necks": a neck and a classifier for the mean of the whole map and for that of every stripe."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.models import pooling
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, normal
from reid_jax.models.pooling import stripe_pool


class NecksHead(Head):
    """Branch 0 of the whole map, branches 1, ... of `parts` equal stripes (config.model.stripes_parts).

    The necks' biases are fixed at 0, the classifiers have none. The test feature is the whole map's neck
    output at unit length.
    """

    num_classes: int
    pooling: nn.Module = pooling.Average()
    parts: int = 3
    axis_name: str | None = None
    rows: int = 0

    frozen = ("^neck[0-9]+/bias$",)

    @property
    def classifiers(self):
        return tuple(f"classifier{i}" for i in range(self.parts + 1))

    def pool(self, x):
        """Maps [...,H,W,C] -> [...,(1 + parts) C]; ConfigError unless `parts` divides H."""
        if x.shape[-3] % self.parts:
            raise ConfigError(
                f"config.model.stripes_parts is {self.parts} and the map has {x.shape[-3]} rows; it must "
                "divide them: change config.data.height"
            )
        stripes = stripe_pool(x, self.parts)
        return jnp.concatenate([self.pooling(x), stripes.reshape(*stripes.shape[:-2], -1)], -1)

    @nn.compact
    def __call__(self, x, train):
        before, norms = jnp.split(x, self.parts + 1, -1), dict(axis_name=self.axis_name, rows=self.rows)
        necks = [BatchNorm(frozen_bias=True, name=f"neck{i}", **norms) for i in range(self.parts + 1)]
        after = tuple(neck(b, train) for neck, b in zip(necks, before, strict=True))
        init = normal(0.0, 0.001)
        layers = [nn.Dense(self.num_classes, False, kernel_init=init, name=n) for n in self.classifiers]
        logits = tuple(layer(a) for layer, a in zip(layers, after, strict=True))
        unit = after[0] / jnp.maximum(jnp.linalg.norm(after[0], axis=-1, keepdims=True), 1e-12)
        return Branches(logits, tuple(before), after, unit)


def build(model, num_classes, axis_name, num_features):
    """NecksHead of config.model; ConfigError for sizes that describe none."""
    if num_features:
        raise ConfigError("config.model.head 'necks' has no embedding before its necks; use head 'global'")
    within("model", model, stripes_parts=(1, None))
    axis, pool = group_axis(model, axis_name), pooling.build(model)
    if isinstance(pool, pooling.Stripes):
        raise ConfigError(
            f"config.model.pool is {model.pool!r}, which joins stripes (auto: of backbone 'narrow'); head "
            "'necks' has stripes of its own: set config.model.pool=avg"
        )
    return NecksHead(num_classes, pool, model.stripes_parts, axis, model.bn_rows)


NAMES = {"necks": build}
