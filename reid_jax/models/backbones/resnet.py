"""ResNets in the form used for re-identification, for images and, frame by frame, for clips.

Module names follow torchvision's keys: `layer1_0`, `downsample_0` stand for `layer1.0`, `downsample.0`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.backbones import Backbone
from reid_jax.models.layers import Conv, ceil_max_pool, max_pool
from reid_jax.models.norms import Norms

FIELDS = dict(
    # ResNets: the stem's max pooling. padded (torchvision's) | ceil (fast-reid's: no padding, windows cut off
    # at the lower and right border)
    stem_pool="padded",
    slim_width=8,  # backbone "slim" only, a ResNet: channels of the stem (ResNet-50: 64)
    slim_blocks=(1, 1, 1, 1),  # and blocks of its stages (ResNet-50: 3, 4, 6, 3)
)


class Block(nn.Module):
    """What residual blocks share; the shortcut is projected where the shape changes.

    norms: which norms it has. stage: the stage it stands in, of `stages`; first, last: whether it is that
    within its stage. The norms' hooks read them.
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype | None = None
    norms: Any = Norms()
    stage: int = 1
    stages: int = 4
    first: bool = False
    last: bool = False

    expansion = 1

    def layers(self):
        """Constructors of this block's convolutions, norms and first norm, by name."""
        norm = self.norms.every(self)
        return functools.partial(Conv, dtype=self.dtype), norm, self.norms.first(self, norm)

    def joined(self, y, x, conv, norm, train):
        """The block's output: residual y plus the shortcut of x, and what the norms have behind it."""
        y = y + self.shortcut(x, conv, norm, train)
        after = self.norms.after(self)
        return nn.relu(y if after is None else after(y, train))

    def shortcut(self, x, conv, norm, train):
        out = self.features * self.expansion
        if self.stride == 1 and x.shape[-1] == out:
            return x
        x = conv(out, 1, self.stride, name="downsample_0")(x)
        return norm("downsample_1")(x, train)


class BasicBlock(Block):
    """3x3 (with the stride) - 3x3: [...,H,W,C] -> [...,h,w,features]."""

    @nn.compact
    def __call__(self, x, train):
        conv, norm, first = self.layers()
        y = conv(self.features, 3, self.stride, 1, name="conv1")(x)
        y = nn.relu(first("bn1")(y, train))
        y = conv(self.features, 3, 1, 1, name="conv2")(y)
        y = norm("bn2")(y, train)
        return self.joined(y, x, conv, norm, train)


class Bottleneck(Block):
    """1x1 - 3x3 (with the stride) - 1x1: [...,H,W,C] -> [...,h,w,4 features]."""

    expansion = 4

    @nn.compact
    def __call__(self, x, train):
        conv, norm, first = self.layers()
        y = conv(self.features, 1, name="conv1")(x)
        y = nn.relu(first("bn1")(y, train))
        y = self.middle(conv)(y)
        y = nn.relu(norm("bn2")(y, train))
        y = conv(4 * self.features, 1, name="conv3")(y)
        y = norm("bn3")(y, train)
        return self.joined(y, x, conv, norm, train)

    def middle(self, conv):
        return conv(self.features, 3, self.stride, 1, name="conv2")


class ResNet(Backbone):
    """Images [...,H,W,3] -> maps [...,h,w,C]; 256x128 gives 16x8 with last_stride 1, 8x4 with 2.

    counts: blocks of each stage; a stage of none is left out.
    stem_relu: MMT's net has no ReLU between the stem's batch norm and the max pool (False).
    stem_pool: "padded" or "ceil", see FIELDS.
    width: channels of the stem and of the first stage's inner layers.
    remat: the activations inside a block are computed again in the backward pass instead of kept.
    """

    block: type[Block]
    counts: tuple[int, ...]
    last_stride: int = 1
    stem_relu: bool = True
    stem_pool: str = "padded"
    width: int = 64
    remat: bool = False

    def setup(self):
        self.conv1 = Conv(self.width, 7, 2, 3, dtype=self.dtype)
        self.bn1 = self.norms.stem()
        self.keys = tuple(self.add(stage) for stage in range(self.depth))

    def add(self, stage):
        """Puts the modules of a stage (from 0) in their places; their names in order."""
        names = []
        for index in range(self.counts[stage]):
            for module in self.modules(stage, index):
                names.append(f"layer{stage + 1}_{len(names)}")
                setattr(self, names[-1], module)
        return tuple(names)

    def modules(self, stage, index):
        """The modules of block `index` of a stage, both from 0."""
        return [self.make(self.block, stage, index)]

    def make(self, block, stage, index, **fields):
        stride = (1, *(2,) * (self.depth - 2), self.last_stride)[stage] if index == 0 else 1
        place = dict(stage=stage + 1, stages=self.depth, first=index == 0)
        place["last"] = index == self.counts[stage] - 1
        block = nn.remat(block, static_argnums=(2,)) if self.remat else block
        return block(self.width * 2**stage, stride, self.dtype, self.norms, **place, **fields)

    def stem(self, x, train):
        """The stem's map, before the max pooling."""
        x = self.at("stem", self.conv1(x), train)
        x = self.bn1(x, train)
        return nn.relu(x) if self.stem_relu else x

    def pool(self, x, train):
        """The stem's map as stage 1 gets it."""
        pool = ceil_max_pool if self.stem_pool == "ceil" else max_pool
        return self.at("pool", pool(x), train)

    def stage(self, number, x, train):
        """The map after stage `number`, from 1, of the map before it."""
        for block, name in enumerate(self.keys[number - 1]):
            x = self.at((number, block), getattr(self, name)(x, train), train)
        return self.at(number, x, train)


ResNet18 = functools.partial(ResNet, BasicBlock, (2, 2, 2, 2))
ResNet34 = functools.partial(ResNet, BasicBlock, (3, 4, 6, 3))
ResNet50 = functools.partial(ResNet, Bottleneck, (3, 4, 6, 3))
ResNet101 = functools.partial(ResNet, Bottleneck, (3, 4, 23, 3))


def fields_of(model, dtype, axis_name):
    """The fields of a ResNet that config.model says; ConfigError for an unknown pooling."""
    return dict(
        last_stride=model.last_stride,
        stem_relu=model.stem_relu,
        stem_pool=choice("model.stem_pool", model.stem_pool, ("padded", "ceil")),
        remat=model.remat,
        dtype=dtype,
        axis_name=axis_name,
    )


def _built(net):
    return lambda *settings: net(**fields_of(*settings))


def slim_sizes(model):
    """(blocks of each stage, width) of backbone "slim"; ConfigError for sizes that describe no net."""
    if len(model.slim_blocks) < 2 or min(model.slim_blocks) < 1 or model.slim_width < 1:
        raise ConfigError(
            f"config.model.slim_blocks is {tuple(model.slim_blocks)} and slim_width {model.slim_width}; "
            "slim needs two stages or more, of at least one block and one channel"
        )
    return tuple(model.slim_blocks), model.slim_width


def slim(model, dtype, axis_name):
    """A narrow ResNet of bottlenecks."""
    counts, width = slim_sizes(model)
    return ResNet(Bottleneck, counts, width=width, **fields_of(model, dtype, axis_name))


NAMES = {
    "resnet18": _built(ResNet18),
    "resnet34": _built(ResNet34),
    "resnet50": _built(ResNet50),
    "resnet101": _built(ResNet101),
    "resnet50_ibn_a": _built(ResNet50),
    "c2d_resnet50": _built(ResNet50),  # of every frame
    "slim": slim,
}
NORM = {"resnet50_ibn_a": "ibn_a"}
PUBLISHED = {
    "resnet18": ("resnet18-f37072fd.pth", "torchvision"),
    "resnet34": ("resnet34-b627a593.pth", "torchvision"),
    "resnet50": ("resnet50-0676ba61.pth", "torchvision"),
    "resnet101": ("resnet101-63fe2227.pth", "torchvision"),
    "resnet50_ibn_a": ("resnet50_ibn_a-d9d0bb7b.pth", "XingangPan/IBN-Net"),
}
