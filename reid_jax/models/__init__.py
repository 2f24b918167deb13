"""Networks. Backbones, norms, styles and heads are modules of their packages, found by name.

A module of one of these packages lists what it offers in NAMES, {name: builder}, and its fields of
config.model with their defaults in FIELDS; nothing else has to be edited to add one. A backbone's or head's
module may list in KEYS the layouts of other people's weight files that are its alone, {name: Keys}, and a
backbone's in PUBLISHED the file of ImageNet weights that there is, {name: (file, whose)}; such a file's name
ends with the first digits of its SHA-256.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

FIELDS = dict(
    # resnet18 | resnet34 | resnet50 | resnet101 | resnet50_ibn_a | resnest50; with AGW's non-local blocks
    # resnet50_nl | resnet50_nl_ibn_a | resnet101_nl | slim_nl; MGN's, with a map for each branch,
    # resnet50_mgn | resnet50_mgn_ibn_a | resnet101_mgn | slim_mgn; osnet_x1_0, ... (README.md); vit_b16 |
    # deit_s16 | deit_t16 | vit_small; for CPUs narrow | slim | vit_narrow; for clips c2d_resnet50 |
    # ap3d_resnet50 | ap3dnl_resnet50; for visible and infrared two_stream_resnet50 | two_stream_slim
    backbone="resnet50",
    last_stride=1,
    stem_relu=True,
    # global (one vector) | stripes (PCB) | contrast (unit vector, no classifier); with parts also refined
    # (RPP) | mgn | pyramid; fc (OSNet) | pair (HA-CNN); of ViTs: token | jpm
    head="global",
    # auto (narrow: stripes, others: avg) | avg | max | gem | gem_fixed (its exponent not trained) |
    # power_mean (the cross-modality AGW's) | avg_max (their sum) | stripes
    pool="auto",
    neck="ap3d",  # of head "global": ap3d | bnneck | none
    dtype="float32",  # compute type: float32 | bfloat16; state is always float32
    norm="batch",  # batch | aibn | ibn_a | ibn_b | dualnorm | instance | bin | metabin | bin_half
    norm_stages=(),  # aibn, ibn_a, ibn_b, dualnorm: the stages that have it; () = the usual ones
    style="none",  # none | mixstyle | dsu: styles changed at random in training
    bn_group="device",  # device | global: over what batch norm takes its statistics
    bn_rows=0,  # > 0: statistics of so many consecutive rows of a device's batch at a time
    remat=False,  # ResNets, ViTs: compute activations again in the backward pass, to save memory
)


_OFFERED = {  # name: module
    **dict.fromkeys(("Branches", "Encoder", "Head", "ReIDNet", "build", "encoder"), "heads"),
    **dict.fromkeys(("Backbone",), "backbones"),
    "Club": "club",
}


def __getattr__(name):
    """The public names of the packages below, which import this module themselves."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OFFERED[name]}"), name)


def fields():
    """All fields of config.model with their defaults: the common ones and those of every module."""
    defaults = dict(FIELDS)
    for package in ("backbones", "norms", "styles", "pooling", "classifiers", "heads"):
        for module in modules(f"{__name__}.{package}"):
            defaults |= getattr(module, "FIELDS", {})
    return defaults


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

    names: (modules, leaf), e.g. (("base", "conv1"), "kernel") -> keys the leaf may have there, the usual
    one first, also of nets that such files never hold; see models.weights.names for what they are made
    with. matches: {key without wrappers: array} -> whether a file is of this layout. written: whether
    files are written in it too. read: where arrays have another form there, ({key: array}, {path: leaf of
    the model}) -> ({key: (key in the file, array)} of those in ours, sentences on it); write: {key: array
    in ours} -> as in files. fields: {key: array} -> {field of config.model: value} that such a file
    stands for, as its backbone. bare: whether names is asked for what stands in the trunk itself, as a
    ViT's class token; no other net has such leaves.
    """

    names: Callable
    matches: Callable
    written: bool = True
    fields: Callable = lambda entries: {}
    read: Callable | None = None
    write: Callable | None = None
    bare: bool = False


@functools.cache
def published():
    """{name of a backbone: (file of ImageNet weights, whose)} of those that have one."""
    backbones = modules(f"{__name__}.backbones")
    return {name: file for module in backbones for name, file in getattr(module, "PUBLISHED", {}).items()}


@functools.cache
def keys():
    """{layout: Keys} of all backbones and heads, and of `weights` itself."""
    packages = ("backbones", "heads", "weights")
    sources = [module for package in packages for module in modules(f"{__name__}.{package}")]
    return {name: layout for module in sources for name, layout in getattr(module, "KEYS", {}).items()}
