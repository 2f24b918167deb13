"""DenseNet-121 (Huang et al., CVPR 2017), modules called as in torchvision.

densenet121: 1,024 channels; densenet121_double: its map beside itself, 2,048 channels, as MEB-Net's. Strides
are those of ImageNet's nets: config.model.last_stride has no meaning here.
"""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models import Keys
from reid_jax.models.backbones import Backbone, seen
from reid_jax.models.layers import Conv, max_pool
from reid_jax.models.norms import Norms
from reid_jax.models.weights import names

FIELDS = dict(
    densenet_counts=(6, 12, 24, 16),  # backbones "densenet121": layers of each block,
    densenet_growth=32,  # channels that each adds; the stem has twice as many
)
INNER = 4  # channels between a layer's convolutions, times those that it adds


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution, joined to the input."""

    features: int
    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        y = nn.relu(self.norms.batch(name="norm1")(x, train))
        y = Conv(INNER * self.features, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(self.norms.batch(name="norm2")(y, train))
        y = Conv(self.features, 3, padding=1, dtype=self.dtype, name="conv2")(y)
        return jnp.concatenate([x, y], -1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution to half of the channels, 2x2 average pooling."""

    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        y = nn.relu(self.norms.batch(name="norm")(x, train))
        y = Conv(x.shape[-1] // 2, dtype=self.dtype, name="conv")(y)
        *lead, height, width, channels = y.shape
        y = seen(y[..., : height // 2 * 2, : width // 2 * 2, :])
        return y.reshape(*lead, height // 2, 2, width // 2, 2, channels).mean((-4, -2))


class DenseNet(Backbone):
    """Images [...,H,W,3] -> maps [...,H/32,W/32,C] after the last norm and a ReLU."""

    counts: tuple[int, ...] = FIELDS["densenet_counts"]
    growth: int = FIELDS["densenet_growth"]
    double: bool = False  # the last map beside itself

    only_batch_norm = True

    def setup(self):
        fields = dict(dtype=self.dtype, norms=self.norms)
        self.conv0 = Conv(2 * self.growth, 7, 2, 3, dtype=self.dtype)
        self.norm0 = self.norms.stem()
        for block, count in enumerate(self.counts, 1):
            for layer in range(1, count + 1):
                setattr(self, f"denseblock{block}_denselayer{layer}", DenseLayer(self.growth, **fields))
            if block < self.depth:
                setattr(self, f"transition{block}", Transition(**fields))
        self.norm5 = self.norms.batch()

    def stem(self, x, train):
        """The stem's map."""
        return nn.relu(self.norm0(self.at("stem", self.conv0(x), train), train))

    def pool(self, x, train):
        return self.at("pool", max_pool(x), train)

    def stage(self, number, x, train):
        """The map after block `number`, from 1, of the map before it."""
        if number > 1:
            x = getattr(self, f"transition{number - 1}")(x, train)
        for layer in range(1, self.counts[number - 1] + 1):
            x = getattr(self, f"denseblock{number}_denselayer{layer}")(x, train)
        if number == self.depth:
            x = nn.relu(self.norm5(x, train))
            x = jnp.concatenate([x, x], -1) if self.double else x
        return self.at(number, x, train)


def _built(double):
    def build(model, dtype, axis_name):
        counts = tuple(model.densenet_counts)
        if not counts or min(counts) < 1 or model.densenet_growth < 1:
            raise ConfigError(
                f"config.model.densenet_counts is {counts} and densenet_growth {model.densenet_growth}; a "
                "DenseNet has blocks of a layer or more, which add a channel or more"
            )
        return DenseNet(counts, model.densenet_growth, double, dtype=dtype, axis_name=axis_name)

    return build


NAMES = {"densenet121": _built(False), "densenet121_double": _built(True)}
PUBLISHED = dict.fromkeys(NAMES, ("densenet121-a639ec97.pth", "torchvision"))

# ---- other people's files

_FRONTS = ("features.", "base.", "base.0.", "backbone.features.", "model.features.")


def _names(modules, leaf):
    if modules[0] != "base":
        return names.keys(("params", *modules, leaf), "torchvision")
    path, name = ".".join(modules[1:]).replace("_", "."), names.leaf_name(leaf)
    older = re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)$", r"\1.\2", path)  # in torchvision's own files
    return [f"{front}{p}.{name}" for p in dict.fromkeys((path, older)) for front in _FRONTS]


def _matches(entries):
    return any(re.search(r"denseblock1\.denselayer1\.conv\.?1\.weight$", k) for k in entries)


KEYS = {"densenet": Keys(_names, _matches, fields=lambda entries: {"backbone": "densenet121"})}
