"""A small residual net for runs of minutes on a CPU."""

import flax.linen as nn

from reid_jax.errors import ConfigError
from reid_jax.models.backbones import Backbone
from reid_jax.models.backbones.resnet import BasicBlock
from reid_jax.models.layers import Conv

FIELDS = dict(narrow_widths=(16, 32, 48, 64))  # backbone "narrow" only: channels of stem and blocks


class Narrow(Backbone):
    """Images [...,H,W,3] -> maps [...,h,w,C]; 64x32 images have an 8x4 map.

    widths: channels of the 5x5 stem (stride 2) and of the residual blocks (stride 2, the last one 1). A stage
    is a block; as a place and for its norms the stem counts as stage 1, the first block as 2.
    """

    widths: tuple[int, ...] = (16, 32, 48, 64)

    @property
    def depth(self):
        return len(self.widths) - 1

    @property
    def places(self):
        return ("stem", *range(1, len(self.widths) + 1))

    def setup(self):
        self.conv1 = Conv(self.widths[0], 5, 2, 2, dtype=self.dtype)
        self.bn1 = self.norms.stem()
        for number in range(1, self.depth + 1):
            stride = 1 if number == self.depth else 2
            place = dict(stage=number + 1, stages=len(self.widths), first=True, last=True)
            block = BasicBlock(self.widths[number], stride, self.dtype, self.norms, **place)
            setattr(self, f"layer{number}_0", block)

    def stem(self, x, train):
        """The stem's map."""
        x = self.at("stem", self.conv1(x), train)
        return self.at(1, nn.relu(self.bn1(x, train)), train)

    def stage(self, number, x, train):
        """The map after block `number`, from 1, of the map before it."""
        return self.at(number + 1, getattr(self, f"layer{number}_0")(x, train), train)


def build(model, dtype, axis_name):
    """Narrow of config.model; ConfigError for widths that describe no net."""
    if not tuple(model.narrow_widths) or min(model.narrow_widths) < 1:
        raise ConfigError(
            f"config.model.narrow_widths is {model.narrow_widths!r}; it must be channels of 1 or more, the "
            "stem's and those of every block"
        )
    return Narrow(tuple(model.narrow_widths), dtype=dtype, axis_name=axis_name)


NAMES = {"narrow": build}
