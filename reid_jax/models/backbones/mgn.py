"""MGN's backbone (Wang et al., ACM MM 2018): a ResNet whose last blocks exist once for each branch."""

from reid_jax.errors import ConfigError
from reid_jax.models.backbones.resnet import Bottleneck, ResNet, fields_of, slim_sizes
from reid_jax.models.layers import Conv

FIELDS = dict(
    mgn_parts=(1, 2, 3),  # backbones *_mgn and head "mgn": horizontal parts of the branches, 1: the whole map
)


class Branch(ResNet):
    """The blocks of a ResNet behind the first one of its last stage but one: maps to maps."""

    def setup(self):
        before, last = self.depth - 2, self.depth - 1
        places = [(before, i) for i in range(1, self.counts[before])]
        places += [(last, i) for i in range(self.counts[last])]
        self.keys = tuple(f"layer{stage + 1}_{index}" for stage, index in places)
        for key, place in zip(self.keys, places, strict=True):
            setattr(self, key, self.make(self.block, *place))

    def __call__(self, x, train):
        for key in self.keys:
            x = getattr(self, key)(x, train)
        return x


class BranchedResNet(ResNet):
    """Images [...,H,W,3] -> a tuple of maps, one of each branch; branch i has last stride `strides[i]`.

    Stem, stages and the first block of the last stage but one are shared; stage `depth` is the branches.
    Weight files of an ordinary ResNet start all branches with the same values.
    """

    strides: tuple[int, ...] = (2, 1, 1)

    @property
    def outputs(self):
        return len(self.strides)

    @property
    def places(self):
        return ("stem", "pool", *range(1, self.depth))

    def setup(self):
        self.conv1 = Conv(self.width, 7, 2, 3, dtype=self.dtype)
        self.bn1 = self.norms.stem()
        shared = self.depth - 2
        split = f"layer{shared + 1}_0"
        setattr(self, split, self.make(self.block, shared, 0))
        self.keys = (*(self.add(stage) for stage in range(shared)), (split,))
        for number, stride in enumerate(self.strides, 1):
            setattr(self, f"branch{number}", self.branch(stride))

    def branch(self, stride):
        """The blocks of one branch."""
        fields = dict(norms=self.norms, dtype=self.dtype, axis_name=self.axis_name, remat=self.remat)
        return Branch(self.block, self.counts, stride, width=self.width, **fields)

    def stage(self, number, x, train):
        """The map after stage `number`, from 1, of the map before it; after the last one the branches'."""
        if number < self.depth:
            return super().stage(number, x, train)
        return tuple(getattr(self, f"branch{i}")(x, train) for i in range(1, self.outputs + 1))


def _net(model, counts, width, settings):
    """BranchedResNet of config.model; ConfigError for branches that describe none."""
    parts = tuple(model.mgn_parts)
    if not parts or min(parts) < 1:
        raise ConfigError(f"config.model.mgn_parts is {parts}; it must be 1 or more parts for every branch")
    strides = tuple(model.last_stride if n == 1 else 1 for n in parts)
    return BranchedResNet(Bottleneck, counts, width=width, strides=strides, **fields_of(model, *settings))


def _built(counts):
    return lambda model, *settings: _net(model, counts, 64, settings)


NAMES = {
    "resnet50_mgn": _built((3, 4, 6, 3)),
    "resnet50_mgn_ibn_a": _built((3, 4, 6, 3)),
    "resnet101_mgn": _built((3, 4, 23, 3)),
    "slim_mgn": lambda model, *settings: _net(model, *slim_sizes(model), settings),
}
NORM = {"resnet50_mgn_ibn_a": "ibn_a"}
