"""The stages of a run: their order, settings and plans, and what later ones read of earlier ones."""

import copy
import logging
import math
import os
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from reid_jax import methods
from reid_jax.config import completed, flatten, namespace, split_label
from reid_jax.data import pipeline
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.train import checkpoint

log = logging.getLogger(__name__)


def settings(config, name):
    """The config of one stage: config.stages.NAME laid over the rest.

    config: ConfigDict or nested namespace; returned as it is when the stage has no settings of its own.
    Raises ConfigError for a field that there is not, or a stage that the method does not have.
    """
    tree = plain(config)
    known = methods.stage_names(tree["method"])
    unknown = sorted(set(tree.get("stages", {})) - set(known))
    if unknown:
        raise ConfigError(f"config.stages has {', '.join(unknown)}; {tree['method']} has {', '.join(known)}")
    own = tree.get("stages", {}).get(name)
    return namespace(overlay(tree, own, f"stages.{name}.")) if own else config


def plain(config):
    """Nested dict of a ConfigDict, a nested namespace or a nested dict."""
    if hasattr(config, "to_json_best_effort"):
        return checkpoint.plain(config)
    tree = config if isinstance(config, dict) else vars(config)
    return {k: plain(v) if isinstance(v, dict) or hasattr(v, "__dict__") else v for k, v in tree.items()}


def overlay(tree, own, prefix=""):
    """A copy of nested dict `tree` with the values of `own`; ConfigError for a field that tree lacks."""
    tree = copy.deepcopy(tree)
    have = {*flatten(tree)}
    for field, value in flatten(own).items():
        if field not in have:
            raise ConfigError(f"config.{prefix}{field} is no field: there is no config.{field}")
        *path, last = field.split(".")
        node = tree
        for key in path:
            node = node[key]
        node[last] = value
    return tree


def of_config(config):
    """Names of the stages of a run in order: the method's without those of config.train.skip."""
    known, skip = methods.stage_names(config.method), tuple(config.train.skip)
    if set(skip) - set(known) or len(set(skip)) == len(known):
        raise ConfigError(f"config.train.skip is {skip}; {config.method} has {', '.join(known)}")
    return [n for n in known if n not in skip]


def to_train(config):
    """Names of the stages that this run trains: all, or config.train.only; those of other runs left out."""
    names, only = of_config(config), config.train.only
    if only and only not in names:
        raise ConfigError(f"config.train.only is {only!r}; this run has {', '.join(names)}")
    taken = elsewhere(config)
    return [n for n in names if n == only or (not only and n not in taken)]


def elsewhere(config):
    """{stage: workdir} of config.init.stages, finished stages of other runs."""
    found = {}
    for text in filter(None, config.init.stages.split(",")):
        stage, workdir = split_label(text)
        if stage not in methods.stage_names(config.method):
            known = ", ".join(methods.stage_names(config.method))
            raise ConfigError(f"config.init.stages has {text!r}; use STAGE=WORKDIR with a stage of {known}")
        found[stage] = workdir
    return found


def loader(config, workdir):
    """load(stage, net) -> numpy variables of a network from the newest checkpoint of an earlier stage.

    Looks in config.init.stages, then in workdir. Raises CheckpointError when there is no such thing.
    """
    folders, kept = elsewhere(config), {}

    def load(stage, net):
        folder = folders.get(stage, workdir)
        if stage not in kept:
            kept[stage] = newest(folder, stage)
        found = {k.split("/", 2)[2]: v for k, v in kept[stage].items() if k.startswith(f"nets/{net}/")}
        if not found:
            raise CheckpointError(f"stage {stage!r} of {folder} has no network {net!r}")
        log.info("%s: taken from stage %s of %s", net, stage, folder)
        return traverse_util.unflatten_dict(found, sep="/")

    return load


def newest(workdir, stage):
    """{leaf path: numpy array} of the newest checkpoint of a stage."""
    missing = CheckpointError(
        f"{workdir} holds no checkpoint of stage {stage!r}: train it first, or name a run that has it with "
        f"--config.init.stages={stage}=WORKDIR"
    )
    if not os.path.isdir(os.path.join(workdir, "checkpoints", stage)):
        raise missing
    checkpoints = checkpoint.Checkpoints(workdir, stage)
    try:
        if not checkpoints.steps():
            raise missing
        return checkpoints.read_arrays(checkpoints.steps()[-1])
    finally:
        checkpoints.close()


def last_begun(workdir, only=""):
    """(name, Checkpoints) of the last stage of a run that has a checkpoint, or of stage `only`; to be closed.

    Raises CheckpointError when there is none.
    """
    folder = os.path.join(workdir, "checkpoints")
    found = os.listdir(folder) if os.path.isdir(folder) else []
    for name in reversed(in_order(workdir, [n for n in found if not only or n == only])):
        checkpoints = checkpoint.Checkpoints(workdir, name)
        if checkpoints.steps():
            return name, checkpoints
        checkpoints.close()
    of = f" of stage {only!r} (config.train.only)" if only else ""
    raise CheckpointError(f"{workdir} holds no finished checkpoint{of}; train first")


def in_order(workdir, found):
    """Names of stages in the order of the run's method."""
    if len(found) < 2:
        return found
    return [n for n in methods.stage_names(checkpoint.read_config(workdir)["method"]) if n in found]


def of_run(workdir):
    """The config of a run as a nested dict, with fields that are newer than the run."""
    return completed(checkpoint.read_config(workdir))


class Plan(NamedTuple):
    """When things happen, in steps (of a stage with phases: in rounds)."""

    total: int
    per_epoch: int
    log: int
    evaluate: int  # 0: only at the end
    checkpoint: int


def plan(config, dataset, kind="pk"):
    """A stage's length and intervals in steps; kind: of its batches."""
    train = config.train
    per_epoch = pipeline.steps_per_epoch(dataset, config.data, kind)
    total = train.steps or math.ceil(train.epochs * per_epoch)
    return Plan(
        total,
        per_epoch,
        max(train.log_every, 1),
        math.ceil(train.eval_every * per_epoch),
        max(math.ceil(train.checkpoint_every * per_epoch), 1),
    )


def plan_rounds(config, rounds):
    """Plan of a stage with phases, whose epochs are rounds: an interval of 5 means after every 5th round."""
    every = max(math.ceil(config.train.checkpoint_every), 1)
    return Plan(rounds, 1, max(config.train.log_every, 1), math.ceil(config.train.eval_every), every)


def build(config, dataset, name, axis_name):
    """(config, Method, Plan) of stage `name`; config: of the whole run."""
    own = settings(config, name)
    module = methods.find(config.method)
    counts, images = (dataset.num_train_pids, dataset.num_cams), len(dataset.train)
    method = module.stages(own, methods.Info(*counts, 1, 1, axis_name, images))[name]
    if own.train.accumulate != 1 and not method.accumulates:
        raise ConfigError(
            f"config.train.accumulate is {own.train.accumulate}, and {config.method} does not accumulate "
            "gradients: leave it at 1; to save memory use config.model.remat, bfloat16 or more devices"
        )
    if method.phases:
        return own, method, plan_rounds(own, method.rounds)
    when = plan(own, dataset, method.batches)
    info = methods.Info(*counts, when.per_epoch, when.total, axis_name, images)
    return own, module.stages(own, info)[name], when


def example_batch(config, size=2, kind="pk"):
    """A training batch of zeros: what init and shape inference need; kind: of batches, see data.pipeline."""
    d, views = config.data, 2
    if kind == "triples":
        names = ("pid", "camid", "index", "pid_k", "camid_k", "index_k")
        image = np.zeros((size, 3, d.height, d.width, 3), np.uint8)
        return {"image": image, **{n: np.zeros(size, np.int32) for n in names}}
    return {
        "image": np.zeros((size, *([d.frames] if d.frames else []), d.height, d.width, 3), np.uint8),
        "pid": np.zeros(size, np.int32),
        "camid": np.zeros(size, np.int32),
        "index": np.zeros(size, np.int32),
        "flip": np.zeros((size, views), bool),
        "crop": np.zeros((size, views, 2), np.int32),
        "erase": np.zeros((size, views, 4), np.int32),
    }


def state_shapes(config, method, num_images=0):
    """The State of a method as ShapeDtypeStructs; num_images: of the training set, for pseudo labels."""
    batch = example_batch(config, kind=method.batches)
    state = jax.eval_shape(method.init, jax.random.key(config.seed), batch)
    if method.phases:
        state = state._replace(labels=jax.ShapeDtypeStruct((num_images,), np.int32))
    return state


def parameters(config, method):
    """Number of parameters of all networks of a stage, heads included; config: the stage's."""
    leaves = jax.tree_util.tree_leaves_with_path(state_shapes(config, method).nets)
    return sum(x.size for path, x in leaves if any(getattr(k, "key", None) == "params" for k in path))


def check_batch(config, runner):
    """Raises ConfigError when the global batch does not fit the devices."""
    size, parts = config.data.ids * config.data.instances, config.train.accumulate
    runner.check_batch(size)
    own = size // len(runner.devices)
    if parts < 1 or own % parts:
        raise ConfigError(
            f"config.train.accumulate is {parts}; it must be 1 or more and divide a device's {own} images "
            "(data.ids x data.instances over the devices)"
        )
    if parts > 1 and config.model.bn_group == "global":
        raise ConfigError(
            "config.train.accumulate cannot be joined with config.model.bn_group=global: the statistics of "
            "parts that come in turn are their own; use bn_group=device"
        )
    if own == parts and config.model.bn_group == "device":
        raise ConfigError(
            f"{size} images (data.ids x data.instances) on {len(runner.devices)} devices, in {parts} parts "
            "each (config.train.accumulate), come one by one, and batch norm has nothing to average: use "
            "config.model.bn_group=global, a larger batch, fewer parts or fewer devices"
        )
