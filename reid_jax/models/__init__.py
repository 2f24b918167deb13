"""Networks. Backbones, norms, styles and heads are modules of their packages, found by name.

A module of one of these packages lists what it offers in NAMES, {name: builder}, and its fields of
config.model with their defaults in FIELDS; nothing else has to be edited to add one. A backbone's or head's
module may list in KEYS the layouts of other people's weight files that are its alone, {name: Keys}.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

FIELDS = dict(
    # resnet18 | resnet34 | resnet50 | resnet101 | resnet50_ibn_a | resnest50, for CPUs narrow | slim, and for
    # clips c2d_resnet50 | ap3d_resnet50 | ap3dnl_resnet50
    backbone="resnet50",
    last_stride=1,
    stem_relu=True,
    head="global",  # global (one vector) | stripes (PCB) | contrast (unit vector, no classifier)
    # auto (narrow: stripes, others: avg) | avg | max | gem | gem_fixed (its exponent not trained) | avg_max
    # (their sum) | stripes
    pool="auto",
    neck="ap3d",  # of head "global": ap3d | bnneck | none
    dtype="float32",  # compute type: float32 | bfloat16; state is always float32
    norm="batch",  # batch | aibn | ibn_a | ibn_b | dualnorm | bin | metabin
    norm_stages=(),  # aibn, ibn_a, ibn_b, dualnorm: the stages that have it; () = the usual ones
    style="none",  # none | mixstyle | dsu: styles changed at random in training
    bn_group="device",  # device | global: over what batch norm takes its statistics
    bn_rows=0,  # > 0: statistics of so many consecutive rows of a device's batch at a time
    remat=False,  # ResNets: compute activations again in the backward pass, to save memory
)


def fields():
    """All fields of config.model with their defaults: the common ones and those of every module."""
    found = dict(FIELDS)
    for package in ("backbones", "norms", "styles", "pooling", "classifiers", "heads"):
        for module in modules(f"{__name__}.{package}"):
            found |= getattr(module, "FIELDS", {})
    return found


@functools.cache
def modules(package):
    """A module and, if it is a package, all public modules in it."""
    top = importlib.import_module(package)
    inside = [m.name for m in pkgutil.iter_modules(getattr(top, "__path__", ())) if m.name[0] != "_"]
    return (top, *(importlib.import_module(f"{package}.{name}") for name in inside))


@functools.cache
def offers(package):
    """{name: module} of everything that the modules of a package of models offer."""
    return {
        name: module for module in modules(f"{__name__}.{package}") for name in getattr(module, "NAMES", {})
    }


class Keys(NamedTuple):
    """How a net's leaves are called in files of one repository.

    names: (modules, leaf), e.g. (("base", "conv1"), "kernel") -> keys the leaf may have there, the usual one
    first; see models.weights.names for what they are made with. matches: {key without wrappers: array} ->
    whether a file is of this layout. written: whether files are written in it too.
    """

    names: Callable
    matches: Callable
    written: bool = True


@functools.cache
def keys():
    """{layout: Keys} of all backbones and heads."""
    every = (*modules(f"{__name__}.backbones"), *modules(f"{__name__}.heads"))
    return {name: layout for module in every for name, layout in getattr(module, "KEYS", {}).items()}
