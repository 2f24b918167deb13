"""The re-identification net, backbone and head, of a config; and its view as pure functions.

Heads are found by name; a module lists its own in NAMES, {config.model.head: (config.model, num_classes,
axis_name, num_features) -> Head}.
"""

from typing import Any, NamedTuple

import jax

from reid_jax import models
from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models import backbones, classifiers
from reid_jax.models.backbones import build as trunk
from reid_jax.models.heads._branches import Branches, Head, ReIDNet
from reid_jax.models.heads.pooled import ContrastHead, GlobalHead
from reid_jax.models.heads.stripes import StripesHead
from reid_jax.models.pooling import spatial_pool

__all__ = ["BACKBONES", "Branches", "ContrastHead", "Encoder", "GlobalHead", "Head", "ReIDNet", "StripesHead"]
__all__ += ["build", "encoder", "frames_apart", "spatial_pool", "trunk"]

BACKBONES = backbones.names()


class Encoder(NamedTuple):
    """A net as pure functions; the train steps know no more of it.

    init(rng, image [N,H,W,3]) -> {'params', 'batch_stats'}
    apply(variables, x [B,H,W,3], train: bool, rng=None) -> (Branches, batch_stats), unchanged ones with train
      False; rng: of style layers and dropout in training, the same on all devices
    """

    init: Any
    apply: Any


def build(model, num_classes, axis_name=None, num_features=0):
    """ReIDNet of `config.model`.

    axis_name: the train step's device axis, over which norms take their statistics where model.bn_group is
    'global', and over which random layers draw as one. Raises ConfigError for a name it does not know.
    """
    offered = models.offers("heads")
    name = choice("model.head", model.head, tuple(offered))
    base = trunk(model, axis_name)
    head = offered[name].NAMES[name](model, num_classes, axis_name, num_features)
    if classifiers.margin(model) != getattr(head, "margin", None):
        raise ConfigError(
            f"config.model.classifier is {model.classifier!r}, and head {name!r} has none of that: use head "
            "'global' or a linear classifier"
        )
    return ReIDNet(base, head)


def frames_apart(model):
    """Whether the backbone of `config.model` treats the frames of a clip one by one."""
    return getattr(backbones.find(model.backbone), "FRAMES_APART", True)


def encoder(net, parts=1):
    """Encoder of a linen net that takes (x, train).

    parts: gradient accumulation. In training that many parts of the batch go through the net in turn, and
    again in the backward pass, so that the activations of one part are in memory at a time. Losses see the
    features of the whole batch; batch norm takes the statistics of each part, as on so many devices.
    """

    def init(rng, image):
        return dict(net.init(rng, image[:1], False))

    def trained(variables, x, rng):
        rngs = None if rng is None else {"style": rng, "dropout": rng}
        features, changed = net.apply(variables, x, True, mutable=["batch_stats"], rngs=rngs)
        return features, changed.get("batch_stats", {})

    def apply(variables, x, train, rng=None):
        if not train:
            return net.apply(variables, x, False), variables.get("batch_stats", {})
        return in_turn(variables, x, rng) if parts > 1 else trained(variables, x, rng)

    def in_turn(variables, x, rng):
        @jax.checkpoint
        def step(stats, part):
            number, x = part
            key = None if rng is None else jax.random.fold_in(rng, number)
            features, stats = trained({**variables, "batch_stats": stats}, x, key)
            return stats, features

        x = x.reshape(parts, -1, *x.shape[1:])
        stats, features = jax.lax.scan(step, variables["batch_stats"], (jax.numpy.arange(parts), x))
        return jax.tree.map(lambda f: f.reshape(-1, *f.shape[2:]), features), stats

    return Encoder(init, apply)
