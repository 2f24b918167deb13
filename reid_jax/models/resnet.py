"""ResNet trunks in the form used for re-identification, for images and, frame by frame, for clips.

Module names follow torchvision's keys: `layer1_0`, `downsample_0` stand for `layer1.0`, `downsample.0`.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.models.layers import AdaptiveNorm, BatchNorm, Conv, InstanceNorm, max_pool


class Block(nn.Module):
    """What residual blocks share; the shortcut is projected where the shape changes."""

    features: int
    stride: int = 1
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    expansion = 1

    def layers(self):
        """Constructors of this block's convolutions and norms."""
        conv = functools.partial(Conv, dtype=self.dtype)
        return conv, functools.partial(BatchNorm, axis_name=self.axis_name)

    def shortcut(self, x, conv, norm, train):
        out = self.features * self.expansion
        if self.stride == 1 and x.shape[-1] == out:
            return x
        x = conv(out, 1, self.stride, name="downsample_0")(x)
        return norm(name="downsample_1")(x, train)


class BasicBlock(Block):
    """3x3 (with the stride) - 3x3: [...,H,W,C] -> [...,h,w,features]."""

    @nn.compact
    def __call__(self, x, train):
        conv, norm = self.layers()
        y = conv(self.features, 3, self.stride, 1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train))
        y = conv(self.features, 3, 1, 1, name="conv2")(y)
        y = norm(name="bn2")(y, train)
        return nn.relu(y + self.shortcut(x, conv, norm, train))


class Bottleneck(Block):
    """1x1 - 3x3 (with the stride) - 1x1: [...,H,W,C] -> [...,h,w,4 features]."""

    expansion = 4

    @nn.compact
    def __call__(self, x, train):
        conv, norm = self.layers()
        y = conv(self.features, 1, name="conv1")(x)
        y = nn.relu(self.first_norm(norm)(y, train))
        y = self.middle(conv)(y)
        y = nn.relu(norm(name="bn2")(y, train))
        y = conv(4 * self.features, 1, name="conv3")(y)
        y = norm(name="bn3")(y, train)
        return nn.relu(y + self.shortcut(x, conv, norm, train))

    def first_norm(self, norm):
        return norm(name="bn1")

    def middle(self, conv):
        return conv(self.features, 3, self.stride, 1, name="conv2")


class InstanceBatchNorm(nn.Module):
    """IBN-a: instance norm on the first half of the channels, batch norm on the others."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        half = x.shape[-1] // 2
        styled = InstanceNorm(name="IN")(x[..., :half])
        return jnp.concatenate(
            [styled, BatchNorm(axis_name=self.axis_name, name="BN")(x[..., half:], train)], -1
        )


class IbnBottleneck(Bottleneck):
    """Bottleneck of IBN-a: the first norm is half instance norm."""

    def first_norm(self, norm):
        return InstanceBatchNorm(self.axis_name, name="bn1")


class AdaptiveBlock:
    """Block whose norms, the shortcut's too, are AIBN layers that share one mixing weight (IICS)."""

    def layers(self):
        conv, _ = super().layers()
        alpha = self.param("adaptive_weight", nn.initializers.constant(0.1), (1,), jnp.float32)

        def norm(name):
            return functools.partial(AdaptiveNorm(axis_name=self.axis_name, name=name), alpha=alpha)

        return conv, norm


class AdaptiveBasicBlock(AdaptiveBlock, BasicBlock):
    """BasicBlock with AIBN."""


class AdaptiveBottleneck(AdaptiveBlock, Bottleneck):
    """Bottleneck with AIBN."""


ADAPTIVE = {BasicBlock: AdaptiveBasicBlock, Bottleneck: AdaptiveBottleneck}


class ResNet(nn.Module):
    """Images [...,H,W,3] -> maps [...,h,w,C]; 256x128 gives 16x8 with last_stride 1, 8x4 with 2.

    stem_relu: MMT's net has no ReLU between the stem's batch norm and the max pool (False).
    dtype: compute type of the convolutions; None: the promoted type of input and parameters.
    width: channels of the stem and of the first stage's inner layers.
    remat: the activations inside a block are computed again in the backward pass instead of kept.
    norm: 'batch', or 'aibn': AIBN in stages 3 and 4, batch norm before.
    refine: None, or function of a stage's number, 1 to 4, that gives a module to put behind it, or None.
    part: (a, b) runs only stages a to b - 1 (from 0) on the map before them; the stem belongs to stage 0.
    """

    block: type[Block]
    counts: tuple[int, ...]
    last_stride: int = 1
    stem_relu: bool = True
    dtype: jnp.dtype | None = None
    axis_name: str | None = None
    width: int = 64
    remat: bool = False
    norm: str = "batch"
    refine: Callable | None = None
    part: tuple[int, int] = (0, 4)

    @nn.compact
    def __call__(self, x, train, stages=False):
        """stages: gives the map before the max pooling and those after every stage, not only the last one."""
        maps, strides = [], (1, 2, 2, self.last_stride)
        if stages and self.part[0] == 0:
            maps.append(self.stem(x, train, pooled=False))
            x = max_pool(maps[0])
        elif self.part[0] == 0:
            x = self.stem(x, train)
        for stage in range(*self.part):
            place = 0  # of the next module among the stage's keys
            for index in range(self.counts[stage]):
                for module in self.modules(stage, index, strides[stage] if index == 0 else 1, place):
                    x = module(x, train)
                    place += 1
            maps.append(x := refined(self.refine, stage + 1, x))
        return maps if stages else x

    def stem(self, x, train, pooled=True):
        x = Conv(self.width, 7, 2, 3, dtype=self.dtype, name="conv1")(x)
        x = BatchNorm(axis_name=self.axis_name, name="bn1")(x, train)
        x = nn.relu(x) if self.stem_relu else x
        return max_pool(x) if pooled else x

    def modules(self, stage, index, stride, place):
        """The modules of block `index` of a stage (both from 0); the first takes key `place`."""
        adaptive = self.norm == "aibn" and stage >= 2
        return [self.make(ADAPTIVE[self.block] if adaptive else self.block, stage, stride, place)]

    def make(self, block, stage, stride, place, **fields):
        name = f"layer{stage + 1}_{place}"
        block = nn.remat(block, static_argnums=(2,)) if self.remat else block
        return block(self.width * 2**stage, stride, self.dtype, self.axis_name, **fields, name=name)


def refined(refine, stage, x):
    """x after the module that `refine` has for a stage, see ResNet."""
    module = refine(stage) if refine else None
    return x if module is None else module(x)


class IbnResNet(ResNet):
    """ResNet-IBN-a (Pan et al., ECCV 2018): half instance norm in all stages but the last."""

    def modules(self, stage, index, stride, place):
        return [self.make(IbnBottleneck if stage < 3 else self.block, stage, stride, place)]


ResNet18 = functools.partial(ResNet, BasicBlock, (2, 2, 2, 2))
ResNet34 = functools.partial(ResNet, BasicBlock, (3, 4, 6, 3))
ResNet50 = functools.partial(ResNet, Bottleneck, (3, 4, 6, 3))
ResNet101 = functools.partial(ResNet, Bottleneck, (3, 4, 23, 3))
ResNet50Ibn = functools.partial(IbnResNet, Bottleneck, (3, 4, 6, 3))
