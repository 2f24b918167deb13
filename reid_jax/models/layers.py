"""Convolution, batch norm and max pooling with PyTorch's semantics, NHWC.

Convolution and max pooling have two equal forms, chosen in one place (`_cpu_form`): XLA's own
operations on GPUs and TPUs, and those of `reid_jax.models.cpu` on CPUs.
"""

import contextlib
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.errors import ConfigError
from reid_jax.models import cpu

_FORM = "auto"
DENSE = 64  # channels up to which a depthwise convolution is faster on a CPU as a dense one


@contextlib.contextmanager
def form(name):
    """Forces a form while tracing: 'auto' (by platform), 'plain' (XLA operations) or 'cpu'."""
    global _FORM
    if name not in ("auto", "plain", "cpu"):
        raise ValueError(f"form {name!r} is none of auto, plain, cpu")
    before, _FORM = _FORM, name
    try:
        yield
    finally:
        _FORM = before


def _cpu_form():
    """The one place where the platform decides."""
    return jax.default_backend() == "cpu" if _FORM == "auto" else _FORM == "cpu"


def conv(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    """2-D convolution with symmetric zero padding.

    x [...,H,W,C], clips [B,T,H,W,C] frame by frame; kernel [kh,kw,C/groups,O] -> [...,h,w,O] with
    h = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1.
    """
    if x.ndim != 4:
        return over_images(lambda x: conv(x, kernel, stride, padding, dilation, groups), x)
    if _cpu_form():
        if dilation == 1 and 1 < groups <= 4:
            return _conv_by_group(x, kernel, stride, padding, groups)
        if groups == x.shape[-1] == kernel.shape[-1] <= DENSE:
            return cpu.depthwise(x, kernel, stride, padding, dilation)
        form = (kernel.shape[:2], padding, dilation, groups)
        if form == ((1, 1), 0, 1, 1):
            return cpu.conv1x1(x, kernel, stride)
        if form == ((3, 3), 1, 1, 1) and stride in (1, 2):
            return cpu.conv3x3(x, kernel, stride)
        if groups == 1:
            return cpu.conv(x, kernel, stride, padding, dilation)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def over_images(function, x):
    """Applies a function of [N,H,W,C] to [...,H,W,C], all leading axes taken as one."""
    y = function(x.reshape(-1, *x.shape[-3:]))
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def scan(body, carry, xs, collectives=False):
    """lax.scan(body, carry, xs), written out where a loop of the compiler does badly.

    On CPUs, where a gradient through the loop takes several times as long; and with `collectives` in the
    body, which can deadlock in a loop on simulated devices.
    """
    if not (collectives or _cpu_form()):
        return lax.scan(body, carry, xs)
    outputs = []
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, y = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        outputs.append(y)
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *outputs)


def _conv_by_group(x, kernel, stride, padding, groups):
    """A grouped convolution as one convolution for each group: XLA's grouped one is slow on CPUs."""
    inputs, kernels = jnp.split(x, groups, -1), jnp.split(kernel, groups, -1)
    parts = [conv(i, k, stride, padding) for i, k in zip(inputs, kernels, strict=True)]
    return jnp.concatenate(parts, -1)


def max_pool(x):
    """3x3 max pooling, stride 2, padded by 1 with -inf: [...,H,W,C] -> [...,ceil(H/2),ceil(W/2),C].

    Where several entries of a window are the maximum, the first in row order gets the gradient.
    """
    if x.ndim != 4:
        return over_images(max_pool, x)
    return cpu.max_pool(x) if _cpu_form() else cpu.plain_max_pool(x)


def he_normal(rng, shape, dtype=jnp.float32):
    """N(0, sqrt(2 / (kh kw out))), the ResNet initialiser (fan out), for kernels [kh,kw,in,out]."""
    return jax.random.normal(rng, shape, dtype) * (2.0 / (shape[0] * shape[1] * shape[3])) ** 0.5


def uniform(fan_in):
    """PyTorch's default initialiser of a layer's weight and bias: uniform in +-1 / sqrt(fan_in)."""

    def init(rng, shape, dtype=jnp.float32):
        limit = fan_in**-0.5
        return jax.random.uniform(rng, shape, dtype, -limit, limit)

    return init


def kernel_uniform(rng, shape, dtype=jnp.float32):
    """`uniform` for kernels [...,in,out]."""
    return uniform(math.prod(shape[:-1]))(rng, shape, dtype)


class Conv(nn.Module):
    """Convolution layer, see `conv`; parameters kernel [k,k,C/groups,O] and bias [O], drawn as PyTorch's.

    dtype: compute type; None takes the promoted type of input and kernel.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    init: callable = he_normal
    bias_init: Callable | None = None  # None: as PyTorch

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.init, shape, jnp.float32)
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        x = conv(x.astype(dtype), kernel.astype(dtype), self.stride, self.padding, self.dilation, self.groups)
        if self.use_bias:
            init = self.bias_init or uniform(math.prod(shape[:-1]))
            bias = self.param("bias", init, (self.features,), jnp.float32)
            x = x + bias.astype(dtype)
        return x


class BatchNorm(nn.Module):
    """Batch norm over all but the last axis, as PyTorch's: [...,C] -> [...,C].

    Normalises with the biased batch variance and keeps a running average of the UNBIASED one
    (n / (n - 1)); flax's keeps the biased one. Statistics are taken in float32 (float64 for float64
    inputs) whatever the input's type.

    axis_name: device axis over which statistics are joined, n being the global count; None: this device's.
    """

    momentum: float = 0.9  # of the old value: 1 - PyTorch's
    epsilon: float = 1e-5
    axis_name: str | None = None
    scale_init: callable = nn.initializers.ones
    frozen_bias: bool = False  # the bias stays a parameter but gets no gradient

    @nn.compact
    def __call__(self, x, train, update=True):
        """update: False leaves the running statistics alone in training."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.frozen_bias:
            bias = lax.stop_gradient(bias)
        if not train:
            return _affine(x, mean.value, var.value, scale, bias, self.epsilon)
        batch_mean, batch_var, count = self._statistics(x)
        y = _affine(x, batch_mean, batch_var, scale, bias, self.epsilon)
        if update:
            self._update(mean, batch_mean)
            self._update(var, batch_var * (count / max(count - 1, 1)))
        return y

    def _statistics(self, x):
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean(axes)
        square = jnp.square(wide).mean(axes)
        if self.axis_name is not None:
            mean, square = lax.pmean((mean, square), self.axis_name)
            count *= lax.axis_size(self.axis_name)
        return mean, jnp.maximum(square - jnp.square(mean), 0), count

    def _update(self, running, batch):
        batch = lax.stop_gradient(batch).astype(running.value.dtype)
        running.value = self.momentum * running.value + (1 - self.momentum) * batch


class AdaptiveNorm(nn.Module):
    """AIBN, a mix of instance and batch norm (IICS, Xuan and Zhang, CVPR 2021): [...,H,W,C] -> [...,H,W,C].

    With m_i, v_i the mean and the unbiased variance of a channel of image i, and those of the batch
    m_b = mean m_i, v_b = mean(v_i + m_i^2) - m_b^2, in test mode their running values, the statistics are
    (1 - a) (m_i, v_i) + a (m_b, v_b), a = clip(alpha, 0, 1). Gradients flow through all of them. Statistics
    are taken in at least float32. Parameters and statistics are called as BatchNorm's, whose weights fit.

    axis_name: device axis over which m_b and v_b are joined; None: this device's images.
    """

    momentum: float = 0.9  # of the old value
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train, alpha):
        """alpha: f[1] or f[], the share of batch statistics. Raises ConfigError for maps of one pixel."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        own_mean, own_var = self._own(x)
        if train:
            batch_mean, batch_var = self._batch(own_mean, own_var)
            for running, value in ((mean, batch_mean), (var, batch_var)):
                value = lax.stop_gradient(value).astype(running.value.dtype)
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        else:
            batch_mean, batch_var = mean.value, var.value
        a = jnp.clip(alpha, 0, 1)
        mixed = (1 - a) * own_mean + a * batch_mean, (1 - a) * own_var + a * batch_var
        return _affine(x, *mixed, scale, bias, self.epsilon)

    def _own(self, x):
        """Mean and unbiased variance of every image's channels, [...,1,1,C]."""
        pixels = x.shape[-3] * x.shape[-2]
        if pixels == 1:
            raise ConfigError(
                "AIBN needs maps of more than one pixel in the last stages: make config.data.height and "
                "width larger, or use config.model.norm=batch"
            )
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean((-3, -2), keepdims=True)
        return mean, jnp.square(wide - mean).sum((-3, -2), keepdims=True) / (pixels - 1)

    def _batch(self, own_mean, own_var):
        """m_b, v_b [C]; v_b as mean v_i + mean (m_i - m_b)^2, the same number and never below 0."""

        def mean(x):
            x = x.mean(tuple(range(x.ndim - 1)))
            return x if self.axis_name is None else lax.pmean(x, self.axis_name)

        batch_mean = mean(own_mean)
        return batch_mean, mean(own_var + jnp.square(own_mean - batch_mean))


class InstanceNorm(nn.Module):
    """Instance norm with scale and bias, each channel of each image alone: [...,H,W,C] -> [...,H,W,C].

    The biased variance over H and W, in training and in test mode; statistics in at least float32.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return instance_norm(x, scale, bias, self.epsilon)


def instance_norm(x, scale=1.0, bias=0.0, epsilon=1e-5):
    """Each channel of each image to mean 0 and variance 1 (biased), times scale, plus bias: [...,H,W,C].

    scale, bias: numbers or arrays that broadcast, [C] or, one for each image (AdaIN), [B,1,1,C].
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean((-3, -2), keepdims=True)
    var = jnp.square(wide - mean).mean((-3, -2), keepdims=True)
    return _affine(x, mean, var, scale, bias, epsilon)


def _affine(x, mean, var, scale, bias, epsilon):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, as one multiply and one add per entry, in x's type."""
    factor = scale * lax.rsqrt(var + epsilon)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) * factor + (bias - mean * factor)).astype(x.dtype)
