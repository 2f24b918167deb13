"""The method contract: a method is a module of this package, found by its name.

`find("efl").stages(config, info)` gives the stages to run one after the other. A stage is a
`Method`: pure functions over a `State`, free of any knowledge of files, loops or devices (but for
the name of the device axis, `info.axis_name`).
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

from reid_jax.errors import ConfigError


class Info(NamedTuple):
    """What a method may know about the data and the run."""

    num_pids: int
    num_cams: int
    steps_per_epoch: int
    total_steps: int
    axis_name: str | None = None  # device axis inside pmap / shard_map, None on one device


class State(NamedTuple):
    """Everything that training changes, one entry per network and per optimiser."""

    step: Any  # i32[]
    nets: dict  # name -> variables ({"params", "batch_stats"} or {"params"})
    opt: dict  # name -> optax state; only trained networks have one


class Method(NamedTuple):
    """One stage of a method.

    init:       (key, batch) -> State, under jit; `batch` as step gets it, only shapes matter
    step:       (State, batch) -> (State, {name: f32[]}), per device; the batch is the device's part
    embed:      (State, image u8[B,H,W,3] or clips u8[B,T,H,W,3], net) -> f32[B,D], test features of network
                `net`
    nets:       the names that embed knows, the default first
    warm_start: (State, load) -> State, outside jit; load(name, variables, fallback=None) returns the
                variables of network `name` with pretrained weights filled in (those of network
                `fallback` when the source has none of that name)
    refresh:    None, or (features f32[N,D], camid i32[N], State) -> pseudo labels i32[N]

    Tracklets tested by all their frames, where a method can do that:
    embed_frames: (State, clips u8[B,T,H,W,3], net) -> f32[B,T,C], a vector of each frame; or f32[B,1,C], one
                  for all frames of a clip
    embed_pooled: (State, mean f32[B,C] of a tracklet's vectors over all its frames, net) -> f32[B,D]
    camera_net:   "", or a network for embed and its kin whose features tell cameras apart, for pictures
    look:         None, or (State, clips u8[B,T,H,W,3]) -> {"map/TITLE": f32[B,T,h,w], "weight": f32[B,T]}:
                  where the network looks and how much it trusts each frame, for pictures
    frames_apart: whether a frame's vector is the same whatever the other frames of its clip, so that short
                  clips may be padded
    """

    init: Callable
    step: Callable
    embed: Callable
    nets: tuple
    warm_start: Callable | None = None
    refresh: Callable | None = None
    embed_frames: Callable | None = None
    embed_pooled: Callable | None = None
    frames_apart: bool = True
    camera_net: str = ""
    look: Callable | None = None


def names():
    """Names of all methods: the public modules of this package that offer `stages`."""
    found = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return sorted(n for n in found if n not in ("parts",))


def find(name):
    """Returns the module of method `name`; raises ConfigError when there is none."""
    if name not in names():
        raise ConfigError(f"config.method is {name!r}; the methods are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def choose_net(method, net):
    """Resolves config.eval.net to a list of network names ("mean" is one of them)."""
    if net == "auto":
        return [method.nets[0]]
    if net == "all":
        return [*method.nets, *(["mean"] if len(method.nets) > 1 else [])]
    if net == "mean" or net in method.nets:
        return [net]
    raise ConfigError(
        f"config.eval.net is {net!r}; this method and mode have auto, mean, all, {', '.join(method.nets)}"
    )
