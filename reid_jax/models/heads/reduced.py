"""Head "contrast_reduced": unit features of a map with fewer channels."""

import dataclasses
from typing import Any

from reid_jax.fields import within
from reid_jax.models.heads._branches import Head
from reid_jax.models.heads.pooled import NAMES as POOLED
from reid_jax.models.heads.pooled import ContrastHead
from reid_jax.models.layers import Conv

FIELDS = dict(reduced_dim=256)  # head "contrast_reduced": channels that a 1x1 convolution leaves of the map's


class ReducedContrastHead(ContrastHead):
    """ContrastHead whose map first goes through a 1x1 convolution `reduce` without norm."""

    reduce: Any = None

    def map(self, base, x, train, **options):
        return self.reduce(super().map(base, x, train, **options))


def build(model, num_classes, axis_name, num_features):
    """ReducedContrastHead of config.model; ConfigError for sizes that describe none."""
    within("model", model, reduced_dim=(1, None))
    head = POOLED["contrast"](model, num_classes, axis_name, num_features)
    names = {f.name for f in dataclasses.fields(ContrastHead)} - {f.name for f in dataclasses.fields(Head)}
    fields = {name: getattr(head, name) for name in names}
    return ReducedContrastHead(**fields, reduce=Conv(model.reduced_dim))


NAMES = {"contrast_reduced": build}
