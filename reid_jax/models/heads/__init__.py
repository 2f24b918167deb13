"""The re-identification net, backbone and head, of a config; and its view as pure functions.

Heads are found by name; a module lists its own in NAMES, {config.model.head: (config.model, num_classes,
axis_name, num_features) -> Head}.
"""

from typing import Any, NamedTuple

import jax

from reid_jax import models
from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace, overlay
from reid_jax.models import backbones, classifiers
from reid_jax.models.backbones import build as trunk
from reid_jax.models.heads._branches import Branches, Head, ReIDNet
from reid_jax.models.heads.pooled import ContrastHead, GlobalHead
from reid_jax.models.heads.stripes import StripesHead
from reid_jax.models.pooling import spatial_pool

__all__ = ["BACKBONES", "Branches", "ContrastHead", "Encoder", "GlobalHead", "Head", "ReIDNet", "StripesHead"]
__all__ += ["build", "encoder", "frames_apart", "image_size", "spatial_pool", "trunk"]

BACKBONES = backbones.names()


class Encoder(NamedTuple):
    """A net as pure functions; the train steps know no more of it.

    init(rng, image [N,H,W,3]) -> {'params', 'batch_stats'}
    apply(variables, x [B,H,W,3], train: bool, rng=None, camera=None) -> (Branches, batch_stats), unchanged
      ones with train False; rng: of style layers and dropout in training, the same on all devices; camera:
      i32[B], for nets whose features depend on it
    """

    init: Any
    apply: Any


def build(model, num_classes, axis_name=None, num_features=0, num_cams=0, domains=1, test_domain=0):
    """ReIDNet of `config.model`, or of a dict with some of its fields, the others at their defaults.

    axis_name: the train step's device axis, over which norms take their statistics where model.bn_group is
    'global', and over which random layers draw as one. num_cams: training cameras, of a method that hands
    every picture's over. domains: G > 1: every batch norm has statistics, scales and biases for each of G
    domains, whose rows come one after the other in training; all rows are of test_domain in test mode. Raises
    ConfigError for a name it does not know and for a head of other backbones.
    """
    if isinstance(model, dict):
        model = namespace(overlay(models.fields(), model, "model."))
    offered = models.offers("heads")
    name = choice("model.head", model.head, tuple(offered))
    base = trunk(model, axis_name, num_cams=num_cams, domains=domains, test_domain=test_domain)
    head = offered[name].NAMES[name](model, num_classes, axis_name, num_features)
    if domains > 1 and not hasattr(head, "domains"):
        raise ConfigError(
            f"config.model.head {name!r} cannot have norms by domain: use head 'contrast' or 'global'"
        )
    if domains > 1:
        head = head.clone(domains=domains, test_domain=test_domain)
    if classifiers.margin(model) != getattr(head, "margin", None):
        raise ConfigError(
            f"config.model.classifier is {model.classifier!r}, and head {name!r} has none of that: use head "
            "'global', 'mgn' or a linear classifier"
        )
    if head.tokens != base.tokens:
        raise ConfigError(
            f"config.model.head {name!r} cannot stand on config.model.backbone {model.backbone!r}: heads "
            f"token and jpm are for ViTs, and ViTs for them; use head={'token' if base.tokens else 'global'}"
        )
    if base.outputs != head.maps:
        raise ConfigError(
            f"config.model.head {name!r} takes {head.maps} map(s) and config.model.backbone "
            f"{model.backbone!r} gives {base.outputs}: choose a head and a backbone that belong together"
        )
    return ReIDNet(base, head)


def frames_apart(model):
    """Whether the backbone of `config.model` treats the frames of a clip one by one."""
    return getattr(backbones.find(model.backbone), "FRAMES_APART", True)


def image_size(model):
    """(height, width) of images for the net of `config.model`: its only ones, or such as all heads take."""
    return getattr(backbones.find(model.backbone), "SIZE", (384, 128))


def encoder(net, parts=1):
    """Encoder of a linen net that takes (x, train), and (x, train, camera) if it `wants_camera`.

    parts: gradient accumulation. In training that many parts of the batch go through the net in turn, and
    again in the backward pass, so that the activations of one part are in memory at a time. Losses see the
    features of the whole batch; batch norm takes the statistics of each part, as on so many devices.
    """

    def init(rng, image):
        return dict(net.init(rng, image[:1], False))

    def inputs(x, train, camera):
        return (x, train, camera) if getattr(net, "wants_camera", False) else (x, train)

    def trained(variables, x, rng, camera):
        rngs = None if rng is None else {"style": rng, "dropout": rng}
        args = inputs(x, True, camera)
        features, changed = net.apply(variables, *args, mutable=["batch_stats"], rngs=rngs)
        return features, changed.get("batch_stats", {})

    def apply(variables, x, train, rng=None, camera=None):
        if not train:
            return net.apply(variables, *inputs(x, False, camera)), variables.get("batch_stats", {})
        return (in_turn if parts > 1 else trained)(variables, x, rng, camera)

    def in_turn(variables, x, rng, camera):
        @jax.checkpoint
        def step(stats, part):
            number, x, camera = part
            key = None if rng is None else jax.random.fold_in(rng, number)
            features, stats = trained({**variables, "batch_stats": stats}, x, key, camera)
            return stats, features

        x, camera = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), (x, camera))
        chunks = jax.numpy.arange(parts), x, camera
        stats, features = jax.lax.scan(step, variables["batch_stats"], chunks)
        return jax.tree.map(lambda f: f.reshape(-1, *f.shape[2:]), features), stats

    return Encoder(init, apply)
