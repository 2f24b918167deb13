"""torchreid's head: an embedding with batch norm and ReLU between the pooled vector and the classifier."""

import flax.linen as nn

from reid_jax.errors import ConfigError
from reid_jax.models import pooling
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, normal

FIELDS = dict(fc_dim=512)  # head "fc": numbers of the embedding


class FcHead(Head):
    """Pooling; linear layer, batch norm and ReLU, in training and in test mode; classifier with bias.

    The test feature is what follows the ReLU. Modules are called as in torchreid: fc.0, fc.1, classifier.
    """

    num_classes: int
    pooling: nn.Module = pooling.Average()
    dim: int = 512
    axis_name: str | None = None
    rows: int = 0

    classifiers = ("classifier",)

    def pool(self, x):
        return self.pooling(x)

    @nn.compact
    def __call__(self, x, train):
        y = nn.Dense(self.dim, kernel_init=normal(0.0, 0.01), name="fc_0")(x)
        y = nn.relu(BatchNorm(axis_name=self.axis_name, rows=self.rows, name="fc_1")(y, train))
        logits = nn.Dense(self.num_classes, kernel_init=normal(0.0, 0.01), name="classifier")(y)
        return Branches((logits,), (x,), (y,), y)


def build(model, num_classes, axis_name, num_features):
    """FcHead of config.model; ConfigError for a size below 1."""
    if model.fc_dim < 1:
        raise ConfigError(f"config.model.fc_dim is {model.fc_dim}; it must be 1 or more")
    if num_features:
        raise ConfigError("config.model.head 'fc' has an embedding of its own (fc_dim); use head 'global'")
    axis = group_axis(model, axis_name)
    return FcHead(num_classes, pooling.build(model), model.fc_dim, axis, model.bn_rows)


NAMES = {"fc": build}
