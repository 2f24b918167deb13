"""Attention to a map, and a critic that guesses what it is worth (Chen et al., ICCV 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.models.layers import Conv, wide


class Attention(nn.Module):
    """Maps X f[B,h,w,C] -> X A; (X, A) is kept as "attention"/"pair". A: [B,h,w,1] or [B,1,1,C] in 0..1."""

    kind: str
    kernel: int = 7
    ratio: int = 16

    @nn.compact
    def __call__(self, x, train):
        wider = wide(x)
        if self.kind == "spatial":
            conv = Conv(1, self.kernel, padding=self.kernel // 2, use_bias=True, name="conv")
            a = nn.sigmoid(conv(wider.mean(-1, keepdims=True)))
        else:
            channels = x.shape[-1]
            squeezed = nn.relu(nn.Dense(max(channels // self.ratio, 1), name="squeeze")(wider.mean((1, 2))))
            a = nn.sigmoid(nn.Dense(channels, name="excite")(squeezed))[:, None, None]
        self.sow("attention", "pair", (x, a), init_fn=tuple, reduce_fn=lambda _, pair: pair)
        return x * a.astype(x.dtype)


class Critic(nn.Module):
    """[(X, A)] of the stages -> V f[stages,B]."""

    hidden: int = 256
    grid: tuple = (8, 4)

    @nn.compact
    def __call__(self, pairs):
        return jnp.stack([self.value(x, a, stage) for stage, (x, a) in enumerate(pairs)])

    def value(self, x, a, stage):
        """f[B] of one stage."""
        if a.shape[-1] == 1:
            seen = jax.image.resize(a[..., 0], (len(a), *self.grid), "linear").reshape(len(a), -1)
        else:
            seen = a[:, 0, 0]
        inside = jnp.concatenate([(wide(x) * a).mean((1, 2)), seen], -1)
        inside = nn.relu(nn.Dense(self.hidden, name=f"hidden{stage}")(inside))
        return nn.Dense(1, name=f"value{stage}")(inside)[:, 0]
