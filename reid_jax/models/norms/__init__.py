"""Norms by name: which norm stands where in a residual net. A module lists its own in NAMES.

NAMES: {config.model.norm: subclass of Norms}. A net calls four hooks: `stem` for its first norm, and for a
block `every` for all of its norms, `first` for the first of them, `after` for what follows the residual sum.
"""

import dataclasses

from reid_jax import models
from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.layers import BatchNorm


@dataclasses.dataclass(frozen=True)
class Norms:
    """Batch norm everywhere; others override the hooks. A norm is a module (x, train) -> x.

    `block` has stage (1 to stages), stages, first and last (whether it is that in its stage), and `param`.
    """

    axis_name: str | None = None
    rows: int = 0
    domains: int = dataclasses.field(default=1, kw_only=True)  # this and the next: see layers.RunningMoments
    test_domain: int = dataclasses.field(default=0, kw_only=True)

    by_domain = True  # whether it can have statistics and parameters for each of several domains
    bounds = ()  # ((pattern of parameters' paths, least, most), ...): clipped after every step

    @classmethod
    def given(cls, model):
        """{field: value} that a norm takes of config.model beside the common ones."""
        return {}

    def batch(self, **fields):
        """A plain batch norm."""
        by_domain = dict(domains=self.domains, test_domain=self.test_domain)
        return BatchNorm(axis_name=self.axis_name, rows=self.rows, **by_domain, **fields)

    def stem(self):
        """The norm of the net's stem."""
        return self.batch()

    def every(self, block):
        """Function of a name that makes a norm of a block."""
        return lambda name: self.batch(name=name)

    def first(self, block, norm):
        """The same for the first norm of a block; norm: what `every` gave."""
        return norm

    def after(self, block):
        """What stands behind a block's residual sum, before its last ReLU: a module, or None."""
        return None


@dataclasses.dataclass(frozen=True)
class StagedNorms(Norms):
    """Norms that only the blocks of some stages have; (): the usual ones."""

    stages: tuple = ()

    def usual(self, stages):
        """The stages that have it in a net of so many, unless config.model.norm_stages says others."""
        raise NotImplementedError

    def has(self, block):
        """Whether a block has the norm."""
        return block.stage in (self.stages or self.usual(block.stages))


def build(model, axis_name=None, implied=None, domains=1, test_domain=0):
    """The Norms of config.model; axis_name: over which batch statistics are joined.

    implied: the norm that the backbone's name stands for, if any. domains, test_domain: see
    layers.RunningMoments. Raises ConfigError for names it does not
    know and for fields that do not go together.
    """
    offered = models.offers("norms")
    name = choice("model.norm", model.norm, tuple(offered))
    if implied and name not in ("batch", implied):
        raise ConfigError(
            f"config.model.backbone {model.backbone!r} stands for config.model.norm {implied!r}, but norm is "
            f"{name!r}; use backbone resnet50"
        )
    name = implied or name
    norms = offered[name].NAMES[name]
    if model.bn_rows < 0 or (model.bn_rows and name == "aibn"):
        raise ConfigError(
            f"config.model.bn_rows is {model.bn_rows}; it must be 0 or more, and 0 with norm aibn"
        )
    staged = issubclass(norms, StagedNorms)
    if model.norm_stages and not staged:
        raise ConfigError(f"config.model.norm_stages has no meaning with norm {name!r}; leave it ()")
    if domains > 1 and not norms.by_domain:
        raise ConfigError(
            f"config.model.norm {name!r} has no form with norms by domain: use norm batch, or train without "
            "them"
        )
    fields = norms.given(model) | dict(domains=domains, test_domain=test_domain)
    return norms(axis_name, model.bn_rows, *([tuple(model.norm_stages)] if staged else []), **fields)
