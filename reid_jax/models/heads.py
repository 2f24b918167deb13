"""The re-identification net: backbone, pooling, neck, classifier; and its view as pure functions."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models import narrow, resnest, resnet, video
from reid_jax.models.layers import BatchNorm

_RESNETS = {
    "resnet18": resnet.ResNet18,
    "resnet34": resnet.ResNet34,
    "resnet50": resnet.ResNet50,
    "resnet101": resnet.ResNet101,
    "resnet50_ibn_a": resnet.ResNet50Ibn,
    "c2d_resnet50": resnet.ResNet50,  # of every frame
}
_VIDEO = {"ap3d_resnet50": video.Ap3dResNet50, "ap3dnl_resnet50": video.Ap3dNlResNet50}
BACKBONES = (*_RESNETS, "resnest50", *_VIDEO, "narrow", "slim")
PLAIN = ("resnest50", "resnet50_ibn_a", *_VIDEO)  # no AIBN, nothing between the stages
_DTYPES = {"float32": None, "float64": None, "bfloat16": jnp.bfloat16}  # None: the promoted type


class Features(NamedTuple):
    """What a net returns, at least float32 whatever the compute type."""

    before_bn: jax.Array  # [B,D] pooled vector
    after_bn: jax.Array  # [B,D] after the neck
    logits: jax.Array  # [B,K] from after_bn


class Branches(NamedTuple):
    """What a net of one or several heads returns."""

    logits: tuple
    before_bn: tuple
    after_bn: tuple
    test: jax.Array


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
    """[...,H,W,C] -> [...,C]: mean ('avg') or maximum ('max') over the map."""
    if choice("model.pool", pool, ("avg", "max")) == "avg":
        return x.mean((-3, -2))
    return x.max((-3, -2))


class ReIDNet(nn.Module):
    """Backbone `base`, pooling, `neck`, `classifier`: images [B,H,W,3] or clips [B,T,H,W,3] -> Features.

    A clip's vector is the mean of its frames'.

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

    def __call__(self, x, train):
        x = self.vectors(x, train)
        return self.head(x.mean(1) if x.ndim == 3 else x, train)

    def vectors(self, x, train):
        """Pooled vectors of images [B,H,W,3] -> [B,C], or of every frame of clips [B,T,H,W,3] -> [B,T,C]."""
        y = self.base(x, train)
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return spatial_pool(y, self.pool) if y.ndim == x.ndim else y

    @nn.compact
    def head(self, x, train):
        """Features of pooled vectors [B,C], one for each image or clip."""
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
    choice("model.pool", model.pool, ("avg", "max"))
    choice("model.neck", model.neck, ("ap3d", "bnneck", "none"))
    base = trunk(model, axis_name)
    if model.bn_group == "device":
        axis_name = None
    return ReIDNet(base, num_classes, model.pool, model.neck, num_features, axis_name)


def frames_apart(model):
    """Whether the backbone of `config.model` treats the frames of a clip one by one."""
    return model.backbone not in _VIDEO


def trunk(model, axis_name, refine=None):
    """The backbone of config.model, images [...,H,W,3] -> maps; axis_name as in `build`.

    refine: see resnet.ResNet, for ResNets, slim and narrow.
    """
    choice("model.backbone", model.backbone, BACKBONES)
    choice("model.last_stride", model.last_stride, (1, 2))
    choice("model.norm", model.norm, ("batch", "aibn"))
    dtype = _DTYPES[choice("model.dtype", model.dtype, tuple(_DTYPES))]
    if choice("model.bn_group", model.bn_group, ("device", "global")) == "device":
        axis_name = None
    if model.backbone == "narrow":
        narrow.check(model)
        widths = tuple(model.narrow_widths)
        fields = (model.narrow_stripes, model.narrow_dim, dtype, axis_name)
        return narrow.Narrow(widths, *fields, norm=model.norm, refine=refine)
    if model.backbone in PLAIN and (model.norm != "batch" or refine):
        raise ConfigError(
            f"config.model.backbone {model.backbone!r} has neither AIBN (config.model.norm) nor modules "
            "between its stages; use resnet18, resnet34, resnet50, resnet101, slim or narrow"
        )
    if model.backbone == "resnest50":
        return resnest.ResNeSt(model.last_stride, dtype=dtype, axis_name=axis_name)
    shared = (model.last_stride, model.stem_relu, dtype, axis_name)
    between = dict(norm=model.norm, refine=refine, remat=model.remat)
    if model.backbone == "slim":
        counts, width = tuple(model.slim_blocks), model.slim_width
        return resnet.ResNet(resnet.Bottleneck, counts, *shared, width=width, **between)
    if model.backbone in _VIDEO:
        fields = dict(temperature=model.ap3d_temperature, contrastive=model.ap3d_contrastive)
        return _VIDEO[model.backbone](*shared, **fields, remat=model.remat)
    return _RESNETS[model.backbone](*shared, **between)


def encoder(net, parts=1):
    """Encoder of a linen net that takes (x, train).

    parts: gradient accumulation. In training that many parts of the batch go through the net in turn, and
    again in the backward pass, so that the activations of one part are in memory at a time. Losses see the
    features of the whole batch; batch norm takes the statistics of each part, as on so many devices.
    """

    def init(rng, image):
        return dict(net.init(rng, image[:1], False))

    def apply(variables, x, train):
        if not train:
            return net.apply(variables, x, False), variables["batch_stats"]
        if parts > 1:
            return in_turn(variables, x)
        features, changed = net.apply(variables, x, True, mutable=["batch_stats"])
        return features, changed["batch_stats"]

    def in_turn(variables, x):
        @jax.checkpoint
        def one(stats, x):
            own = {**variables, "batch_stats": stats}
            features, changed = net.apply(own, x, True, mutable=["batch_stats"])
            return changed["batch_stats"], features

        x = x.reshape(parts, -1, *x.shape[1:])
        stats, features = jax.lax.scan(one, variables["batch_stats"], x)
        return jax.tree.map(lambda f: f.reshape(-1, *f.shape[2:]), features), stats

    return Encoder(init, apply)


def trainable_mask(params):
    """The tree of `params` with True where a leaf is trained: all but the bias of a frozen neck.

    A neck is frozen exactly where the classifier has no bias (`neck: bnneck`).
    """
    mask = jax.tree.map(lambda _: True, params)
    if "neck" in params and "bias" not in params["classifier"]:
        mask = {**mask, "neck": {**mask["neck"], "bias": False}}
    return mask
