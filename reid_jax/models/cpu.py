"""Forms of convolution and max pooling that are fast on CPUs; the same functions as XLA's own operations.

What XLA's CPU backend does badly, and what stands here instead:
- 1x1 convolutions, their weight gradients above all: matrix products.
- Gradients of convolutions inside lax.cond, lax.scan and lax.while_loop (30 to 100 times slower there, as
  their axes are put in order in a program's outermost computation only): arguments transposed beforehand.
- Depthwise convolutions of few channels: dense ones with a kernel that is diagonal in the channels.
- The input gradient of stride-2 convolutions (dilates the gradient with zeros): four small
  convolutions, one for each parity of row and column.
- The gradient of max pooling (scatters): the index of each maximum is kept, and gathered.
- bfloat16 products (computed in float32 after conversion): products that accumulate in float32, for
  which CPUs have bfloat16 instructions; data is moved as uint16, since bfloat16 moves are widened too.
"""

import ctypes
import functools
import math
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_DIMS = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """One axis of a convolution: out = (apart(in) + low + high - apart(kernel)) // stride + 1."""

    stride: int = 1
    low: int = 0
    high: int = 0
    spread: int = 1  # the input's elements are this far apart, zeros between them
    dilation: int = 1  # the kernel's


def conv(x, kernel, stride=1, padding=0, dilation=1):
    """Any convolution without groups, fast in nested computations too: [B,H,W,C] -> [B,h,w,O]."""
    return _conv(x, kernel, (Window(stride, padding, padding, 1, dilation),) * 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, windows):
    return _in_order(windows)(x, kernel)


def _conv_grad(windows, inputs, dy):
    """Both gradients as convolutions of this very kind, so that they can be differentiated again."""
    x, kernel = inputs
    image, taps = [], []
    for w, n, k, m in zip(windows, x.shape[1:3], kernel.shape[:2], dy.shape[1:3], strict=True):
        n, k, m = (n - 1) * w.spread + 1, (k - 1) * w.dilation + 1, (m - 1) * w.stride + 1
        image.append(Window(w.spread, k - 1 - w.low, n + w.low - m, w.stride, w.dilation))
        taps.append(Window(w.dilation, w.low, k - 1 - n - w.low + m, w.spread, w.stride))
    dx = _conv(dy, kernel[::-1, ::-1].transpose(0, 1, 3, 2), tuple(image))
    dk = _conv(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), tuple(taps))
    return dx, dk.transpose(1, 2, 0, 3)


_conv.defvjp(lambda x, kernel, windows: (_conv(x, kernel, windows), (x, kernel)), _conv_grad)


@functools.cache
def _in_order(windows):
    """The convolution of these windows; under vmap it stays one without groups."""

    @jax.custom_batching.custom_vmap
    def run(x, kernel):
        if math.prod(x.shape[1:3]) >= math.prod(kernel.shape[:2]):
            return plain(x, kernel, windows)
        # XLA would swap image and kernel, into a form that is slow (and wrong with some dilations):
        # out[o] = sum over i of x[i] kernel[i - stride o + low], so the image, from the last o to the first,
        # moves over the kernel
        swapped = []
        for w, n, k in zip(windows, x.shape[1:3], kernel.shape[:2], strict=True):
            n, k = (n - 1) * w.spread + 1, (k - 1) * w.dilation + 1
            last = (n + w.low + w.high - k) // w.stride * w.stride
            swapped.append(Window(w.stride, last - w.low, n - k + w.low, w.dilation, w.spread))
        y = plain(kernel.transpose(3, 0, 1, 2), x.transpose(1, 2, 3, 0), swapped)
        return y[:, ::-1, ::-1].transpose(3, 1, 2, 0)

    def plain(x, kernel, windows):
        return lax.conv_general_dilated(
            x,
            kernel,
            [w.stride for w in windows],
            [(w.low, w.high) for w in windows],
            [w.spread for w in windows],
            [w.dilation for w in windows],
            dimension_numbers=_DIMS,
        )

    @run.def_vmap
    def batched(size, of, x, kernel):
        if of[0] and not of[1]:
            y = run(x.reshape(-1, *x.shape[2:]), kernel)
            return y.reshape(*x.shape[:2], *y.shape[1:]), True
        outputs = [run(x[i] if of[0] else x, kernel[i] if of[1] else kernel) for i in range(size)]
        return jnp.stack(outputs), True

    return run


def depthwise(x, kernel, stride=1, padding=0, dilation=1):
    """Depthwise convolution, one tap after the other: x [B,H,W,C], kernel [kh,kw,1,C] -> [B,h,w,C].

    XLA joins the taps in one pass over the map, where its own operation takes ten times as long and more.
    """
    reach = [dilation * (n - 1) for n in kernel.shape[:2]]
    h, w = ((n + 2 * padding - r - 1) // stride + 1 for n, r in zip(x.shape[1:3], reach, strict=True))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = jnp.pad(wide, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def places(k, n):
        return slice(dilation * k, dilation * k + stride * (n - 1) + 1, stride)

    def tap(i, j):
        return wide[:, places(i, h), places(j, w)] * kernel[i, j, 0]

    kh, kw = kernel.shape[:2]
    total = sum(tap(i, j) for i in range(kh) for j in range(kw))
    return total.astype(x.dtype)


def _dot(a, b, contract=((1,), (0,))):
    """Matrix product, bfloat16 accumulated and returned in float32."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=wide)


@jax.custom_vjp
def matmul(x, w):
    """[M,C] @ [C,O] -> [M,O] in x's type."""
    return _dot(x, w).astype(x.dtype)


def _matmul_grad(inputs, dy):
    x, w = inputs
    return _dot(dy, w, ((1,), (1,))).astype(x.dtype), _dot(x, dy, ((0,), (0,))).astype(w.dtype)


matmul.defvjp(lambda x, w: (matmul(x, w), (x, w)), _matmul_grad)


def conv1x1(x, kernel, stride):
    """1x1 convolution [B,H,W,C] -> [B,h,w,O]."""
    x = x[:, ::stride, ::stride]
    return matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:3], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x, kernel, stride):
    """3x3 convolution padded by 1, stride 1 or 2: [B,H,W,C] -> [B,ceil(H/stride),ceil(W/stride),O]."""
    if _narrow_type(x) and x.shape[-1] >= 128:
        return _sum_of_products(x, kernel, stride)
    return conv(x, kernel, stride, 1)


def _conv3x3_grad(stride, inputs, dy):
    x, kernel = inputs
    if stride == 1:
        dx = conv3x3(dy, kernel[::-1, ::-1].transpose(0, 1, 3, 2), 1)
    else:
        dx = _strided_input_grad(dy, kernel, x.shape)
    _, weight_grad = jax.vjp(lambda k: conv(x, k, stride, 1), kernel)
    return dx, *weight_grad(dy)


conv3x3.defvjp(lambda x, kernel, stride: (conv3x3(x, kernel, stride), (x, kernel)), _conv3x3_grad)


def _narrow_type(x):
    return x.dtype == jnp.bfloat16


def _sum_of_products(x, kernel, stride):
    """bfloat16 3x3 convolution: three products over rows that hold their left and right neighbours."""
    h, w = ((n - 1) // stride + 1 for n in x.shape[1:3])
    bits = lax.bitcast_convert_type(x, jnp.uint16)
    bits = jnp.pad(bits, ((0, 0), (1, 1), (1, 1), (0, 0)))
    bits = jnp.concatenate([bits[:, :, j : j + stride * (w - 1) + 1 : stride] for j in range(3)], -1)
    total, width = 0, bits.shape[-1]
    for i in range(3):
        rows = bits[:, i : i + stride * (h - 1) + 1 : stride].reshape(-1, width)
        total += _dot(lax.bitcast_convert_type(rows, x.dtype), kernel[i].reshape(width, -1))
    return total.astype(x.dtype).reshape(x.shape[0], h, w, -1)


def _strided_input_grad(dy, kernel, shape):
    """Input gradient of a 3x3 convolution of stride 2, one convolution per parity of row and column.

    In one dimension dx[2i] = dy[i] k[1] and dx[2i + 1] = dy[i] k[2] + dy[i + 1] k[0].
    """
    kernel = kernel.transpose(0, 1, 3, 2)
    taps = (slice(1, 2), slice(None, None, -2))  # k[1]; k[2], k[0]

    def part(i, j):
        k = kernel[taps[i], taps[j]]
        return lax.conv_general_dilated(dy, k, (1, 1), ((0, i), (0, j)), dimension_numbers=_DIMS)

    return _interleave([[part(i, j) for j in range(2)] for i in range(2)], shape)


def _interleave(parts, shape):
    """out[:, 2a + i, 2b + j] = parts[i][j][:, a, b], cut to `shape` [B,H,W,C]."""
    b, h, w, c = parts[0][0].shape
    both = jnp.stack([jnp.stack(row, 3) for row in parts], 2).reshape(b, 2 * h, 2 * w, c)
    return both[:, : shape[1], : shape[2]]


def plain_max_pool(x):
    """3x3 max pooling, stride 2, padding 1; also the form of other platforms."""
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )


@jax.custom_vjp
def max_pool(x):
    """`plain_max_pool` with a gradient that gathers."""
    return plain_max_pool(x)


def _max_pool_index(x):
    """Pooled map and, for each entry, which of its window's nine places holds the maximum (the first one)."""
    h, w = ((n - 1) // 2 + 1 for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    best, index = None, None
    for place in range(9):
        i, j = divmod(place, 3)
        value = padded[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2]
        if best is None:
            best, index = value, jnp.zeros(value.shape, jnp.uint8)
        else:
            index = jnp.where(value > best, jnp.uint8(place), index)
            best = jnp.maximum(value, best)
    return best, (index, x.shape)


def _max_pool_grad(saved, dy):
    """Row 2a of the input is place 1 of window a; row 2a + 1 is place 2 of a and place 0 of a + 1."""
    index, shape = saved
    h, w = dy.shape[1:3]
    index, dy = (jnp.pad(t, ((0, 0), (0, 1), (0, 1), (0, 0))) for t in (index, dy))

    def part(i, j):
        total = 0
        for a, row in ((0, 1),) if i == 0 else ((0, 2), (1, 0)):
            for b, column in ((0, 1),) if j == 0 else ((0, 2), (1, 0)):
                here = slice(None), slice(a, a + h), slice(b, b + w)
                total += jnp.where(index[here] == 3 * row + column, dy[here], 0)
        return total

    return (_interleave([[part(i, j) for j in range(2)] for i in range(2)], shape),)


max_pool.defvjp(_max_pool_index, _max_pool_grad)


def keep_heap():
    """Lets glibc keep freed memory for the next step instead of giving it back: True where it can.

    XLA's CPU backend allocates a step's temporaries (1 GiB for ResNet50, batch 16) anew in each step, and
    the page faults cost a tenth of its time. For programs that train on a CPU, before
    JAX has touched a device (its threads take heaps of their own there); with accelerators it does no
    harm, on macOS or musl nothing at all.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    no_mmap, no_trim, one_arena = (-4, 0), (-1, -1), (-8, 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
    return all([mallopt(*setting) for setting in (no_mmap, no_trim, one_arena)])
