"""Centres of cells: a single bright pixel is found where the map is brightest; chains by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.eval import pointing
from reid_jax.models import cells, heads, layers


class Chain(nn.Module):
    """Convolutions and pools (kernel, stride, padding), which see everything as it is: a blur."""

    windows: tuple

    @nn.compact
    def __call__(self, x):
        for kernel, stride, padding in self.windows:
            if kernel == "max":
                x = layers.max_pool(x)
            elif kernel == "ceil":
                x = layers.ceil_max_pool(x)
            elif kernel == "mean":
                x = nn.avg_pool(x, (stride,) * 2, (stride,) * 2)
            else:
                weights = jnp.full((kernel, kernel, 1, 1), 1 / kernel**2)
                x = layers.conv(x, weights, stride, padding)
        return x


@pytest.mark.parametrize(
    "windows",
    [
        ((5, 2, 2), (3, 2, 1), (3, 1, 1), (3, 2, 1)),
        ((7, 2, 3), ("max", 2, 1), (3, 2, 1)),
        ((4, 4, 0), (3, 1, 1)),
        (("mean", 2, 0), ("mean", 2, 0), (3, 1, 1)),
        ((3, 1, 1),),
    ],
)
def test_a_bright_pixel_is_found(windows):
    """Mass of the map, at the cells' centres, lies where the pixel is, wherever that is."""
    net, size = Chain(windows), (64, 48)

    def function(x):
        return net.apply({}, x)

    read = cells.windows(function, jax.ShapeDtypeStruct((1, *size, 1), jnp.float32))
    compiled = jax.jit(function)
    for at in ((32, 24), (29, 17), (34, 30)):
        spots = [(at[0] + i, at[1] + j) for i in range(8) for j in range(8)]  # all phases of the strides
        images = np.zeros((len(spots), *size, 1), np.float32)
        for n, (y, x) in enumerate(spots):
            images[n, y, x] = 1
        maps = np.asarray(compiled(images))[..., 0]
        rows, columns = cells.centres(read, size, maps.shape[1:])
        total = maps.sum((1, 2))
        y, x = (maps.sum(2) @ rows / total).mean(), (maps.sum(1) @ columns / total).mean()
        np.testing.assert_allclose((y, x), np.mean(spots, 0), atol=0.51)


def test_chains_by_hand():
    def read(windows, size=(64, 32)):
        net = Chain(windows)
        return cells.windows(lambda x: net.apply({}, x), jax.ShapeDtypeStruct((1, *size, 1), jnp.float32))

    rows, columns = cells.centres(read(((5, 2, 2), (3, 2, 1), (3, 2, 1))), (64, 32), (8, 4))
    np.testing.assert_array_equal(rows, 8 * np.arange(8))
    np.testing.assert_array_equal(columns, 8 * np.arange(4))
    rows, _ = cells.centres(read(((4, 4, 0),)), (64, 32), (16, 8))
    np.testing.assert_array_equal(rows, 4 * np.arange(16) + 1.5)
    rows, _ = cells.centres([], (64, 32), (8, 4))
    np.testing.assert_array_equal(rows, 8 * np.arange(8) + 3.5)  # nothing leads there: even


def test_any_backbone_by_its_strides():
    """The drawn-on-CPU net's last map of 64x32: cell i at 8 i; the program has CPU forms elsewhere."""
    net = heads.trunk(namespace(defaults()["model"] | {"backbone": "narrow"}), None)
    image = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, False), image)
    read = cells.windows(lambda v, x: net.apply(v, x, False), variables, image)
    rows, columns = cells.centres(read, (64, 32), (8, 4))
    np.testing.assert_array_equal(rows, 8 * np.arange(8))
    np.testing.assert_array_equal(columns, 8 * np.arange(4))


def test_maps_at_pixels_and_their_correlation():
    heat = np.zeros((1, 4, 3))
    heat[0, 2, 1] = 1
    large = pointing.at_pixels(heat, (32, 24), 8 * np.arange(4), 8 * np.arange(3))
    assert np.unravel_index(large[0].argmax(), (32, 24)) == (16, 8)
    assert large[0, 12, 8] == 0.5 and large[0, 16, 4] == 0.5 and large[0, 31, 23] == 0
    np.testing.assert_allclose(pointing.at_pixels(heat, (4, 3)), heat)
    mask = np.random.default_rng(0).random((2, 3, 8, 4))
    got = pointing.correlation(2 * mask + 1, mask)
    np.testing.assert_allclose(got, 1)
    assert (pointing.correlation(np.ones_like(mask), mask) == 0).all()
    other = np.random.default_rng(1).random(mask.shape)
    want = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(other, mask, strict=True)]
    np.testing.assert_allclose(pointing.correlation(other, mask), want)
