"""ResNeSt-50 (Zhang et al., CVPR workshops 2022): ResNet with split attention.

Deep stem, average pooling before the shortcut's convolution and after the attention of a stage's first
block. Module names follow the reference's keys: `conv1_0` is `conv1.0`.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.models.backbones import Backbone
from reid_jax.models.backbones.resnet import Block
from reid_jax.models.layers import BatchNorm, Conv, max_pool, over_images


def average_pool(x, window, stride, padding, **options):
    """flax's average pooling of [...,H,W,C], leading axes taken as one."""
    return over_images(lambda x: nn.avg_pool(x, (window,) * 2, (stride,) * 2, padding, **options), x)


class SplitAttention(nn.Module):
    """3x3 convolution into `radix` groups of channels, weighted against each other by attention.

    [...,H,W,C] -> [...,H,W,features]. cardinality: groups of the convolution in each part. In training
    bn1 normalises over the images alone, so one image is not enough.
    """

    features: int
    radix: int = 2
    cardinality: int = 1
    dilation: int = 1
    dtype: jnp.dtype | None = None
    norm: Callable = BatchNorm  # constructor of its norms

    @nn.compact
    def __call__(self, x, train):
        conv, norm = functools.partial(Conv, dtype=self.dtype), self.norm
        groups, inner = self.cardinality, max(x.shape[-1] * self.radix // 4, 32)
        wide = self.features * self.radix
        split = groups * self.radix
        x = conv(wide, 3, 1, self.dilation, self.dilation, split, name="conv")(x)
        parts = jnp.split(nn.relu(norm(name="bn0")(x, train)), self.radix, -1)
        gap = sum(parts).mean((-3, -2), keepdims=True)
        gap = conv(inner, groups=groups, use_bias=True, name="fc1")(gap)
        gap = nn.relu(norm(name="bn1")(gap, train))
        weights = self.attention(conv(wide, groups=groups, use_bias=True, name="fc2")(gap))
        return sum(w * p for w, p in zip(weights, parts, strict=True))

    def attention(self, scores):
        """[...,1,1,radix features], ordered by (cardinality, radix) -> each part's weights (softmax)."""
        lead = scores.shape[:-1]
        scores = scores.reshape(*lead, self.cardinality, self.radix, -1)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        weights = jax.nn.softmax(scores, -2) if self.radix > 1 else jax.nn.sigmoid(scores)
        weights = weights.astype(self.dtype or weights.dtype)
        return [weights[..., r, :].reshape(*lead, -1) for r in range(self.radix)]


class SplitBottleneck(Block):
    """1x1 - split attention - average pool with the stride - 1x1.

    avd: the average pool is there, also with stride 1 (first block of stages 2 to 4).
    """

    avd: bool = False
    dilation: int = 1
    radix: int = 2
    cardinality: int = 1
    width: int = 64  # bottleneck width

    expansion = 4

    @nn.compact
    def __call__(self, x, train):
        conv, norm, _ = self.layers()
        middle = int(self.features * self.width / 64) * self.cardinality
        y = nn.relu(norm("bn1")(conv(middle, 1, name="conv1")(x), train))
        shape = (middle, self.radix, self.cardinality, self.dilation)
        y = SplitAttention(*shape, self.dtype, self.norms.batch, name="conv2")(y, train)
        if self.avd:
            y = average_pool(y, 3, self.stride, ((1, 1), (1, 1)))
        y = norm("bn3")(conv(4 * self.features, 1, name="conv3")(y), train)
        return self.joined(y, x, conv, norm, train)

    def shortcut(self, x, conv, norm, train):
        out = self.features * self.expansion
        if self.stride == 1 and x.shape[-1] == out:
            return x
        if self.stride > 1:  # windows over the edge average the pixels they have
            edge = [(0, -size % self.stride) for size in x.shape[-3:-1]]
            x = average_pool(x, self.stride, self.stride, edge, count_include_pad=False)
        return norm("downsample_2")(conv(out, name="downsample_1")(x), train)


class ResNeSt(Backbone):
    """Images [...,H,W,3] -> maps [...,h,w,2048]; 256x128 gives 16x8 with last_stride 1, 8x4 with 2.

    last_stride 1 is fast-reid's form: stage 4 keeps the resolution, its second and third block have
    convolutions of dilation 2.
    """

    last_stride: int = 1
    counts: tuple[int, ...] = (3, 4, 6, 3)
    radix: int = 2
    cardinality: int = 1
    width: int = 64  # bottleneck width
    stem_width: int = 32

    only_batch_norm = True

    def setup(self):
        for key, (features, stride) in self.stem_shapes().items():
            setattr(self, f"conv1_{key}", Conv(features, 3, stride, 1, dtype=self.dtype))
        self.conv1_1, self.conv1_4, self.bn1 = (self.norms.batch() for _ in range(3))
        for stage, count in enumerate(self.counts):
            for index in range(count):
                setattr(self, f"layer{stage + 1}_{index}", self.make(stage, index))

    def stem_shapes(self):
        """{key: (features, stride)} of the three 3x3 convolutions in place of ResNet's 7x7."""
        return {0: (self.stem_width, 2), 3: (self.stem_width, 1), 6: (2 * self.stem_width, 1)}

    def make(self, stage, index):
        """Block `index` of a stage, both from 0."""
        first, stride = index == 0, (1, 2, 2, self.last_stride)[stage]
        return SplitBottleneck(
            64 * 2**stage,
            stride if first else 1,
            self.dtype,
            self.norms,
            avd=first and stage > 0,
            dilation=2 if stage == 3 and stride == 1 and not first else 1,
            radix=self.radix,
            cardinality=self.cardinality,
            width=self.width,
        )

    def stem(self, x, train):
        """The stem's map, before the max pooling."""
        for conv, norm in ((self.conv1_0, self.conv1_1), (self.conv1_3, self.conv1_4)):
            x = nn.relu(norm(conv(x), train))
        return nn.relu(self.bn1(self.at("stem", self.conv1_6(x), train), train))

    def pool(self, x, train):
        """The stem's map as stage 1 gets it."""
        return self.at("pool", max_pool(x), train)

    def stage(self, number, x, train):
        """The map after stage `number`, from 1, of the map before it."""
        for index in range(self.counts[number - 1]):
            x = getattr(self, f"layer{number}_{index}")(x, train)
        return self.at(number, x, train)


def build(model, dtype, axis_name):
    """ResNeSt-50 of config.model."""
    return ResNeSt(model.last_stride, dtype=dtype, axis_name=axis_name)


NAMES = {"resnest50": build}
