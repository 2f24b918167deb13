"""What runners share: the config, variables of a case's weights, keys of both sides."""

import jax

from reid_jax.fields import namespace
from reid_jax.methods import defaults
from reid_jax.parity import nets


def config(**fields):
    """This library's config with fields of config.adl."""
    tree = defaults("adl")
    tree["adl"].update(fields)
    tree["loss"].update(triplet="euclidean", feature="before_bn")
    return namespace(tree)


def filled(case, module, entries, *args):
    """Variables of a module for these arguments, from {our key in PyTorch's layout: array}."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    shapes = {k: v for k, v in shapes.items() if k in ("params", "batch_stats")}
    return nets.fill(shapes, entries, case.dtype, layout="torchvision")


def renamed(entries, names):
    """{key: array} with the beginnings of keys that `names` translates; others are left out."""
    pairs = ((k, a, b) for k in entries for a, b in names.items() if k.startswith(f"{a}."))
    return {b + k[len(a) :]: entries[k] for k, a, b in pairs}


def torch(params, names=None):
    """{PyTorch key: array} of params; names: {key of the case: ours}."""
    entries = nets.torch_entries({"params": params})
    return renamed(entries, {b: a for a, b in names.items()}) if names else entries
