"""Branches on regions of a map (Tay et al., CVPR 2019): bands around peaks, attributes and their maps."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.models.layers import BatchNorm, Conv, normal, wide

REGIONS = {"whole": (0, 1), "top": (0, 1 / 3), "middle": (1 / 3, 2 / 3), "lower": (1 / 2, 1)}  # of the height


class Neck(nn.Module):
    """Linear layer, batch norm, ReLU, classifier: f[B,C] -> (f[B,dim], f[B,num_classes])."""

    num_classes: int
    dim: int
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x, train):
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        x = nn.Dense(self.dim, use_bias=False, kernel_init=init, name="reduce")(x)
        x = nn.relu(self.norm(name="bn")(x, train))
        return x, nn.Dense(self.num_classes, kernel_init=normal(0.0, 0.001), name="classifier")(x)


class AttributeNet(nn.Module):
    """Backbone `base` and the branches of `own`.

    own: tasks of global, part, attribute, aam; parts, reach (see `bands`); dim, part_dim of the vectors;
    attributes (name, classes, region of REGIONS); aam_threshold, aam_gradient (see `attention`).
    Images [B,H,W,3] -> {"vectors": [f[B,E_i]], "logits": {task: [f[B,K_i]]}, "map": f[B,h,w] or None}.
    """

    base: nn.Module
    own: Any
    num_classes: int
    norm: Any = BatchNorm

    frozen, classifiers = (), ("classifier",)

    @property
    def top(self):
        """Whoever looks for the classifiers finds them here."""
        return self

    @property
    def bounds(self):
        """((pattern, least, most), ...): parameters clipped after every step, see norms."""
        return getattr(getattr(self.base, "norms", None), "bounds", ())

    @nn.compact
    def __call__(self, x, train):
        x, settings = wide(self.base(x, train)), self.own
        neck = functools.partial(Neck, self.num_classes, norm=self.norm)
        inputs = {"global": [x.mean((1, 2))], "part": lambda: list(bands(x, settings.parts, settings.reach))}
        outputs = {"logits": {}, "vectors": [], "map": None}
        self.param("log_variance", nn.initializers.zeros, (len(settings.tasks),), jnp.float32)
        if "attribute" in settings.tasks:
            outputs["logits"]["attribute"], outputs["map"] = self.attributes(x, train)
            weight = outputs["map"] if settings.aam_gradient else lax.stop_gradient(outputs["map"])
            inputs["aam"] = [(x * weight[..., None]).mean((1, 2))]
        for task in (t for t in settings.tasks if t != "attribute"):
            vectors = inputs[task]() if callable(inputs[task]) else inputs[task]
            dim = settings.part_dim if task == "part" else settings.dim
            pairs = [neck(dim, name=f"{task}{i}")(vector, train) for i, vector in enumerate(vectors)]
            outputs["vectors"] += [vector for vector, _ in pairs]
            outputs["logits"][task] = [logits for _, logits in pairs]
        return outputs

    def attributes(self, x, train):
        """([f[B,classes]] of every attribute, their activation map f[B,h,w]) of maps f[B,h,w,C]."""
        x = Conv(self.own.dim, name="attribute")(x)
        x = nn.relu(self.norm(name="attribute_bn")(x, train))
        predictions, maps = [], []
        for number, (_, classes, region) in enumerate(self.own.attributes):
            layer = nn.Dense(int(classes), kernel_init=normal(0.0, 0.01), name=f"attribute{number}")
            predictions.append(logits := layer(rows_of(x, *REGIONS[region]).mean((1, 2))))
            kernel = layer.variables["params"]["kernel"][:, logits.argmax(-1)]  # of the predicted class
            maps.append(jnp.einsum("bhwc,cb->bhw", x, kernel))
        return predictions, attention(jnp.stack(maps, 1), self.own.aam_threshold)


def rows_of(x, first, last):
    """The rows of maps f[B,h,w,C] from share `first` to share `last` of the height, one at least."""
    height = x.shape[1]
    start = min(int(height * first), height - 1)
    return x[:, start : max(round(height * last), start + 1)]


def bands(x, parts, reach):
    """f[parts,B,C]: means of maps f[B,h,w,C] over bands of rows around peaks of activation.

    Every channel's largest entry lies in one of `parts` equal bands; a band's peak is the mean row of those
    in it (the band's middle without any), its box all columns up to reach * h rows above and below. Peaks
    carry no gradient.
    """
    height, width = x.shape[1:3]
    flat = lax.stop_gradient(x).reshape(len(x), height * width, -1)
    row = flat.argmax(1) // width  # [B,C]
    mine = jax.nn.one_hot(row * parts // height, parts, dtype=x.dtype)  # [B,C,parts]
    count, middle = mine.sum(1), (jnp.arange(parts) + 0.5) * height / parts - 0.5
    total = jnp.einsum("bcp,bc->bp", mine, row.astype(x.dtype))
    peak = jnp.where(count > 0, total / jnp.maximum(count, 1), middle)
    distance = jnp.abs(jnp.arange(height) - peak[..., None])  # [B,parts,h]
    near = (distance <= jnp.maximum(reach * height, distance.min(-1, keepdims=True))).astype(x.dtype)
    return jnp.einsum("bph,bhc->pbc", near / near.sum(-1, keepdims=True), x.mean(2))


def attention(maps, threshold):
    """f[B,h,w]: the largest of maps f[B,A,h,w], each scaled to 0..1; 0 below threshold."""
    low, high = maps.min((2, 3), keepdims=True), maps.max((2, 3), keepdims=True)
    largest = ((maps - low) / jnp.maximum(high - low, 1e-12)).max(1)
    return jnp.where(largest >= threshold, largest, 0)
