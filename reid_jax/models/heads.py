"""The re-identification net: backbone, pooling, neck, classifier; and its view as pure functions."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.models import narrow, resnet
from reid_jax.models.layers import BatchNorm

_RESNETS = {
    "resnet18": resnet.ResNet18,
    "resnet34": resnet.ResNet34,
    "resnet50": resnet.ResNet50,
    "resnet101": resnet.ResNet101,
}
_DTYPES = {"float32": None, "float64": None, "bfloat16": jnp.bfloat16}  # None: the promoted type


class Features(NamedTuple):
    """What a net returns, at least float32 whatever the compute type."""

    before_bn: jax.Array  # [B,D] pooled vector
    after_bn: jax.Array  # [B,D] after the neck
    logits: jax.Array  # [B,K] from after_bn


class Encoder(NamedTuple):
    """A net as pure functions; the train steps know no more of it.

    init(rng, image [N,H,W,3]) -> {'params', 'batch_stats'}
    apply(variables, x [B,H,W,3], train: bool) -> (Features, batch_stats), unchanged ones with train False
    """

    init: Any
    apply: Any


def _normal(std, mean=0.0):
    return lambda rng, shape, dtype=jnp.float32: mean + std * jax.random.normal(rng, shape, dtype)


def spatial_pool(x, pool):
    """[B,H,W,C] -> [B,C]: mean ('avg') or maximum ('max') over the map."""
    return x.mean((1, 2)) if choice("model.pool", pool, ("avg", "max")) == "avg" else x.max((1, 2))


class ReIDNet(nn.Module):
    """Backbone `base`, pooling, `neck`, `classifier`: [B,H,W,3] -> Features.

    neck 'ap3d': batch norm with trained bias, classifier with bias; 'bnneck': the norm's bias frozen at 0,
    classifier without bias; 'none': no norm, after_bn is before_bn.
    num_features > 0: MMT's embedding, a linear layer `feat` before the neck and, in training only, a ReLU
    after it.
    """

    base: nn.Module
    num_classes: int
    pool: str = "avg"
    neck: str = "ap3d"
    num_features: int = 0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = self.base(x, train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if x.ndim == 4:
            x = spatial_pool(x, self.pool)
        before = x
        if self.num_features:
            x = nn.Dense(self.num_features, kernel_init=nn.initializers.kaiming_normal(), name="feat")(x)
        if self.neck != "none":
            x = self._neck(x, train)
        if self.num_features and train:
            x = nn.relu(x)
        classifier = nn.Dense(
            self.num_classes, self.neck != "bnneck", kernel_init=_normal(0.001), name="classifier"
        )
        return Features(before, x, classifier(x))

    def _neck(self, x, train):
        trained = self.neck == "ap3d"
        init = _normal(0.02, 1.0) if trained else nn.initializers.ones
        norm = BatchNorm(axis_name=self.axis_name, scale_init=init, frozen_bias=not trained, name="neck")
        return norm(x, train)


def build(model, num_classes, axis_name=None, num_features=0):
    """Net of `config.model`.

    axis_name: the train step's device axis, used where model.bn_group is 'global'.
    Raises ConfigError for a name it does not know.
    """
    choice("model.backbone", model.backbone, (*_RESNETS, "narrow"))
    choice("model.pool", model.pool, ("avg", "max"))
    choice("model.neck", model.neck, ("ap3d", "bnneck", "none"))
    choice("model.last_stride", model.last_stride, (1, 2))
    dtype = _DTYPES[choice("model.dtype", model.dtype, tuple(_DTYPES))]
    if choice("model.bn_group", model.bn_group, ("device", "global")) == "device":
        axis_name = None
    if model.backbone == "narrow":
        base = narrow.Narrow(
            tuple(model.narrow_widths), model.narrow_stripes, model.narrow_dim, dtype, axis_name
        )
    else:
        base = _RESNETS[model.backbone](model.last_stride, model.stem_relu, dtype, axis_name)
    return ReIDNet(base, num_classes, model.pool, model.neck, num_features, axis_name)


def encoder(net):
    """Encoder of a linen net that takes (x, train)."""

    def init(rng, image):
        return dict(net.init(rng, image[:1], False))

    def apply(variables, x, train):
        if not train:
            return net.apply(variables, x, False), variables["batch_stats"]
        features, changed = net.apply(variables, x, True, mutable=["batch_stats"])
        return features, changed["batch_stats"]

    return Encoder(init, apply)


def trainable_mask(params):
    """The tree of `params` with True where a leaf is trained: all but the bias of a frozen neck.

    A neck is frozen exactly where the classifier has no bias (`neck: bnneck`).
    """
    mask = jax.tree.map(lambda _: True, params)
    if "neck" in params and "bias" not in params["classifier"]:
        mask = {**mask, "neck": {**mask["neck"], "bias": False}}
    return mask
