"""The stages of a run: their order, settings and lengths, and what later ones read of earlier ones."""

import logging
import math
import os
from operator import attrgetter
from typing import NamedTuple

import jax
from flax import traverse_util

from reid_jax import methods, places
from reid_jax.config import defaults
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.fields import completed, flatten, namespace, overlay, plain, split_label
from reid_jax.train import checkpoint

log = logging.getLogger(__name__)
# Fields that hold for a whole run: the data are read once, for all stages.
RUN_FIELDS = (
    "method", "stages", "init", "report", "train.only", "train.skip", "data.name", "data.root", "data.test",
    "data.target", "data.source", "data.variant", "data.split", "data.split_seed", "data.csv", "data.pattern",
    "data.train_share", "data.train_on", "data.split_tracklets", "data.val_ids", "data.synthetic",
    "data.domains", "data.points", "data.attributes", "data.styles", "data.generated", "eval.also",
)  # fmt: skip


def settings(config, name):
    """The config of one stage: config.stages.NAME laid over the rest.

    config: ConfigDict or nested namespace; returned as it is when the stage has no settings of its own.
    Raises ConfigError for a field that there is not or that has no effect in one stage alone, or for a stage
    that the method does not have.
    """
    tree = plain(config)
    known = methods.stage_names(config)
    unknown = sorted(set(tree.get("stages", {})) - set(known))
    if unknown:
        raise ConfigError(f"config.stages has {', '.join(unknown)}; {tree['method']} has {', '.join(known)}")
    changes = tree.get("stages", {}).get(name)
    if not changes:
        return config
    for field in flatten(changes):
        if any(field == f or field.startswith(f + ".") for f in RUN_FIELDS):
            raise ConfigError(
                f"config.stages.{name}.{field} has no effect: it holds for the whole run, set config.{field}"
            )
    return namespace(overlay(tree, changes, f"stages.{name}."))


def of_config(config):
    """Names of the stages of a run in order: the method's without those of config.train.skip."""
    known, skip = methods.stage_names(config), tuple(config.train.skip)
    if set(skip) - set(known) or len(set(skip)) == len(known):
        raise ConfigError(f"config.train.skip is {skip}; {config.method} has {', '.join(known)}")
    return [n for n in known if n not in skip]


def reads_cameras(config):
    """Whether a stage of the run reads the cameras of images whose identities are hidden from it."""
    return any(methods.reads_cameras(settings(config, name)) for name in of_config(config))


def to_train(config):
    """Names of the stages that this run trains: all, or config.train.only; those of other runs left out.

    ConfigError when none is left.
    """
    names, only = of_config(config), config.train.only
    if only and only not in names:
        raise ConfigError(f"config.train.only is {only!r}; this run has {', '.join(names)}")
    taken = elsewhere(config)
    left = [n for n in names if n == only or (not only and n not in taken)]
    if not left:
        raise ConfigError(
            f"config.init.stages={config.init.stages} names every stage of this run ({', '.join(names)}): "
            "there is nothing to train; leave one out, or evaluate the other run itself with --mode=evaluate"
        )
    return left


def elsewhere(config):
    """{stage: workdir} of config.init.stages, finished stages of other runs."""
    folders = {}
    for text in filter(None, config.init.stages.split(",")):
        stage, workdir = split_label(text)
        if stage not in methods.stage_names(config):
            known = ", ".join(methods.stage_names(config))
            raise ConfigError(f"config.init.stages has {text!r}; use STAGE=WORKDIR with a stage of {known}")
        folders[stage] = places.local(workdir, f"config.init.stages: {stage}")
    return folders


def read_arrays(checkpoints, step):
    """{leaf path: numpy array} of a checkpoint, for `loader`."""
    return checkpoints.read_arrays(step)


def stored_shapes(checkpoints, step):
    """{leaf path: f32 ShapeDtypeStruct} of a checkpoint, for a `loader` that reads none."""
    return {k: jax.ShapeDtypeStruct(s, "float32") for k, s in checkpoints.shapes(step).items()}


def loader(config, workdir, read=read_arrays):
    """load(stage, net) -> variables of a network from the newest checkpoint of an earlier stage; "": memory.

    Looks in config.init.stages, then in workdir. read: what is read of a checkpoint. Raises CheckpointError
    when there is no such thing.
    """
    folders, loaded = elsewhere(config), {}

    def load(stage, net):
        folder = folders.get(stage, workdir)
        if stage not in loaded:
            loaded[stage] = newest(folder, stage, read)
        prefix = f"nets/{net}/" if net else "memory/"
        leaves = {k.removeprefix(prefix): v for k, v in loaded[stage].items() if k.startswith(prefix)}
        if net and not leaves:
            raise CheckpointError(f"stage {stage!r} of {folder} has no network {net!r}")
        if read is read_arrays:
            log.info("%s: taken from stage %s of %s", net or "memory", stage, folder)
        return traverse_util.unflatten_dict(leaves, sep="/")

    return load


def newest(workdir, stage, read=read_arrays):
    """What `read` gives of the newest checkpoint of a stage."""
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
        return read(checkpoints, checkpoints.steps()[-1])
    finally:
        checkpoints.close()


def last_begun(workdir, only=""):
    """(name, Checkpoints) of the last stage of a run that has a checkpoint, or of stage `only`; to be closed.

    Raises CheckpointError when there is none.
    """
    folder = os.path.join(workdir, "checkpoints")
    begun = os.listdir(folder) if os.path.isdir(folder) else []
    for name in reversed(in_order(workdir, [n for n in begun if not only or n == only])):
        checkpoints = checkpoint.Checkpoints(workdir, name)
        if checkpoints.steps():
            return name, checkpoints
        checkpoints.close()
    of = f" of stage {only!r} (config.train.only)" if only else ""
    raise CheckpointError(f"{workdir} holds no finished checkpoint{of}; train first")


def in_order(workdir, names):
    """Names of stages in the order of the run's method."""
    if len(names) < 2:
        return names
    return [n for n in methods.stage_names(namespace(checkpoint.read_config(workdir))) if n in names]


def of_run(workdir):
    """The config of a run as a nested dict, with fields that are newer than the run."""
    tree = checkpoint.read_config(workdir)
    return completed(tree, methods.defaults(tree["method"]))


class Intervals(NamedTuple):
    """When things happen: in steps, of a stage with rounds evaluation and checkpoint in rounds."""

    log: int
    evaluate: int  # this and the next: 0 for only at the end
    checkpoint: int


def intervals(config, method):
    """The Intervals of a stage; config: the stage's own."""
    train, unit = config.train, 1 if method.rounds else method.info.steps_per_epoch
    evaluate, save = (math.ceil(epochs * unit) for epochs in (train.eval_every, train.checkpoint_every))
    return Intervals(max(train.log_every, 1), evaluate, save)


def build(config, name, info):
    """(config, Method) of stage `name`; config: of the whole run, info: methods.Info."""
    stage_config = settings(config, name)
    method = methods.build(stage_config, name, info)
    if stage_config.train.accumulate != 1 and not method.accumulates:
        ways = [] if stage_config.model.remat else ["config.model.remat"]
        ways += [] if stage_config.model.dtype == "bfloat16" else ["bfloat16"]
        raise ConfigError(
            f"config.train.accumulate is {stage_config.train.accumulate}, and {config.method} does not "
            f"accumulate gradients: leave it at 1; to save memory use {', '.join([*ways, 'more devices'])}"
        )
    for field in methods.FIELDS_OF_SOME:
        value, default = (attrgetter(field)(c) for c in (stage_config, namespace(defaults())))
        if value != default and field not in method.heeds:
            raise ConfigError(
                f"config.{field} is {value!r}, and {config.method} has no use for it: leave it at {default!r}"
            )
    return stage_config, method


def state_shapes(method):
    """The State of a method as ShapeDtypeStructs."""
    return jax.eval_shape(method.init, jax.random.key(0))


def parameters(method):
    """Number of parameters of all networks of a stage, heads included."""
    leaves = jax.tree_util.tree_leaves_with_path(state_shapes(method).nets)
    return sum(x.size for path, x in leaves if any(getattr(k, "key", None) == "params" for k in path))


def check_batch(config, devices):
    """Raises ConfigError when the global batch does not fit the devices; config: a stage's."""
    size, turns = config.data.ids * config.data.instances, config.train.accumulate
    devices.check_batch(size)
    images = size // len(devices.devices)
    if turns < 1 or images % turns:
        raise ConfigError(
            f"config.train.accumulate is {turns}; it must be 1 or more and divide a device's {images} images "
            "(data.ids x data.instances over the devices)"
        )
    if turns > 1 and config.model.bn_group == "global":
        raise ConfigError(
            "config.train.accumulate cannot be joined with config.model.bn_group=global: the statistics of "
            "parts that come in turn are their own; use bn_group=device"
        )
    if images == turns and config.model.bn_group == "device":
        raise ConfigError(
            f"{size} images (data.ids x data.instances) on {len(devices.devices)} devices, in {turns} parts "
            "each (config.train.accumulate), come one by one, and batch norm has nothing to average: use "
            "config.model.bn_group=global, a larger batch, fewer parts or fewer devices"
        )
