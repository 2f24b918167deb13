"""Inception-v3 (Szegedy et al., CVPR 2016) to its last mixed block, modules called as in torchvision.

No auxiliary classifier. Strides are those of ImageNet's nets: config.model.last_stride has no meaning here.
Torchvision's weights are of pictures normalised by mean 0.5 and deviation 0.5 (data.mean, data.std).
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models import Keys
from reid_jax.models.backbones import Backbone
from reid_jax.models.layers import ceil_max_pool, conv
from reid_jax.models.norms import Norms
from reid_jax.models.weights import names

FIELDS = dict(inception_width=1.0)  # backbone "inception_v3": factor on the channels

SMALLEST = 75  # rows or columns of an image that leave a map
MIXED = (  # (module, what it is of, channels of its own) of stages 1 to 3
    (("Mixed_5b", "A", 32), ("Mixed_5c", "A", 64), ("Mixed_5d", "A", 64)),
    (
        ("Mixed_6a", "B", 0),
        *((f"Mixed_6{n}", "C", c) for n, c in zip("bcde", (128, 160, 160, 192), strict=True)),
    ),
    (("Mixed_7a", "D", 0), ("Mixed_7b", "E", 0), ("Mixed_7c", "E", 0)),
)
_init = nn.initializers.truncated_normal(0.1)


class Kernel(nn.Module):
    """Convolution by a kernel of any shape, padded to both sides: [...,H,W,C] -> [...,h,w,features]."""

    features: int
    size: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", _init, (*self.size, x.shape[-1], self.features), jnp.float32)
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        widths = [*[(0, 0)] * (x.ndim - 3), *((p, p) for p in self.padding), (0, 0)]
        return conv(jnp.pad(x.astype(dtype), widths), kernel.astype(dtype), self.stride)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU. size: of both axes or one for both; padding: a number, "same": half."""

    features: int
    size: Any = 1
    stride: int = 1
    padding: Any = "same"
    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        padding = tuple(s // 2 for s in size) if self.padding == "same" else (self.padding, self.padding)
        x = Kernel(self.features, size, self.stride, padding, self.dtype, name="conv")(x)
        return nn.relu(self.norms.batch(name="bn", epsilon=1e-3)(x, train))


class Mixed(nn.Module):
    """Branches joined along the channels; form A to E, channels: of its own, see the paper's figures."""

    form: str
    channels: int
    width: float = 1.0
    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        def unit(x, features, name, size=1, **fields):
            module = Unit(
                scaled(features, self.width), size, dtype=self.dtype, norms=self.norms, **fields, name=name
            )
            return module(x, train)

        return jnp.concatenate(list(getattr(self, f"_{self.form.lower()}")(x, unit)), -1)

    def _a(self, x, unit):
        yield unit(x, 64, "branch1x1")
        yield unit(unit(x, 48, "branch5x5_1"), 64, "branch5x5_2", 5)
        y = unit(unit(x, 64, "branch3x3dbl_1"), 96, "branch3x3dbl_2", 3)
        yield unit(y, 96, "branch3x3dbl_3", 3)
        yield unit(average(x), self.channels, "branch_pool")

    def _b(self, x, unit):
        halved = dict(stride=2, padding=0)
        yield unit(x, 384, "branch3x3", 3, **halved)
        y = unit(unit(x, 64, "branch3x3dbl_1"), 96, "branch3x3dbl_2", 3)
        yield unit(y, 96, "branch3x3dbl_3", 3, **halved)
        yield half_max_pool(x)

    def _c(self, x, unit):
        channels, row, column = self.channels, (1, 7), (7, 1)
        yield unit(x, 192, "branch1x1")
        y = unit(unit(x, channels, "branch7x7_1"), channels, "branch7x7_2", row)
        yield unit(y, 192, "branch7x7_3", column)
        y = unit(x, channels, "branch7x7dbl_1")
        for i, size in enumerate((column, row, column), 2):
            y = unit(y, channels, f"branch7x7dbl_{i}", size)
        yield unit(y, 192, "branch7x7dbl_5", row)
        yield unit(average(x), 192, "branch_pool")

    def _d(self, x, unit):
        halved = dict(stride=2, padding=0)
        yield unit(unit(x, 192, "branch3x3_1"), 320, "branch3x3_2", 3, **halved)
        y = unit(unit(x, 192, "branch7x7x3_1"), 192, "branch7x7x3_2", (1, 7))
        y = unit(y, 192, "branch7x7x3_3", (7, 1))
        yield unit(y, 192, "branch7x7x3_4", 3, **halved)
        yield half_max_pool(x)

    def _e(self, x, unit):
        yield unit(x, 320, "branch1x1")
        y = unit(x, 384, "branch3x3_1")
        yield from (unit(y, 384, "branch3x3_2a", (1, 3)), unit(y, 384, "branch3x3_2b", (3, 1)))
        y = unit(unit(x, 448, "branch3x3dbl_1"), 384, "branch3x3dbl_2", 3)
        yield from (unit(y, 384, "branch3x3dbl_3a", (1, 3)), unit(y, 384, "branch3x3dbl_3b", (3, 1)))
        yield unit(average(x), 192, "branch_pool")


class InceptionV3(Backbone):
    """Images [...,H,W,3] -> maps [...,h,w,2048]; 256x128 gives 6x2. At least SMALLEST rows and columns."""

    width: float = 1.0

    only_batch_norm = True

    @property
    def depth(self):
        return len(MIXED)

    def setup(self):
        unit = functools.partial(Unit, dtype=self.dtype, norms=self.norms)
        wide = functools.partial(scaled, width=self.width)
        self.Conv2d_1a_3x3 = unit(wide(32), 3, 2, 0)
        self.Conv2d_2a_3x3 = unit(wide(32), 3, padding=0)
        self.Conv2d_2b_3x3 = unit(wide(64), 3)
        self.Conv2d_3b_1x1 = unit(wide(80))
        self.Conv2d_4a_3x3 = unit(wide(192), 3, padding=0)
        for name, *form in (m for stage in MIXED for m in stage):
            setattr(self, name, Mixed(*form, self.width, self.dtype, self.norms))

    def stem(self, x, train):
        """The stem's map."""
        if min(x.shape[-3:-1]) < SMALLEST:
            raise ConfigError(
                f"config.model.backbone 'inception_v3' leaves no map of {x.shape[-3]}x{x.shape[-2]} images: "
                f"set config.data.height and width to {SMALLEST} or more"
            )
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x, train), train)
        return self.at("stem", self.Conv2d_2b_3x3(x, train), train)

    def pool(self, x, train):
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(half_max_pool(x), train), train)
        return self.at("pool", half_max_pool(x), train)

    def stage(self, number, x, train):
        """The map after the mixed blocks of a stage, from 1, of the map before it."""
        for name, *_ in MIXED[number - 1]:
            x = getattr(self, name)(x, train)
        return self.at(number, x, train)


def scaled(channels, width):
    return max(int(channels * width), 1)


def half_max_pool(x):
    """3x3 max pooling of whole windows only, stride 2, not padded."""
    rows, columns = ((n - 3) // 2 + 1 for n in x.shape[-3:-1])
    return ceil_max_pool(x)[..., :rows, :columns, :]


def average(x):
    """3x3 average pooling, stride 1, padded by zeros that count."""
    padded = jnp.pad(x, [*[(0, 0)] * (x.ndim - 3), (1, 1), (1, 1), (0, 0)])
    height, width = x.shape[-3:-1]
    rows = sum(padded[..., i : i + height, :, :] for i in range(3))
    return sum(rows[..., i : i + width, :] for i in range(3)) / 9


def build(model, dtype, axis_name):
    """InceptionV3 of config.model."""
    if model.inception_width <= 0:
        raise ConfigError(f"config.model.inception_width is {model.inception_width}; it must lie above 0")
    return InceptionV3(model.inception_width, dtype=dtype, axis_name=axis_name)


NAMES = {"inception_v3": build}

# ---- other people's files

_FRONTS = ("", "base.", "backbone.", "model.")


def _names(modules, leaf):
    if modules[0] != "base":
        return names.keys(("params", *modules, leaf), "torchvision")
    return [front + ".".join([*modules[1:], names.leaf_name(leaf)]) for front in _FRONTS]


def _matches(entries):
    return any(re.search(r"Mixed_5b\.branch1x1\.conv\.weight$", k) for k in entries)


KEYS = {"inception": Keys(_names, _matches, fields=lambda entries: {"backbone": "inception_v3"})}
