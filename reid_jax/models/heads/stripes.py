"""PCB's head (Sun et al., ECCV 2018): a classifier for each horizontal stripe of the map; and RPP's parts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax import models
from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.models.backbones import group_axis
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.layers import BatchNorm, Conv, Dropout, normal, wide
from reid_jax.models.pooling import stripe_pool
from reid_jax.models.weights.names import dotted, leaf_name

FIELDS = dict(
    stripes_parts=6,  # heads "stripes" and "refined": stripes, each with a classifier
    stripes_dim=256,  # numbers that a stripe's classifier sees
    stripes_dropout=0.5,  # of the stripes' means in training
    stripes_shared=False,  # one classifier for all stripes (the paper's "variant 2")
    stripes_test="means",  # means | reduced (of stripes_dim numbers): what a stripe's test feature is
    refined_dim=256,  # head "refined": channels that a pixel's part is told from, means of neighbouring ones
    refined_temperature=1.0,  # factor of its logits
)


class StripesHead(Head):
    """Means g_i of `parts` stripes; dropout, one shared 1x1 convolution, batch norm, ReLU: h_i; classifiers.

    before_bn are the g_i [B,C], after_bn the h_i [B,dim]. The test feature [B,parts C] are the g_i, with
    `reduced` the h_i, each at unit length, one behind the other. shared: one classifier for all. Modules are
    called as in PCB_RPP_for_reID.
    """

    num_classes: int
    parts: int = 6
    dim: int = 256
    dropout: float = 0.5
    axis_name: str | None = None
    rows: int = 0
    dropout_axis: str | None = None  # device axis over which dropout draws as one
    shared: bool = False
    reduced: bool = False

    @property
    def classifiers(self):
        return tuple(f"instance{i}" for i in range(1 if self.shared else self.parts))

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
        g = x.reshape(x.shape[0], self.parts, -1)
        y = Dropout(self.dropout, self.dropout_axis)(g, train)
        y = Conv(self.dim, name="local_conv")(y[:, :, None])
        norm = BatchNorm(axis_name=self.axis_name, rows=self.rows, name="feat_bn2d")
        h = nn.relu(norm(y, train))[:, :, 0]
        after = tuple(h[:, i] for i in range(self.parts))
        layers = [self.classifier(name) for name in self.classifiers]
        logits = tuple(layers[i % len(layers)](a) for i, a in enumerate(after))
        test = h if self.reduced else g
        unit = test / jnp.maximum(jnp.linalg.norm(test, axis=-1, keepdims=True), 1e-12)
        return Branches(logits, tuple(g[:, i] for i in range(self.parts)), after, unit.reshape(len(x), -1))

    def classifier(self, name):
        return nn.Dense(self.num_classes, kernel_init=normal(0.0, 0.001), name=name)


class RefinedHead(StripesHead):
    """StripesHead whose parts are told pixel by pixel (refined part pooling).

    Part i is the mean over all pixels of `parts` w_i x, w_i f[...,H,W] the softmax of a 1x1 convolution of x
    with its channels averaged in groups of neighbours to `channels` and the image's mean taken off.
    """

    local_mask: nn.Module | None = None  # the convolution
    scattered: nn.Module | None = None  # dropout before it
    channels: int = 256
    temperature: float = 1.0

    def pooled(self, base, x, train, **options):
        x = wide(base(x, train, **options))
        w = self.assignment(x, train) * (self.parts / (x.shape[-3] * x.shape[-2]))
        g = jnp.einsum("...hwp,...hwc->...pc", w, x)
        return g.reshape(*g.shape[:-2], -1)

    def assignment(self, x, train):
        """Shares of every pixel in the parts: [...,H,W,C] -> [...,H,W,parts], sums of 1.

        ConfigError unless `channels` divides C.
        """
        if x.shape[-1] % self.channels:
            raise ConfigError(
                f"config.model.refined_dim is {self.channels} and the map has {x.shape[-1]} channels; it "
                "must divide them"
            )
        y = self.scattered(x, train)
        y = y.reshape(*y.shape[:-1], self.channels, -1).mean(-1)
        y = self.local_mask(y - y.mean((-3, -2), keepdims=True))
        return jax.nn.softmax(self.temperature * y, -1)


def build(model, num_classes, axis_name, num_features):
    """StripesHead of config.model; ConfigError for sizes that describe none."""
    return StripesHead(*_settings(model, num_classes, axis_name, num_features))


def refined(model, num_classes, axis_name, num_features):
    """RefinedHead of config.model; ConfigError for sizes that describe none."""
    settings = _settings(model, num_classes, axis_name, num_features)
    within("model", model, refined_dim=(1, None))
    mask = Conv(model.stripes_parts, use_bias=True, bias_init=nn.initializers.zeros)
    extra = (mask, Dropout(model.stripes_dropout, axis_name), model.refined_dim, model.refined_temperature)
    return RefinedHead(*settings, *extra)


def _settings(model, num_classes, axis_name, num_features):
    if model.stripes_parts < 1 or model.stripes_dim < 1 or not 0 <= model.stripes_dropout < 1:
        raise ConfigError(
            f"config.model.stripes_parts is {model.stripes_parts}, stripes_dim {model.stripes_dim} and "
            f"stripes_dropout {model.stripes_dropout}; they must be at least 1, at least 1 and in [0, 1)"
        )
    if num_features:
        raise ConfigError(
            f"config.model.head {model.head!r} has no embedding before its neck; use head 'global'"
        )
    sizes = (model.stripes_parts, model.stripes_dim, model.stripes_dropout)
    reduced = choice("model.stripes_test", model.stripes_test, ("means", "reduced")) == "reduced"
    axes = (group_axis(model, axis_name), model.bn_rows, axis_name)
    return (num_classes, *sizes, *axes, model.stripes_shared, reduced)


NAMES = {"stripes": build, "refined": refined}

_TORCHREID = {"local_conv": "conv5.layers.0", "feat_bn2d": "conv5.layers.1"}


def _pcb(modules, leaf):
    """PCB_RPP_for_reID's name of a leaf: our own, with the trunk's in front."""
    return [".".join([*map(dotted, modules), leaf_name(leaf)])]


def _begins(entries, front):
    return any(key.startswith(front) for key in entries)


def _net(entries):
    """The head of a file of PCB."""
    return {"head": "refined" if _begins(entries, "local_mask.") else "stripes"}


def _torchreid(modules, leaf):
    """torchreid's name of a leaf of its pcb_p6."""
    first, *inside = modules
    if first.startswith("instance"):
        first = f"classifier.{first.removeprefix('instance')}"
    front = [] if first == "base" else [_TORCHREID.get(first, first)]
    return [".".join([*front, *map(dotted, inside), leaf_name(leaf)])]


KEYS = {
    "pcb": models.Keys(_pcb, lambda entries: _begins(entries, "instance0."), fields=_net),
    "pcb_torchreid": models.Keys(_torchreid, lambda entries: _begins(entries, "conv5.layers."), fields=_net),
}
