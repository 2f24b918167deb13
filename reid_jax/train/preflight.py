"""Before the first step: whatever would stop a run later, in its evaluations, its report or its later stages.

`check` looks at the fields of all stages, at the people and the pictures of all test sets, at the data that
the run began with, and goes through the later stages and parts without computing anything.
"""

import contextlib
import dataclasses
import functools
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import methods
from reid_jax.config import choice
from reid_jax.data import decode, degrade, marks, pipeline, testable, tracklets
from reid_jax.errors import CheckpointError, ConfigError, DataError
from reid_jax.eval import scoring
from reid_jax.fields import flatten, plain
from reid_jax.train import checkpoint, embedding, evaluate, processes, stages, swap, tracing

log = logging.getLogger(__name__)
LOWEST = {  # of fields that are read late
    **{"eval.batch_size": 1, "eval.trials": 0, "report.queries": 0, "data.workers": 0, "data.threads": 1},
    **{"data.prefetch": 1, "data.device_prefetch": 0, "data.cache_mib": 0, "train.log_every": 0},
    **{"train.eval_every": 0, "train.checkpoint_every": 0},
}
CHOICES = {
    "data.test_clip": tracklets.TEST_CLIPS,
    "data.on_broken": ("stop", "skip"),
}


def check(config, dataset, workdir, devices, info):
    """The Dataset, without test pictures that cannot be read where config.data.on_broken is "skip".

    config: of the whole run, info: methods.Info. Raises ConfigError, DataError or CheckpointError for what
    would fail later.
    """
    names = stages.to_train(config)
    processes.from_first(lambda: check_marks(workdir, marks.of(dataset)))
    for name in names:
        check_fields(stages.settings(config, name))
    built = {name: stages.build(config, name, info) for name in names}
    for stage_config, method in built.values():
        check_stage(stage_config, method, dataset, devices)
    check_later(config, built, workdir, devices)
    studied = any(method.study is not None for _, method in built.values())
    return tested([stage_config for stage_config, _ in built.values()], dataset, studied)


# ---- fields ---------------------------------------------------------------------------------------------
def check_fields(config):
    """ConfigError for a field that would be found wrong after training; config: a stage's own."""
    values = flatten(plain(config))
    for field, low in LOWEST.items():
        if not (isinstance(values[field], int | float) and values[field] >= low):
            raise ConfigError(f"config.{field} is {values[field]}; it must be at least {low}")
    for field, allowed in CHOICES.items():
        choice(field, values[field], allowed)
    scoring.check_distance(config.eval.distance)
    evaluate.false_match_rates(config)
    tracing.Trace(config.train.profile, "")
    decode.find(config.data.decoder)
    degrade.Settings.of(config.data.degrade)
    if config.data.test_clip == "all" and config.data.chunk < 1:
        raise ConfigError(f"config.data.chunk is {config.data.chunk}; it must be at least 1")
    if config.data.frames:
        tracklets.TrainClips(config.data, 0)


def check_stage(config, method, dataset, devices):
    """Errors for a stage whose batches, networks or tests cannot be as its config says."""
    stages.check_batch(config, devices)
    pipeline.check_fields(dataset, config.data)
    methods.choose_net(method, config.eval.net)
    swap.check(config, dataset)
    for test in evaluate.tests_of(config, dataset).values():
        if embedding.by_frames(config, (*test.query, *test.gallery)):
            embedding.check_frames(config, method)


# ---- the data that the run began with -------------------------------------------------------------------
def check_marks(workdir, new):
    """Raises CheckpointError when a stage in workdir was trained on other data than those of marks `new`."""
    folder = os.path.join(workdir, "checkpoints")
    for stage in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        old = newest_meta(workdir, stage).get("data")  # older versions kept none
        lines = marks.differences(old, new) if old else []
        if lines:
            text = "\n".join(f"  {line}" for line in lines)
            raise CheckpointError(
                f"{workdir} was trained on other data, so that it cannot go on with these:\n{text}\nUse "
                "another --workdir, or the data as they were."
            )


def newest_meta(workdir, stage):
    """The meta of the newest checkpoint of a stage whose meta can be read, {} when there is none."""
    if not os.path.isdir(os.path.join(workdir, "checkpoints", stage)):
        return {}
    with contextlib.closing(checkpoint.Checkpoints(workdir, stage)) as checkpoints:
        for step in reversed(checkpoints.steps()):
            with contextlib.suppress(CheckpointError):  # a damaged one is passed over, see `restore`
                return checkpoints.read_meta(step)
    return {}


# ---- test sets ------------------------------------------------------------------------------------------
def tested(configs, dataset, studied=False):
    """The Dataset with test sets that can be tested on, see `check`; configs: of the stages.

    studied: whether a study looks at the test pictures too.
    """
    check_people(configs, dataset)
    left = whole(configs, dataset, studied)
    if left is not dataset:
        check_people(configs, left)
    return left


def check_people(configs, dataset):
    """DataError for a test set without any query that has a match; one without people is said."""
    tests = [test for config in configs for test in evaluate.tests_of(config, dataset).values()]
    if not tests:
        log.warning(
            "%s has nobody to test on: the run is trained, and has no figures (config.eval.also names "
            "other sets to test on)",
            dataset.name,
        )
    for test in dict.fromkeys(tests):
        all_pairs = "" if test.name else "--config.eval.protocol=all-pairs"
        reason = testable.impossible(test.query, test.gallery, test.protocol, all_pairs)
        if reason and test.name:
            raise DataError(f"config.eval.also: in {test.name} {reason}; or leave that set out")
        if reason:
            raise DataError(f"{test.root} cannot be tested on: {reason}")
        lonely = int((testable.matches(test.query, test.gallery, test.protocol) == 0).sum())
        if lonely:
            title = test.name or dataset.name
            log.info("%s: %d of %d queries have no match and do not count", title, lonely, len(test.query))


def whole(configs, dataset, studied=False):
    """The Dataset without test pictures that cannot be read; DataError where they are not to be left out.

    All of them are read, as every evaluation does, by process 0.
    """
    sides = [evaluate.split_records(c, dataset) for c in configs]
    sides += [(dataset.query, dataset.gallery)] if studied else []
    sides += [(test.query, test.gallery) for test in dataset.also]
    records = [r for both in sides for side in both for r in side]
    paths, data = testable.paths_of(records), configs[-1].data
    broken = processes.from_first(lambda: [*testable.unreadable(paths, data, progress=True).items()])
    if not broken:
        return dataset
    shown = "\n".join(f"  {why}" for _, why in broken[:5]) + "\n  ..." * (len(broken) > 5)
    text = f"{len(broken)} of {len(paths)} test pictures cannot be read"
    if any(c.data.on_broken != "skip" for c in configs):
        raise DataError(
            f"{text}:\n{shown}\nCopy them again, or leave them out with --config.data.on_broken=skip."
        )
    log.warning("%s and are left out of query and gallery:\n%s", text, shown)
    return without(dataset, {paths[i] for i, _ in broken})


def without(dataset, broken):
    """The Dataset without the test pictures whose paths are in `broken`, which become `left_out`."""

    def missing(records, root):
        return testable.relative([p for p in testable.paths_of(records) if p in broken], root)

    splits = {name: getattr(dataset, name) for name in ("query", "gallery", "val_query", "val_gallery")}
    fields = {name: testable.without(records, broken) for name, records in splits.items()}
    fields["left_out"] = missing([r for records in splits.values() for r in records], dataset.root)
    fields["also"] = tuple(
        test._replace(
            query=testable.without(test.query, broken),
            gallery=testable.without(test.gallery, broken),
            left_out=missing((*test.query, *test.gallery), test.root),
        )
        for test in dataset.also
    )
    return dataclasses.replace(dataset, **fields)


# ---- later stages and parts -----------------------------------------------------------------------------
def check_later(config, built, workdir, devices):
    """Traces the steps of the stages and parts that do not come first, and what they take of earlier ones.

    built: {stage: (its config, its Method)}. Stages that were begun have been looked at before.
    """
    shapes = functools.cache(lambda name: stages.state_shapes(built[name][1]))
    for place, (name, (stage_config, method)) in enumerate(built.items()):
        parts = first_round(method)[not place :]
        if newest_meta(workdir, name) or not parts:
            continue
        if place and method.inherit is not None:
            check_inherit(config, name, built, shapes, workdir)
        for part in parts:
            trace(part, stage_config, shapes(name), devices)


def first_round(method):
    """The parts of a stage, of one with rounds those of the first."""
    parts = []
    while (part := method.part(len(parts))) is not None:
        parts.append(part)
        if part.round:
            break
    return parts


def trace(part, config, state, devices):
    """Raises what the first step of a part would; state: shapes."""
    streams = streams_of(part, config, state)
    for name, stream in streams.items():
        stream.check_shared(name, len(devices.devices))
    if streams:
        devices.trace(part.step, state, examples(streams, config))


def streams_of(part, config, state):
    """{name: Stream} of a part on made-up pseudo labels; {} where other labels may do; state: shapes."""
    memory = {name: np.zeros(x.shape, x.dtype) for name, x in state.memory.items()}
    if "labels" in memory:
        memory["labels"] = (np.arange(len(memory["labels"])) % config.data.ids).astype(np.int32)
    try:
        return part.streams(state._replace(nets={}, opt={}, memory=memory))
    except DataError:
        if part.begin is None:
            raise
        return {}


def examples(streams, config):
    """{name: a global batch of zeros}."""
    return {name: s.example(config.data, s.size) for name, s in streams.items()}


def check_inherit(config, name, built, shapes, workdir):
    """Raises what `Method.inherit` of a stage would, when earlier networks are missing or do not fit."""
    method = built[name][1]
    stored = stages.loader(config, workdir, stages.stored_shapes)

    def zeros(tree):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)

    def load(stage, net):
        if stage not in built:
            return zeros(stored(stage, net))
        return zeros(shapes(stage).nets[net] if net else shapes(stage).memory)

    def extract(function, variables, labelled=False, rows=None):
        data, info = method.config.data, method.info
        block = info.labelled if labelled else rows
        count = info.num_images if block is None else len(block.pid)
        shape = (1, *([data.frames] if data.frames else []), data.height, data.width, 3)
        row = jax.eval_shape(function, variables, jnp.zeros(shape, jnp.uint8))
        return jnp.zeros((count, *row.shape[1:]), row.dtype)

    jax.eval_shape(lambda state: method.inherit(state, load, extract), shapes(name))
