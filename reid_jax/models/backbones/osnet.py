"""OSNet (Zhou et al., ICCV 2019) and its forms with instance norm, OSNet-IBN and OSNet-AIN.

Modules are called as in torchreid's osnet_ain: `conv2_0/conv2_3/layers_1` is `conv2.0.conv2.3.layers.1`; its
osnet calls the same streams conv2a to conv2d and the transitions convS.2.0.
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models import Keys
from reid_jax.models.backbones import Backbone
from reid_jax.models.layers import Conv, InstanceNorm, max_pool
from reid_jax.models.norms import Norms
from reid_jax.models.weights import names

FIELDS = dict(
    osnet_widths=(
        16,
        64,
        96,
        128,
    ),  # backbones "osnet", "osnet_ibn", "osnet_ain": channels of stem and stages
    osnet_streams=4,  # OSNets: streams of a block, of 1, 2, ... 3x3 convolutions in a row
    osnet_gate="shared",  # of a block's streams: shared (one gate for all) | separate | none
    osnet_join="add",  # how the streams become one: add | concat
)

WIDTHS = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
BLOCKS = 2  # of each of the three stages of blocks
INSTANCE = {  # where the blocks of the three stages have instance norm
    "osnet": (("", ""), ("", ""), ("", "")),
    "osnet_ibn": (("after", "after"), ("", ""), ("", "")),
    "osnet_ain": (("inside", "inside"), ("", "inside"), ("inside", "")),
}


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU: [...,H,W,C] -> [...,h,w,features].

    norm: False without batch norm. relu: False without ReLU.
    """

    features: int
    dtype: jnp.dtype | None = None
    norms: Any = Norms()
    norm: bool = True
    relu: bool = True

    @nn.compact
    def __call__(self, x, train):
        x = Conv(self.features, dtype=self.dtype, name="conv")(x)
        x = self.norms.batch(name="bn")(x, train) if self.norm else x
        return nn.relu(x) if self.relu else x


class Lite(nn.Module):
    """Lite 3x3: 1x1 without bias, depthwise 3x3 without bias, batch norm, ReLU; channels stay."""

    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        channels = x.shape[-1]
        x = Conv(channels, dtype=self.dtype, name="conv1")(x)
        x = Conv(channels, 3, 1, 1, groups=channels, dtype=self.dtype, name="conv2")(x)
        return nn.relu(self.norms.batch(name="bn")(x, train))


class Stream(nn.Module):
    """`depth` Lite 3x3 in a row."""

    depth: int
    dtype: jnp.dtype | None = None
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        for i in range(self.depth):
            x = Lite(self.dtype, self.norms, name=f"layers_{i}")(x, train)
        return x


class Gate(nn.Module):
    """Channels of x [...,H,W,C] weighed by a small net of their means."""

    reduction: int = 16
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype, bias_init=nn.initializers.zeros)
        means = x.mean((-3, -2), keepdims=True)
        y = nn.relu(conv(max(x.shape[-1] // self.reduction, 1), name="fc1")(means))
        return x * nn.sigmoid(conv(x.shape[-1], name="fc2")(y))


class OSBlock(nn.Module):
    """Omni-scale block: streams of 1 to `streams` Lite 3x3, summed under one gate: [...,C] -> [...,features].

    instance: where instance norm stands: "" (nowhere) | "after" the residual sum | "inside" the residual, in
    place of its last batch norm. gate: shared | separate | none; join: add | concat.
    """

    features: int
    instance: str = ""
    dtype: jnp.dtype | None = None
    norms: Any = Norms()
    streams: int = 4
    reduction: int = 4  # of the channels inside
    gate_reduction: int = 16
    gate: str = "shared"
    join: str = "add"

    @nn.compact
    def __call__(self, x, train):
        unit = functools.partial(Unit, dtype=self.dtype, norms=self.norms)
        y = unit(max(self.features // self.reduction, 1), name="conv1")(x, train)
        streams = [Stream(t + 1, self.dtype, self.norms, name=f"conv2_{t}") for t in range(self.streams)]
        gated = [gate(stream(y, train)) for gate, stream in zip(self.gates(), streams, strict=True)]
        y = sum(gated) if self.join == "add" else jnp.concatenate(gated, -1)
        inside = self.instance == "inside"
        y = unit(self.features, norm=not inside, relu=False, name="conv3")(y, train)
        y = InstanceNorm(name="IN")(y) if inside else y
        if x.shape[-1] != self.features:
            x = unit(self.features, relu=False, name="downsample")(x, train)
        y = y + x
        return nn.relu(InstanceNorm(name="IN")(y) if self.instance == "after" else y)

    def gates(self):
        """A function of a map for each stream."""
        if self.gate == "none":
            return [lambda x: x] * self.streams
        build = functools.partial(Gate, self.gate_reduction, self.dtype)
        if self.gate == "shared":
            return [build(name="gate")] * self.streams
        return [build(name=f"gate_{t}") for t in range(self.streams)]


class OSNet(Backbone):
    """Images [...,H,W,3] -> maps [...,h,w,C]; 256x128 gives 16x8.

    Stages 1 to 3 are of two blocks each, the first two end with a 1x1 convolution and a mean of 2x2; stage 4
    is a 1x1 convolution. widths: channels of the stem and of stages 1 to 3. instance: see INSTANCE; where
    there is any, the stem has instance norm too. gate, join: see OSBlock.
    """

    widths: tuple[int, ...] = WIDTHS["x1_0"]
    instance: tuple = INSTANCE["osnet"]
    streams: int = 4
    gate: str = "shared"
    join: str = "add"
    remat: bool = False

    only_batch_norm = True

    @property
    def depth(self):
        return len(self.widths)

    def setup(self):
        self.conv1 = Conv(self.widths[0], 7, 2, 3, dtype=self.dtype)
        self.bn1 = InstanceNorm() if any(map(any, self.instance)) else self.norms.batch()
        block = nn.remat(OSBlock, static_argnums=(2,)) if self.remat else OSBlock
        fields = dict(streams=self.streams, gate=self.gate, join=self.join)
        for stage in range(1, self.depth):
            for i, instance in enumerate(self.instance[stage - 1]):
                module = block(self.widths[stage], instance, self.dtype, self.norms, **fields)
                setattr(self, f"conv{stage + 1}_{i}", module)
            if stage < self.depth - 1:
                setattr(self, f"pool{stage + 1}_0", Unit(self.widths[stage], self.dtype, self.norms))
        self.conv5 = Unit(self.widths[-1], self.dtype, self.norms)

    def stem(self, x, train):
        """The stem's map, before the max pooling."""
        return nn.relu(self.bn1(self.at("stem", self.conv1(x), train), train))

    def pool(self, x, train):
        """The stem's map as stage 1 gets it."""
        return self.at("pool", max_pool(x), train)

    def stage(self, number, x, train):
        """The map after stage `number`, from 1, of the map before it."""
        if number == self.depth:
            return self.at(number, self.conv5(x, train), train)
        for i in range(BLOCKS):
            x = getattr(self, f"conv{number + 1}_{i}")(x, train)
        if number < self.depth - 1:
            x = halved(getattr(self, f"pool{number + 1}_0")(x, train))
        return self.at(number, x, train)


def halved(x):
    """Means of 2x2 pixels, an odd row or column at the end left out: [...,H,W,C] -> [...,H//2,W//2,C].

    ConfigError for maps of one row or column.
    """
    height, width = (n // 2 for n in x.shape[-3:-1])
    if not height or not width:
        raise ConfigError(
            f"a map of {x.shape[-3]}x{x.shape[-2]} is left before an OSNet's last stages: make "
            "config.data.height and width 16 or more"
        )
    x = x[..., : 2 * height, : 2 * width, :]
    return x.reshape(*x.shape[:-3], height, 2, width, 2, x.shape[-1]).mean((-4, -2))


# ---- by name


def _built(form, widths=None):
    """Builder of a form, of `widths` or of config.model's."""

    def build(model, dtype, axis_name):
        if len(model.osnet_widths) != 4 or min(model.osnet_widths) < 1 or model.osnet_streams < 1:
            raise ConfigError(
                f"config.model.osnet_widths is {tuple(model.osnet_widths)} and osnet_streams "
                f"{model.osnet_streams}; an OSNet has four widths and streams, each 1 or more"
            )
        chosen = tuple(widths or model.osnet_widths)
        fields = dict(dtype=dtype, axis_name=axis_name, remat=model.remat)
        fields["gate"] = choice("model.osnet_gate", model.osnet_gate, ("shared", "separate", "none"))
        fields["join"] = choice("model.osnet_join", model.osnet_join, ("add", "concat"))
        return OSNet(chosen, INSTANCE[form], model.osnet_streams, **fields)

    return build


NAMES = {form: _built(form) for form in INSTANCE}
NAMES |= {f"{form}_{size}": _built(form, w) for form in INSTANCE for size, w in WIDTHS.items()}

# ---- torchreid's and fast-reid's files

_FRONTS = ("", "backbone.", "model.", "base.")  # of trunks; the second is fast-reid's


def _names(translate):
    """Keys.names with the keys of a trunk changed by `translate`."""

    def keys_of(modules, leaf):
        if modules[0] != "base":
            path = ("params", *modules, leaf)
            return [*names.keys(path, "torchvision"), *names.keys(path, "fastreid")]
        inner = [{"bn1": "conv1_bn", "conv1": "conv1_conv"}.get(modules[1], modules[1]), *modules[2:]]
        key = ".".join([*map(names.dotted, inner), names.leaf_name(leaf)])
        key = translate(re.sub(r"^conv1_(bn|conv)\b", r"conv1.\1", key))
        return [front + key for front in _FRONTS]

    return keys_of


def _lettered(key):
    """A key of osnet_ain as osnet has it."""
    key = re.sub(r"^pool(\d)\.0\.", r"conv\1.2.0.", key)
    stream = re.match(r"(conv\d\.\d)\.conv2\.(\d)\.layers\.(\d)(.*)", key)
    if stream is None:
        return key
    block, t, layer, end = stream.groups()
    return f"{block}.conv2{'abcdefgh'[int(t)]}" + (f".{layer}" if t != "0" else "") + end


def _matches(stream):
    """Whether a file has a first stream of this name in its first block."""
    return lambda entries: any(re.search(rf"(^|\.)conv2\.0\.{stream}\.conv1\.weight$", k) for k in entries)


def _implied(entries):
    """Fields of config.model that a file of {key: array} stands for."""
    sizes, fronts = {}, "|".join(map(re.escape, _FRONTS))
    for key, value in entries.items():
        if place := re.match(rf"(?:{fronts})(conv1|conv[234]\.0\.conv3)\.conv\.weight$", key):
            sizes[place[1]] = len(value)
    widths = tuple(sizes.get(k) for k in ("conv1", *(f"conv{s}.0.conv3" for s in (2, 3, 4))))
    form = "osnet"
    if any(re.search(r"(^|\.)conv2\.0\.IN\.", k) for k in entries):
        form = "osnet_ibn" if _matches("conv2a")(entries) else "osnet_ain"
    size = next((f"_{name}" for name, w in WIDTHS.items() if w == widths), "")
    head = "fc" if any(re.search(r"(^|\.)fc\.0\.weight$", k) for k in entries) else "global"
    streams = {m[1] for k in entries if (m := re.search(r"(?:^|\.)conv2\.0\.conv2\.?([a-h]|\d)\.", k))}
    sized = {} if size or None in widths else {"osnet_widths": widths}
    sized |= {} if len(streams) == 4 else {"osnet_streams": len(streams)}
    return {"backbone": form + size, "head": head} | sized


KEYS = {
    "osnet": Keys(_names(_lettered), _matches("conv2a"), fields=_implied),
    "osnet_ain": Keys(_names(lambda key: key), _matches(r"conv2\.0\.layers\.0"), fields=_implied),
}
