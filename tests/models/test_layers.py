"""Layers against each other's forms, numpy, and the whole batch on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from reid_jax.models import layers


def both_forms(function, *arguments):
    """Values and gradients of a scalar-weighted output in the plain and in the CPU form."""

    def value_and_grad(*arguments):
        out, pull = jax.vjp(function, *arguments)
        weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype)
        return out, *pull(weight)

    results = []
    for name in ("plain", "cpu"):
        with layers.form(name):
            results.append(jax.jit(lambda *a: value_and_grad(*a))(*arguments))
    return results


def assert_close(a, b, tolerance):
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-6)


@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-5), ("bfloat16", 0.02)])
@pytest.mark.parametrize("size", [pytest.param((8, 6), marks=pytest.mark.slow), (7, 5)])
@pytest.mark.parametrize(
    "kernel,stride,channels", [(1, 1, 8), (1, 2, 8), (3, 1, 128), (3, 2, 128), (3, 2, 4)]
)
def test_conv_forms_agree(dtype, tolerance, size, kernel, stride, channels):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *size, channels)), dtype)
    k = jnp.asarray(rng.standard_normal((kernel, kernel, channels, 16)) / (kernel * channels**0.5), dtype)
    plain, cpu = both_forms(lambda x, k: layers.conv(x, k, stride, kernel // 2), x, k)
    for a, b in zip(cpu, plain, strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 2)])
def test_max_pool_forms_agree(dtype, size):
    """Few distinct values, all negative or zero: ties and padding both show."""
    x = jnp.asarray(-np.random.default_rng(0).integers(0, 4, (2, *size, 3)), dtype)
    plain, cpu = both_forms(layers.max_pool, x)
    for a, b in zip(cpu, plain, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=1e-6)


def test_conv_is_the_naive_sum():
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((1, 6, 5, 4)), rng.standard_normal((3, 3, 2, 6))
    stride, padding, dilation, groups = 2, 2, 2, 2
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    want = np.zeros((1, 3, 3, 6))
    for i, j, o in np.ndindex(3, 3, 6):
        part = slice(0, 2) if o < 3 else slice(2, 4)
        window = padded[
            0, stride * i : stride * i + 5 : dilation, stride * j : stride * j + 5 : dilation, part
        ]
        want[0, i, j, o] = (window * k[..., o]).sum()
    got = layers.conv(
        jnp.asarray(x, jnp.float32), jnp.asarray(k, jnp.float32), stride, padding, dilation, groups
    )
    np.testing.assert_allclose(got, want, atol=1e-4)


def tap_by_tap(x, k, stride, padding, dilation):
    """A convolution without groups, or a depthwise one, as a sum of shifted products."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    sizes = zip(x.shape[1:3], k.shape[:2], strict=True)
    h, w = ((n - dilation * (m - 1) - 1) // stride + 1 for n, m in sizes)
    total = 0
    for i, j in np.ndindex(*k.shape[:2]):
        a, b = i * dilation, j * dilation
        part = x[:, a : a + stride * (h - 1) + 1 : stride, b : b + stride * (w - 1) + 1 : stride]
        total += part * k[i, j, 0] if k.shape[2] == 1 else part @ k[i, j]
    return total


@pytest.mark.parametrize(
    "size,kernel,stride,padding,dilation,groups",
    [
        ((9, 7), 3, 2, 1, 2, 1),
        *(
            pytest.param(*p, marks=pytest.mark.slow)
            for p in (
                ((9, 7), 3, 1, 0, 1, 1),
                ((4, 8), 5, 1, 3, 1, 1),
                ((4, 8), 3, 1, 1, 2, 1),
                ((7, 6), 3, 1, 0, 1, 4),
            )
        ),
    ],
)
def test_gradients_of_gradients_of_a_convolution(size, kernel, stride, padding, dilation, groups):
    """Second derivatives by image and kernel, under vmap and inside a branch, as a GAN's penalty takes."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 2, *size, 4)), jnp.float32)
    shape = (kernel, kernel, 4 // groups, 4)
    k = jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def penalty(form, x, k):
        grads = jax.grad(lambda x, k: jnp.sin(form(x, k)).sum(), (0, 1))(x, k)
        return jnp.sin(grads[0]).sum() + jnp.sin(grads[1]).sum()

    def ours(x, k):
        def conv(x, k):
            return layers.conv(x, k, stride, padding, dilation, groups)

        both = jax.vmap(lambda x: penalty(conv, x, k))
        return jax.lax.cond(x.sum() > 1e6, lambda x: both(2 * x).sum(), lambda x: both(x).sum(), x)

    def naive(x, k):
        return sum(penalty(lambda x, k: tap_by_tap(x, k, stride, padding, dilation), one, k) for one in x)

    want = jax.jit(jax.grad(naive, (0, 1)))(x, k)
    with layers.form("cpu"):
        got = jax.jit(jax.grad(ours, (0, 1)))(x, k)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-4)


def test_unknown_form_raises():
    with pytest.raises(ValueError, match="auto, plain, cpu"), layers.form("fast"):
        pass


def run_norm(x, axis_name=None):
    norm = layers.BatchNorm(axis_name=axis_name)
    variables = norm.init(jax.random.key(0), x, False)
    y, changed = norm.apply(variables, x, True, mutable=["batch_stats"])
    return y, changed["batch_stats"]


def test_running_variance_is_unbiased():
    x = np.random.default_rng(0).normal(5, 2, (3, 2, 2, 4)).astype(np.float32)
    y, stats = run_norm(jnp.asarray(x))
    flat = x.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    want = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 4), want, atol=1e-4)


def test_bfloat16_keeps_float32_statistics():
    x = np.random.default_rng(0).normal(3, 1, (64, 4))
    y, stats = run_norm(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and stats["mean"].dtype == stats["var"].dtype == jnp.float32
    exact = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-4)


def test_statistics_over_devices_equal_the_whole_batch():
    """Outputs, running statistics and input gradients with axis_name on 8 devices and on one."""
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 2, 5)), jnp.float32)

    def loss(x, axis_name):
        y, stats = run_norm(x, axis_name)
        return (y**3).sum(), (y, stats)

    def one(x):
        return jax.grad(lambda x: loss(x, None), has_aux=True)(x)

    def each(x):  # a device's own part of the summed loss; the other parts' gradients come by psum
        return jax.grad(lambda x: loss(x, "d"), has_aux=True)(x)

    grad, (y, stats) = one(x.reshape(16, 5))
    grad8, (y8, stats8) = jax.pmap(each, axis_name="d")(x)
    np.testing.assert_allclose(y8.reshape(16, 5), y, atol=1e-5)
    np.testing.assert_allclose(grad8.reshape(16, 5), grad, atol=1e-4)
    for name in ("mean", "var"):
        np.testing.assert_allclose(stats8[name][3], stats[name], rtol=1e-5)
    assert float(jnp.abs(stats8["var"][0] - stats8["var"][7]).max()) == 0


def test_frozen_bias_gets_no_gradient():
    norm = layers.BatchNorm(frozen_bias=True)
    x = jnp.arange(12.0).reshape(4, 3)
    variables = norm.init(jax.random.key(0), x, False)

    def loss(params):
        return (norm.apply({**variables, "params": params}, x, False) ** 2).sum()

    grad = jax.grad(loss)(variables["params"])
    assert not np.any(grad["bias"]) and np.all(grad["scale"] != 0)


def test_initial_kernel_spread():
    kernel = layers.he_normal(jax.random.key(0), (3, 3, 64, 128))
    assert abs(float(kernel.std()) / (2 / (9 * 128)) ** 0.5 - 1) < 0.02
    assert lax.abs(kernel.mean()) < 1e-3


@pytest.mark.parametrize("axes", [(1, 2), (-3, -2), (-1,), (1,)])
def test_maximum_gives_its_gradient_to_the_first_of_equals(axes):
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 4, 5)).astype(np.float32)  # many are equal
    value, pull = jax.vjp(lambda x: layers.maximum(x, axes), jnp.asarray(x))
    np.testing.assert_array_equal(value, x.max(axes))
    (gradient,) = pull(1 + jnp.arange(value.size, dtype=jnp.float32).reshape(value.shape))
    want, seen = np.zeros_like(x), {}
    kept = [a for a in range(4) if a not in {axis % 4 for axis in axes}]
    for place in np.ndindex(x.shape):
        group = tuple(place[a] for a in kept)
        if x[place] == np.asarray(value)[group] and group not in seen:
            seen[group] = want[place] = 1 + np.ravel_multi_index(group, value.shape)
    np.testing.assert_array_equal(gradient, want)
