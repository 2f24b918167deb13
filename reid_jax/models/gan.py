"""Networks of image generators: AdaIN decoder with its MLPs, multi-scale patch discriminator.

Submodules are called as in the keys of DG-Net and of those who built on it, with `_0` for `.0`. Images and
maps are [B,H,W,C].
"""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.models.blocks import HE, ConvBlock, Mlp, Residual, doubled, leaky, upsample
from reid_jax.models.layers import Conv, instance_norm, normal, wide


class AdaptiveResidual(nn.Module):
    """Two reflected 3x3 convolutions, each with AdaIN; the input is added, no last activation."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, scale, shift):
        """scale, shift [B,2 C]: of the first and the second AdaIN."""
        y = x
        for i, (s, b) in enumerate(zip(jnp.split(scale, 2, -1), jnp.split(shift, 2, -1), strict=True)):
            y = ConvBlock(x.shape[-1], 3, dtype=self.dtype, name=f"model_{i}")(y)
            y = instance_norm(y, s[:, None, None], b[:, None, None])
            y = leaky(y) if i == 0 else y
        return x + y


class Residuals(nn.Module):
    """AdaptiveResiduals `model_0`, ..., one for each pair of scale and shift."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, scales, shifts):
        for i, (scale, shift) in enumerate(zip(scales, shifts, strict=True)):
            x = AdaptiveResidual(self.dtype, name=f"model_{i}")(x, scale, shift)
        return x


class Upsampling(nn.Module):
    """Twice the size, 5x5 convolution to half the channels, layer norm."""

    nearest: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        x = doubled(x) if self.nearest else upsample(x, 2 * x.shape[1], 2 * x.shape[2])
        options = dict(norm="layer", act=leaky, dtype=self.dtype, name="conv")
        return ConvBlock(x.shape[-1] // 2, 5, **options)(x)


class Decoder(nn.Module):
    """Content [B,h,w,C] with modulation -> image [B,4h,4w,3], linear.

    doublings: times that the size is doubled. nearest: by repeated pixels, else bilinear.
    """

    doublings: int = 2
    nearest: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, c, scales, shifts):
        x = Residuals(self.dtype, name="res")(c, scales, shifts)
        for i in range(self.doublings):
            x = Upsampling(self.nearest, self.dtype, name=f"up_{i}")(x)
        for i in range(2):
            x = ConvBlock(x.shape[-1], 3, act=leaky, dtype=self.dtype, name=f"convs_{i}")(x)
        return ConvBlock(3, dtype=self.dtype, name="convs_2")(x)


class Discriminator(nn.Module):
    """Multi-scale PatchGAN without norm: images -> score maps [B,h_s,w_s,1], the finest (H/4) first.

    std: of the initial weights; 0: He's. bias: whether the 3x3 convolutions before the residual blocks have
    one. halvings: times that each scale halves its size on the way, doubling its channels but for the first.
    """

    scales: int = 3
    width: int = 32
    blocks: int = 4
    std: float = 0.02
    bias: bool = False
    halvings: int = 2
    dtype: jnp.dtype | None = None

    def setup(self):
        self.nets = [self._layers() for _ in range(self.scales)]

    def _layers(self):
        init = normal(0.0, self.std) if self.std else HE
        block = dict(act=leaky, init=init, dtype=self.dtype)
        blocks = [ConvBlock(self.width, **block)]
        widths = [min(self.width * 2**i, 512) for i in range(self.halvings)]
        for before, after in zip([self.width, *widths], widths, strict=False):
            blocks.append(ConvBlock(before, 3, use_bias=self.bias, **block))
            blocks.append(ConvBlock(after, 3, 2, use_bias=self.bias, **block))
        blocks += [Residual("none", init, self.dtype) for _ in range(self.blocks)]
        zeros = nn.initializers.zeros
        return [*blocks, Conv(1, use_bias=True, init=init, bias_init=zeros, dtype=self.dtype)]

    def __call__(self, x):
        return [self.scale(x, s) for s in range(self.scales)]

    def scale(self, x, s):
        """Score map [B,h,w,1] of scale s (0 is the finest), from images at full size."""
        return wide(self.nets[s][-1](self.features(x, s)))

    def features(self, x, s):
        """Map [B,h,w,C] before the last layer."""
        for _ in range(s):
            x = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False)
        for layer in self.nets[s][:-1]:
            x = layer(x)
        return x

    def pooled(self, x):
        """Means of `features` over the map, all scales: [B,scales * C]."""
        return jnp.concatenate([wide(self.features(x, s)).mean((1, 2)) for s in range(self.scales)], -1)


class Generator(nn.Module):
    """Content [B,h,w,C] and a code [B,D] -> image [B,4h,4w,3] in the normalised space.

    blocks: residual blocks, each modulated by two MLPs of the code; hidden: width of the MLPs. pieces: 0:
    every MLP sees the whole code; else there are as many pairs of MLPs, each of its part of the code (pieces
    of consecutive entries), and pairs beyond the blocks have no effect.
    """

    content_dim: int = 128
    hidden: int = 512
    blocks: int = 4
    pieces: int = 0
    doublings: int = 2
    nearest: bool = False
    dtype: jnp.dtype | None = None

    def setup(self):
        def mlp():
            return Mlp((self.hidden, self.hidden, 2 * self.content_dim))

        for k in range(1, (self.pieces or self.blocks) + 1):
            setattr(self, f"mlp_w{k}", mlp())
            setattr(self, f"mlp_b{k}", mlp())
        self.dec = Decoder(self.doublings, self.nearest, self.dtype)

    def __call__(self, c, d):
        return self.dec(c, *self.modulation(d))

    def modulation(self, d):
        """(scales, shifts), a list of [B,2 C] each, one for every block."""
        d = wide(d)
        seen = jnp.split(d, self.pieces, -1) if self.pieces else [d] * self.blocks
        outputs = [[getattr(self, f"mlp_{letter}{k}")(x) for k, x in enumerate(seen, 1)] for letter in "wb"]
        return [values[: self.blocks] for values in outputs]
