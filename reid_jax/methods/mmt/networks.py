"""How many networks there are, of which backbones, and what cannot be."""

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, namespace, overlay, plain
from reid_jax.methods.mmt import labels

MOST = 3  # networks, and stages on the source


def with_backbone(config, i):
    """config with the backbone of network i, counted from 0, of config.mmt.backbones."""
    names = tuple(config.mmt.backbones)
    name = names[i] if i < len(names) else ""
    return namespace(overlay(plain(config), {"model": {"backbone": name}})) if name else config


def check(config, info, teachers):
    """ConfigError for networks that cannot be; teachers: whether there are any."""
    choice("model.neck", config.model.neck, ("bnneck",))  # classifiers become centres, without bias
    fields, count = config.mmt, len(config.mmt.backbones)
    if not 1 <= count <= MOST:
        raise ConfigError(f"config.mmt.backbones has {count} names; it must have 1 to {MOST}")
    choice("mmt.authority", fields.authority, ("", *labels.CLUSTERINGS))
    if fields.lambda_value and info.unlabelled is not None and info.labelled is None:
        raise ConfigError(
            f"config.mmt.lambda_value is {fields.lambda_value}, and there is no source: set it to 0, or "
            "join one in config.data.name"
        )
    if fields.authority and not teachers:
        raise ConfigError(
            "config.mmt.authority weighs teachers and config.mmt.teachers is False: set authority=''"
        )
