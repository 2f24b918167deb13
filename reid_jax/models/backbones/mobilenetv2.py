"""MobileNetV2 (Sandler et al., CVPR 2018) in its two forms.

mobilenetv2_x1_0, mobilenetv2_x1_4, mobilenetv2: torchreid's, MetaBIN's, DualNorm's: the first bottleneck has
an expansion of factor 1, channels are not rounded. mobilenet_v2: torchvision's, whose first bottleneck has no
expansion and whose channels are multiples of 8.

With config.model.norm "dualnorm" it is the DualNorm authors' net: instance norm after every bottleneck of the
first three stages and in place of the stem's norm, whose convolution then has a bias.
"""

import dataclasses
import functools
import re

import flax.linen as nn

from reid_jax.errors import ConfigError
from reid_jax.models import Keys
from reid_jax.models.backbones import Backbone
from reid_jax.models.backbones.resnet import Block
from reid_jax.models.layers import Conv, InstanceNorm
from reid_jax.models.norms.ibn import DualNorm
from reid_jax.models.weights import names

FIELDS = dict(
    mobilenet_width=1.0,  # backbones "mobilenetv2", "mobilenet_v2": factor on the channels
    mobilenet_blocks=(1, 2, 3, 4, 3, 3, 1),  # bottlenecks of the seven groups
    # strides of the stem and of each group; () = 2, 1, 2, 2, 2, 1, model.last_stride, 1
    mobilenet_strides=(),
)

STEM, LAST = 32, 1280  # channels of the first and the last convolution
GROUPS = ((16, 1), (24, 6), (32, 6), (64, 6), (96, 6), (160, 6), (320, 6))  # (channels, expansion)
STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # groups of each stage


class Bottleneck(Block):
    """Inverted residual: 1x1 to `inner` channels, 3x3 depthwise (with the stride), 1x1: [...,H,W,C].

    There is no activation behind it, and no projected shortcut. expand: False leaves the first 1x1 out.
    """

    inner: int = 0
    expand: bool = True

    @nn.compact
    def __call__(self, x, train):
        conv, norm, first = self.layers()
        y = x
        if self.expand:
            y = nn.relu6(first("bn1")(conv(self.inner, name="conv1")(x), train))
        y = conv(self.inner, 3, self.stride, 1, groups=self.inner, name="dwconv2")(y)
        y = nn.relu6((norm if self.expand else first)("bn2")(y, train))
        y = norm("bn3")(conv(self.features, name="conv3")(y), train)
        y = x + y if self.stride == 1 and x.shape[-1] == self.features else y
        after = self.norms.after(self)
        return y if after is None else after(y, train)


class Last(Block):
    """The 1x1 convolution behind the bottlenecks, with norm and ReLU6: [...,H,W,C] -> [...,H,W,features]."""

    @nn.compact
    def __call__(self, x, train):
        conv, norm, _ = self.layers()
        return nn.relu6(norm("bn")(conv(self.features, name="conv")(x), train))


@dataclasses.dataclass(frozen=True)
class EveryDualNorm(DualNorm):
    """DualNorm of this net: behind every block, and in the stem."""

    def stem(self):
        return InstanceNorm()

    def after(self, block):
        return InstanceNorm(name="IN") if self.has(block) else None


class MobileNetV2(Backbone):
    """Images [...,H,W,3] -> maps [...,h,w,C]; 256x128 gives 16x8 with last_stride 1, 8x4 with 2.

    channels: of the stem, the seven groups and the last convolution, which belongs to stage 4. strides: of
    the stem and the groups. counts: blocks of the groups. expand_first: whether the first one has a 1x1
    convolution before its depthwise one. remat: the activations inside a block are computed again in the
    backward pass.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    counts: tuple[int, ...] = FIELDS["mobilenet_blocks"]
    expand_first: bool = True
    remat: bool = False

    @property
    def depth(self):
        return len(STAGES)

    @property
    def places(self):
        return ("stem", *range(1, self.depth + 1))

    def setup(self):
        norms, dual = self.norms, isinstance(self.norms, DualNorm)
        if dual:
            norms = EveryDualNorm(**vars(norms))
        self.conv1 = Conv(self.channels[0], 3, self.strides[0], 1, use_bias=dual, dtype=self.dtype)
        self.bn1 = norms.stem()
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        before = self.channels[0]
        for stage, groups in enumerate(STAGES, 1):
            for group in groups:
                for i in range(self.counts[group]):
                    place = dict(stage=stage, stages=self.depth, first=group == groups[0] and i == 0)
                    place["last"] = group == groups[-1] and i == self.counts[group] - 1
                    place["expand"] = self.expand_first or group > 0 or i > 0
                    stride = self.strides[group + 1] if i == 0 else 1
                    width, inner = self.channels[group + 1], before * GROUPS[group][1]
                    module = block(width, stride, self.dtype, norms, inner=inner, **place)
                    setattr(self, f"conv{group + 2}_{i}", module)
                    before = width
        place = dict(stage=self.depth, stages=self.depth)
        self.conv9 = Last(self.channels[-1], 1, self.dtype, norms, **place)

    def stem(self, x, train):
        """The stem's map."""
        return nn.relu6(self.bn1(self.at("stem", self.conv1(x), train), train))

    def stage(self, number, x, train):
        """The map after stage `number`, from 1, of the map before it."""
        for group in STAGES[number - 1]:
            for i in range(self.counts[group]):
                x = getattr(self, f"conv{group + 2}_{i}")(x, train)
        if number == self.depth:
            x = self.conv9(x, train)
        return self.at(number, x, train)


# ---- by name


def scaled(width, rounded):
    """Channels of the stem, the groups and the last convolution; rounded: to multiples of 8."""
    last = int(LAST * max(width, 1.0))
    channels = (STEM, *(c for c, _ in GROUPS))
    return (
        *(eighth(c * width) if rounded else int(c * width) for c in channels),
        eighth(last) if rounded else last,
    )


def eighth(channels):
    """The nearest multiple of 8, at least 8 and at least 0.9 of it, as torchvision rounds."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def _built(rounded, width=None):
    def build(model, dtype, axis_name):
        strides = tuple(model.mobilenet_strides) or (2, 1, 2, 2, 2, 1, model.last_stride, 1)
        channels = scaled(width or model.mobilenet_width, rounded)
        if len(strides) != 8 or not set(strides) <= {1, 2} or min(channels) < 1:
            raise ConfigError(
                f"config.model.mobilenet_strides is {strides} and mobilenet_width {model.mobilenet_width}; "
                "a MobileNetV2 has eight strides of 1 or 2 and a channel or more everywhere"
            )
        if len(model.mobilenet_blocks) != 7 or min(model.mobilenet_blocks) < 1:
            raise ConfigError(
                f"config.model.mobilenet_blocks is {tuple(model.mobilenet_blocks)}; it must be seven "
                "numbers of 1 or more"
            )
        fields = dict(dtype=dtype, axis_name=axis_name, remat=model.remat)
        return MobileNetV2(channels, strides, tuple(model.mobilenet_blocks), not rounded, **fields)

    return build


NAMES = {
    "mobilenetv2": _built(False),
    "mobilenetv2_x1_0": _built(False, 1.0),
    "mobilenetv2_x1_4": _built(False, 1.4),
    "mobilenet_v2": _built(True),
}
PUBLISHED = {"mobilenet_v2": ("mobilenet_v2-b0353104.pth", "torchvision")}

# ---- other people's files

_FRONTS = ("", "backbone.", "model.", "base.")
_OFFSETS = [sum(FIELDS["mobilenet_blocks"][:g]) for g in range(len(GROUPS))]  # a group's first block


def _names(translate, **heads):
    """Keys.names; translate: (number of a group from 2 or 0; block; module in it) -> key.

    Number 0 has what stands in no group. heads: names of the head's modules.
    """

    def keys_of(modules, leaf):
        if modules[0] != "base":
            path = ("params", heads.get(modules[0], modules[0]), *modules[1:], leaf)
            return [*names.keys(path, "torchvision"), *names.keys(path, "fastreid")]
        place = re.fullmatch(r"conv(\d)_(\d+)", modules[1])
        number, block, inner = (int(place[1]), int(place[2]), modules[2:]) if place else (0, 0, modules[1:])
        if not inner:  # a block's own, AIBN's weight, which no file of this form has
            return [".".join((*modules, leaf))]
        key = ".".join([translate(number, block, inner[0]), *inner[1:], names.leaf_name(leaf)])
        return [front + key for front in _FRONTS]

    return keys_of


_UNITS = {"conv1": "conv1.conv", "bn1": "conv1.bn", "dwconv2": "dwconv2.conv", "bn2": "dwconv2.bn"}
_PAIR = {"conv3": "conv3.0", "bn3": "conv3.1"}


def _torchreid(number, block, inner):
    inner = (_UNITS | _PAIR).get(inner, inner)
    return f"conv{number}.{block}.{inner}" if number else inner


def _dualnorm(number, block, inner):
    if not number:
        return "in1" if inner == "bn1" else inner
    single = FIELDS["mobilenet_blocks"][number - 2] == 1
    return f"block{number}{'' if single else f'.{block}'}.{(_UNITS | _PAIR).get(inner, inner)}"


def _layered(number, block, inner):
    """MetaBIN's."""
    inner = (_UNITS | {"bn3": "bn"}).get(inner, inner)
    return f"layer{number}.{block}.{inner}" if number else re.sub("^conv", "layer", inner)


def _sequence(number, block, inner, whole=False):
    """tonylins' and fast-reid's; whole: torchvision's, where a convolution, its norm and its ReLU are one."""
    if not number:
        return {"conv1": "features.0.0", "bn1": "features.0.1", "conv9": "features.18"}.get(inner, inner)
    place = f"features.{1 + _OFFSETS[number - 2] + block}.conv"
    if not re.fullmatch("(dw)?conv[123]|bn[123]", inner):  # of another net
        return f"{place}.{inner}"
    first = number == 2 and block == 0  # which has no expansion
    norm, unit = int(inner.startswith("bn")), int(inner[-1]) - (2 if first else 1)
    if not whole:
        return f"{place}.{3 * unit + norm}"
    last = unit == (1 if first else 2)
    return f"{place}.{unit + norm}" if last else f"{place}.{unit}.{norm}"


def _in_sequence(whole):
    """Keys.names of the two forms whose modules are numbered."""
    numbered = _names(functools.partial(_sequence, whole=whole))

    def keys(modules, leaf):
        if modules[:2] != ("base", "conv9") or len(modules) == 2:
            return numbered(modules, leaf)
        end = f"{int(modules[2] == 'bn')}.{names.leaf_name(leaf)}"
        usual = "conv." if not whole else "features.18."
        return [front + last + end for last in ("features.18.", usual) for front in _FRONTS]

    return keys


def _layout(key_names, key, norm=(), **fields):
    """Keys of a layout; key: a pattern of the last block's last convolution, which no other layout has.

    norm: (config.model.norm, a pattern of the keys of nets with it). fields: what all its files stand for.
    """

    def last(entries):
        pattern = re.compile(rf"(^|\.){key}\.weight$")
        return next((len(v) for k, v in entries.items() if pattern.search(k)), 0)

    def implied(entries):
        width = last(entries) / GROUPS[-1][0]
        named = {1.0: "mobilenetv2_x1_0", 1.4: "mobilenetv2_x1_4"}
        whole = width in named and fields["backbone"] == "mobilenetv2"
        sized = {"backbone": named[width]} if whole else {"mobilenet_width": width}
        normed = norm and any(re.search(norm[1], k) for k in entries)
        return fields | sized | ({"norm": norm[0]} if normed else {})

    return Keys(key_names, lambda entries: last(entries) > 0, fields=implied)


_METABIN_HEAD = dict(neck="heads.classifier_norm", classifier="heads.classifier_fc")
_V2, _PLAIN = dict(backbone="mobilenetv2"), dict(backbone="mobilenet_v2", last_stride=2)
KEYS = {
    "mobilenetv2": _layout(_names(_torchreid), r"conv8\.0\.conv3\.0", **_V2),
    "mobilenetv2_dualnorm": _layout(
        _names(_dualnorm, neck="fn"), r"block8\.conv3\.0", ("dualnorm", r"(^|\.)in1\."), **_V2, last_stride=2
    ),
    "mobilenetv2_metabin": _layout(
        _names(_layered, **_METABIN_HEAD), r"layer8\.0\.conv3", ("metabin", r"\.bat_n\."), **_V2
    ),
    "mobilenetv2_fastreid": _layout(_in_sequence(False), r"features\.17\.conv\.6", **_PLAIN),
    "mobilenet_v2": _layout(_in_sequence(True), r"features\.17\.conv\.2", **_PLAIN),
}
