"""AGW's ResNet for visible against infrared: a stem for each modality, everything after it shared.

Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", PAMI 2021, section 5, as its
repository Cross-Modal-Re-ID-baseline has it. The first stem has the names of an ordinary ResNet; the second's
begin with `second_` and take the same pretrained weights.
"""

import re

import flax.linen as nn
import jax.numpy as jnp

from reid_jax import models
from reid_jax.errors import ConfigError
from reid_jax.models.backbones.non_local import NonLocalResNet, net_of
from reid_jax.models.backbones.resnet import slim_sizes
from reid_jax.models.layers import Conv
from reid_jax.models.weights.names import dotted, leaf_name

FIELDS = dict(
    # backbones two_stream_*: cameras, in training's numbers, whose pictures go through the second stem:
    # (2, 5) of SYSU-MM01, (1,) of RegDB
    second_stem=(),
)


class TwoStreamResNet(NonLocalResNet):
    """NonLocalResNet with a second stem for the pictures of some cameras: [...,H,W,3] -> [...,h,w,C].

    In training half of a batch is of these cameras, and the norm of each stem takes the statistics of its
    half. An unknown camera's pictures go through the first stem.
    """

    second: tuple[int, ...] = ()
    cameras: int = 0

    wants_camera = True
    by_domain = False

    def setup(self):
        super().setup()
        self.second_conv1 = Conv(self.width, 7, 2, 3, dtype=self.dtype)
        self.second_bn1 = self.norms.stem()

    def __call__(self, x, train, camera=None):
        """The last map; camera: i32[B], None or another number for an unknown one."""
        return self.shared(self.stems(x, train, camera), train)

    def shared(self, x, train):
        """The last map of the stems' maps."""
        return self.maps(self.pool(x, train), train, 1)[-1]

    def stems(self, x, train, camera):
        """Every picture's map by its own stem."""
        other = jnp.zeros(len(x), bool) if camera is None else jnp.isin(camera, jnp.array(self.second, int))
        if not train:
            second = other.reshape(-1, *(1,) * (x.ndim - 1))
            return jnp.where(second, self.second_of(x, False), self.stem(x, False))
        order, half = jnp.argsort(other, stable=True), len(x) // 2
        x = x[order]
        return self.both(x[:half], x[half:], True)[jnp.argsort(order)]

    def both(self, first, second, train):
        """The stems' maps, one after the other, of pictures of the one sort and of the other."""
        return jnp.concatenate([self.stem(first, train), self.second_of(second, train)])

    def second_of(self, x, train):
        """`stem`, with the second one's weights."""
        x = self.at("stem", self.second_conv1(x), train)
        x = self.second_bn1(x, train)
        return nn.relu(x) if self.stem_relu else x


def _built(counts):
    return lambda model, *settings: _net(model, counts, 64, settings)


def _slim(model, *settings):
    return _net(model, *slim_sizes(model), settings)


def _net(model, counts, width, settings):
    """TwoStreamResNet of config.model; ConfigError where no camera has the second stem."""
    second = tuple(model.second_stem)
    if not second or min(second) < 0:
        raise ConfigError(
            f"config.model.second_stem is {second}; {model.backbone} needs the numbers of the infrared "
            "cameras, (2, 5) for SYSU-MM01, (1,) for RegDB"
        )
    return net_of(model, counts, width, settings, TwoStreamResNet, second=second)


NAMES = {"two_stream_resnet50": _built((3, 4, 6, 3)), "two_stream_slim": _slim}

_STEMS = {"": "visible_module.visible", "second_": "thermal_module.thermal"}
_HEADS = {"neck": "bottleneck"}


def _published(modules, leaf):
    """The repository's name of a leaf."""
    first, *inside = modules
    if first != "base":
        return [".".join([_HEADS.get(first, first), *map(dotted, inside), leaf_name(leaf)])]
    stem = re.fullmatch(r"(second_|)(conv1|bn1)", inside[0])
    if stem:
        return [".".join([_STEMS[stem[1]], stem[2], leaf_name(leaf)])]
    if inside[0].startswith("NL_"):
        sequence = ["g.0"] if inside[1] == "g" else [dotted(inside[1])]
        return [".".join([dotted(inside[0]), *sequence, leaf_name(leaf)])]
    return [".".join(["base_resnet.base", *map(dotted, inside), leaf_name(leaf)])]


def _is_published(entries):
    return any(key.startswith(tuple(f"{stem}." for stem in _STEMS.values())) for key in entries)


KEYS = {
    "agw_infrared": models.Keys(
        _published, _is_published, fields=lambda entries: {"backbone": "two_stream_resnet50"}
    )
}
