"""The method contract: a method is a module of this package, found by its name.

`find("efl").stages(config, info)` gives the stages by name. A stage is a `Method`: pure functions over a
`State`, free of any knowledge of files, loops or devices (but for the name of the device axis,
`info.axis_name`). A module with several stages lists them in order in `STAGES`; each has its own
checkpoints, its own settings (config.stages.NAME, laid over the config that `stages` then gets) and may take
over networks of earlier ones (`inherit`). A stage that trains on pseudo labels has `phases` instead of a
step.
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
    total_steps: int  # 0: not known ahead (a stage with phases)
    axis_name: str | None = None  # device axis inside pmap / shard_map, None on one device
    num_images: int = 0  # of the training set


class State(NamedTuple):
    """Everything that training changes, one entry per network and per optimiser."""

    step: Any  # i32[]
    nets: dict  # name -> variables ({"params", "batch_stats"} or {"params"})
    opt: dict  # name -> optax state; only trained networks have one
    labels: Any = None  # in checkpoints of stages with phases: the pseudo labels i32[N] in use


class Phase(NamedTuple):
    """A part of each round of a stage that trains on pseudo labels of its own making.

    refresh: (features f32[N,D], camid i32[N], State, round) -> labels i32[N] of the training images, -1 for
             those left out; on the host, features by the method's first network
    begin:   (State, features, labels, camid, round) -> State for the phase (fresh classifiers, optimisers,
             memories), outside jit
    step:    as Method.step; batch["pid"] are the pseudo labels
    batches: "labels" (P x K by label) | "cameras" (data.instances images of each camera)
    data:    config.data with the phase's own ids and instances
    epochs:  over the labelled images
    steps:   > 0: so many steps instead
    """

    refresh: Callable
    begin: Callable
    step: Callable
    batches: str
    data: Any
    epochs: int
    steps: int = 0


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
    batches:    what step takes, one of data.pipeline.KINDS: "pk" | "triples"
    inherit:    None, or (State, load, extract) -> State, outside jit, after warm_start: takes over networks
                of earlier stages, load(stage, net) -> variables as numpy. extract(f, variables) ->
                f(variables, image u8[B,H,W,3]) of all training images, numpy [N,D]
    study:      None, or (dataset, over) -> (State -> ({name: figure}, {name: array})): measurements of the
                stage's own on the test images, taken at every evaluation. over(f) makes a pure function
                (State, arrays of B rows) -> tree into one for any number of rows, run in batches. Arrays
                called grid/TITLE u8[R,C,H,W,3] become pictures
    phases:     None, or {name: Phase}, gone through in each of `rounds` rounds; step is None then
    rounds:     see phases

    Tracklets tested by all their frames, where a method can do that:
    embed_frames: (State, clips u8[B,T,H,W,3], net) -> f32[B,T,C], a vector of each frame; or f32[B,1,C], one
                  for all frames of a clip
    embed_pooled: (State, mean f32[B,C] of a tracklet's vectors over all its frames, net) -> f32[B,D]
    camera_net:   "", or a network for embed and its kin whose features tell cameras apart, for pictures
    accumulates:  whether the step heeds config.train.accumulate
    look:         None, or (State, clips u8[B,T,H,W,3]) -> {"map/TITLE": f32[B,T,h,w], "weight": f32[B,T]}:
                  where the network looks and how much it trusts each frame, for pictures
    frames_apart: whether a frame's vector is the same whatever the other frames of its clip, so that short
                  clips may be padded
    """

    init: Callable
    step: Callable | None
    embed: Callable
    nets: tuple
    warm_start: Callable | None = None
    batches: str = "pk"
    inherit: Callable | None = None
    study: Callable | None = None
    phases: dict | None = None
    rounds: int = 0
    embed_frames: Callable | None = None
    embed_pooled: Callable | None = None
    frames_apart: bool = True
    camera_net: str = ""
    accumulates: bool = False
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


def stage_names(name):
    """The stages of method `name` in order."""
    return getattr(find(name), "STAGES", ("train",))


def choose_net(method, net):
    """Resolves config.eval.net (auto, all or a network's name) to a list of names."""
    if net == "auto":
        return [method.nets[0]]
    if net == "all":
        return list(method.nets)
    if net in method.nets:
        return [net]
    raise ConfigError(
        f"config.eval.net is {net!r}; this method and mode have auto, all, {', '.join(method.nets)}"
    )
