"""ADL's networks: FRIFM in the backbone, classifiers of cameras and of all images, E, H and D.

The numbers in E's and H's module names are those of the layers in the ADL code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.models import pooling
from reid_jax.models.layers import BatchNorm, Conv, kernel_uniform, maximum, uniform, wide

_small = nn.initializers.normal(0.001)
_he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Frifm(nn.Module):
    """Feature refinement and information fusion: maps [N,H,W,C] -> [N,H,W,C], the identity at first.

    y = x + gamma (A_c M_c + A_s M_s) x with channel masks M_c, spatial masks M_s and shares A_c + A_s = 1;
    masks and shares are computed in at least float32. `masks` below gives all three.
    """

    ratio: int = 16
    floor: int = 8  # least width of the channel mask's layer
    fuse_floor: int = 32  # and of the fusion's

    @nn.compact
    def __call__(self, x, train=False):
        gamma = self.param("gamma", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        full = wide(x)
        channel, spatial, share = self.masks(full)
        gate = share[:, None, None, 0] * channel[:, None, None] + share[:, None, None, 1] * spatial[..., None]
        return (full * (1 + gamma * gate)).astype(x.dtype)

    def masks(self, x):
        """(M_c [N,C], M_s [N,H,W], (A_c, A_s) [N,2,C]) of maps x in at least float32."""
        channels = x.shape[-1]
        width = max(channels // self.ratio, self.floor)
        inner = nn.Dense(width, use_bias=False, kernel_init=_he, name="channel1")
        outer = nn.Dense(channels, use_bias=False, kernel_init=_he, name="channel2")
        mean = x.mean((1, 2))
        channel = nn.sigmoid(outer(nn.relu(inner(mean))) + outer(nn.relu(inner(maximum(x, (1, 2))))))
        both = jnp.stack([x.mean(-1), maximum(x, (-1,))], -1)
        spatial = nn.sigmoid(Conv(1, 7, padding=3, init=_he, name="spatial")(both)[..., 0])
        refined = channel * mean + (spatial[..., None] * x).mean((1, 2))
        fused = max(channels // self.ratio, self.fuse_floor)
        z = nn.Dense(fused, use_bias=False, kernel_init=_he, name="squeeze")(refined)
        z = nn.relu(nn.LayerNorm(epsilon=1e-5, name="squeeze_norm")(z))
        t = nn.Dense(2 * channels, kernel_init=nn.initializers.zeros, name="select")(z)
        share = jax.nn.softmax(t.reshape(-1, 2, channels), 1)
        self.sow("intermediates", "masks", (channel, spatial, share))
        return channel, spatial, share


class Pooled(nn.Module):
    """Backbone and pooling: images [B,H,W,3] -> vectors [B,D] in at least float32."""

    base: nn.Module
    pooling: nn.Module = pooling.Average()

    def setup(self):
        pooling.join(self.base, self)

    def __call__(self, x, train):
        return self.pooling(wide(self.base(x, train)))


def masked(logits, used):
    """logits f[...,C,K] with minus infinity from class number `used` i32[C] on."""
    return jnp.where(jnp.arange(logits.shape[-1]) < used[..., None], logits, -jnp.inf)


class CameraHeads(nn.Module):
    """A batch norm and a bias-free classifier of every camera: f [B,C,D] -> logits [B,C,classes].

    f[b, c] goes through the head of camera c. mask: classes from the stored number of used ones on count for
    nothing, their logits being minus infinity; otherwise they stay in the softmax as ordinary classes.
    """

    cameras: int
    classes: int
    mask: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, f, train):
        used = self.variable("classes", "used", jnp.full, (self.cameras,), self.classes, jnp.int32)
        rows, size = len(f), f.shape[-1]
        norm = BatchNorm(axis_name=self.axis_name, frozen_bias=True, name="neck")  # of C D channels
        f = norm(f.reshape(rows, -1), train).reshape(f.shape)
        kernel = self.param("kernel", _small, (self.cameras, size, self.classes), jnp.float32)
        logits = jnp.einsum("bcd,cdk->bck", f, kernel)
        return masked(logits, used.value) if self.mask else logits


class JointHead(nn.Module):
    """Batch norm and bias-free classifier over the clusters of all images: f [B,D] -> logits [B,classes]."""

    classes: int
    mask: bool = False  # as CameraHeads'
    axis_name: str | None = None

    @nn.compact
    def __call__(self, f, train):
        used = self.variable("classes", "used", jnp.full, (1,), self.classes, jnp.int32)
        f = BatchNorm(axis_name=self.axis_name, frozen_bias=True, name="neck")(f, train)
        logits = nn.Dense(self.classes, use_bias=False, kernel_init=_small, name="classifier")(f)
        return masked(logits[:, None], used.value)[:, 0] if self.mask else logits


def _dense(features, fan_in, name):
    """Linear layer with PyTorch's start values."""
    return nn.Dense(features, kernel_init=kernel_uniform, bias_init=uniform(fan_in), name=name)


class CameraEncoder(nn.Module):
    """E: identity features f [B,D] -> camera features z [B,D]."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, f, train):
        size = f.shape[-1]

        def norm(name):
            return BatchNorm(axis_name=self.axis_name, name=name)

        z = norm("bn0")(f, train)
        z = nn.relu(norm("bn2")(_dense(size, size, "fc1")(z), train))
        return nn.relu(norm("bn5")(_dense(size, size, "fc4")(z), train))


class CameraHead(nn.Module):
    """H: camera features z [B,D] -> logits of cameras [B,C]."""

    cameras: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z, train):
        z = nn.Dense(z.shape[-1], use_bias=False, kernel_init=_small, name="fc0")(z)
        z = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(z, train))
        return nn.Dense(self.cameras, use_bias=False, kernel_init=_small, name="fc3")(z)


class Critic(nn.Module):
    """D: pairs f [B,D], z [B,E] -> logits [B] that they belong together. hidden 0: D wide inside."""

    hidden: int = 0

    @nn.compact
    def __call__(self, f, z):
        width = self.hidden or f.shape[-1]
        y = jnp.concatenate([f, z], -1)
        y = nn.relu(_dense(width, y.shape[-1], "fc1")(y))
        y = nn.relu(_dense(width, width, "fc2")(y))
        return _dense(1, width, "fc3")(y)[:, 0]
