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
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        return apart(_conv(apart(x), kernel, stride, padding, dilation, groups))
    return _conv(x, kernel, stride, padding, dilation, groups)


def apart(x):
    """x as it is, in a program of its own from what is computed of it; so is the gradient.

    From jax 0.11 on XLA's CPU compiler joins sums in float32 with the bfloat16 convolutions before them, and
    then reads what it should not: entries that are not finite, or wrong.
    """
    return lax.optimization_barrier(x)


def _conv(x, kernel, stride, padding, dilation, groups):
    """`conv` of images [B,H,W,C] in the form of this platform."""
    if _cpu_form():
        if dilation == 1 and 1 < groups <= 4:
            return _conv_by_group(x, kernel, stride, padding, groups)
        if groups == x.shape[-1] == kernel.shape[-1]:
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


def ceil_max_pool(x):
    """3x3 max pooling, stride 2, not padded: [...,H,W,C] -> [...,H//2,W//2,C], at least 1x1.

    Window i covers rows 2i to 2i + 2, cut off at the border: PyTorch's ceil_mode without padding. It is
    `max_pool` of x with a row and a column before it, whose first windows are left out.
    """
    small = tuple((1, n == 1) for n in x.shape[-3:-1])
    widths = (*((0, 0),) * (x.ndim - 3), *small, (0, 0))
    return max_pool(jnp.pad(x, widths, constant_values=-jnp.inf))[..., 1:, 1:, :]


def maximum(x, axes):
    """Maximum over neighbouring axes; of equal entries the first in row order gets the gradient.

    Not jnp.max, whose gradient asks which entries equal the maximum: where a compiler computes x twice and
    rounds it differently, none may, and the gradient is lost or not finite.
    """
    first, *_, last = (axis % x.ndim for axis in (axes[0], *axes))
    x = x.reshape(*x.shape[:first], -1, *x.shape[last + 1 :])
    place = jnp.expand_dims(jnp.argmax(lax.stop_gradient(x), first), first)
    here = lax.broadcasted_iota(place.dtype, x.shape, first) == place
    return jnp.where(here, x, 0).sum(first)


def he_normal(rng, shape, dtype=jnp.float32):
    """N(0, sqrt(2 / (kh kw out))), the ResNet initialiser (fan out), for kernels [kh,kw,in,out]."""
    return jax.random.normal(rng, shape, dtype) * (2.0 / (shape[0] * shape[1] * shape[3])) ** 0.5


def normal(mean, std):
    """Initialiser N(mean, std)."""
    return lambda rng, shape, dtype=jnp.float32: mean + std * jax.random.normal(rng, shape, dtype)


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


class RunningMoments(nn.Module):
    """Mean and variance of a batch and their running averages, as PyTorch's batch norm has them.

    The biased variance normalises, the running average is of the UNBIASED one (n / (n - 1)); flax's keeps the
    biased one. Statistics are taken in float32 (float64 for float64 inputs) whatever the input's type.

    axis_name: device axis over which statistics are joined, n being the global count; None: this device's.
    rows: > 0: statistics are those of `rows` consecutive rows of this device's batch at a time, as if each
    such part were on a device of its own; the running averages move once for each part, in order.
    domains: G > 1: in training the rows of G domains come one after the other, equally many of each (of
    every domain's rows `rows` at a time); each has its own statistics, running ones [G,C]. In test mode all
    rows are of test_domain.
    """

    momentum: float = 0.9  # of the old value: 1 - PyTorch's
    epsilon: float = 1e-5
    axis_name: str | None = None
    rows: int = 0
    domains: int = 1
    test_domain: int = 0

    def channels(self, x):
        """Shape of what there is for each channel: (C,), or (G, C) of several domains."""
        return (x.shape[-1],) if self.domains == 1 else (self.domains, x.shape[-1])

    def by_row(self, value, x, train):
        """A value by `channels`, broadcasting to x [...,C]: that of every row's domain."""
        if self.domains == 1:
            return value
        return self._spread(value, x) if train else value[self.test_domain]

    def _spread(self, parts, x):
        """Values [P,C] of P equal parts of the rows of x, broadcasting to it."""
        shape = (-1, *(1,) * (x.ndim - 2), x.shape[-1])
        return jnp.repeat(parts, len(x) // len(parts), 0).reshape(shape)

    def moments(self, x, train, update=True):
        """(mean, var) that normalise x [...,C], broadcasting to it; the running ones move in training."""
        channels = self.channels(x)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            return self.by_row(mean.value, x, train), self.by_row(var.value, x, train)
        parts = x.reshape(-1, self._rows(x), *x.shape[1:])
        means, variances, count = self._statistics(parts)
        if update:
            self._move(mean, means)
            self._move(var, variances * (count / max(count - 1, 1)))
        if len(parts) == 1:
            return means[0], variances[0]
        return self._spread(means, x), self._spread(variances, x)

    def _rows(self, x):
        """Rows of a part."""
        each, left = divmod(len(x), self.domains)
        if left:
            raise ConfigError(
                f"{len(x)} rows of a device cannot be of {self.domains} domains with as many each: give each "
                "domain a batch of the same size (config.data.source_ids, source_instances: 0)"
            )
        if self.rows and each % self.rows:
            raise ConfigError(
                f"config.model.bn_rows is {self.rows}; it must divide the {each} rows that a device has in "
                "a pass" + (", of each domain" if self.domains > 1 else "")
            )
        return self.rows or each

    def _statistics(self, parts):
        """Means and variances [P,C] of parts [P,n,...,C], and what each was taken of."""
        axes = tuple(range(1, parts.ndim - 1))
        count = parts[0].size // parts.shape[-1]
        wide = parts.astype(jnp.promote_types(parts.dtype, jnp.float32))
        mean, square = wide.mean(axes), jnp.square(wide).mean(axes)
        if self.axis_name is not None:
            mean, square = lax.pmean((mean, square), self.axis_name)
            count *= lax.axis_size(self.axis_name)
        return mean, jnp.maximum(square - jnp.square(mean), 0), count

    def _move(self, running, values):
        values = lax.stop_gradient(values).astype(running.value.dtype)
        turns = values.reshape(self.domains, -1, values.shape[-1]).swapaxes(0, 1)
        for value in turns.reshape(-1, *running.value.shape):
            running.value = self.momentum * running.value + (1 - self.momentum) * value


class BatchNorm(RunningMoments):
    """Batch norm over all but the last axis, as PyTorch's: [...,C] -> [...,C], see RunningMoments."""

    scale_init: callable = nn.initializers.ones
    frozen_bias: bool = False  # the bias stays a parameter but gets no gradient

    @nn.compact
    def __call__(self, x, train, update=True):
        """update: False leaves the running statistics alone in training."""
        scale = self.param("scale", self.scale_init, self.channels(x), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, self.channels(x), jnp.float32)
        if self.frozen_bias:
            bias = lax.stop_gradient(bias)
        scale, bias = (self.by_row(v, x, train) for v in (scale, bias))
        return affine(x, *self.moments(x, train, update), scale, bias, self.epsilon)


class InstanceNorm(nn.Module):
    """Instance norm with scale and bias, each channel of each image alone: [...,H,W,C] -> [...,H,W,C].

    The biased variance over H and W, in training and in test mode; statistics in at least float32.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, train=False):
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
    return affine(x, mean, var, scale, bias, epsilon)


def affine(x, mean, var, scale, bias, epsilon):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, as one multiply and one add per entry, in x's type."""
    factor = scale * lax.rsqrt(var + epsilon)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) * factor + (bias - mean * factor)).astype(x.dtype)


def wide(x):
    """x in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def global_rows(count, axis_name=None):
    """Numbers i32[count] of a device's rows within the global batch."""
    first = 0 if axis_name is None else lax.axis_index(axis_name) * count
    return first + jnp.arange(count)


def row_keys(key, count, axis_name=None):
    """A key for each of a device's rows, by its number in the global batch: the same on any devices."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(global_rows(count, axis_name))


class Dropout(nn.Module):
    """Entries of x [B,...] to 0 with probability `rate`, the others over 1 - rate; in training only.

    Draws from the rngs' "dropout", row by row of the global batch over axis_name. Raises ConfigError without.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        if not train or self.rate == 0:
            return x
        if not self.has_rng("dropout"):
            raise ConfigError("dropout draws numbers in training: give rngs={'dropout': key} to apply")
        keys = row_keys(self.make_rng("dropout"), len(x), self.axis_name)
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(mask, x / (1 - self.rate), 0)
