"""A run: its stages one after the other, and the loop of one: parts, streams, steps, signals."""

import logging
import os
import time

import jax
import numpy as np
from tqdm import tqdm

from reid_jax import methods
from reid_jax.data import marks, pipeline, prefetch, rows
from reid_jax.errors import DataError
from reid_jax.methods import _steps
from reid_jax.train import (
    checkpoint,
    evaluate,
    pictures,
    position,
    preflight,
    processes,
    signals,
    stages,
    titles,
    tracing,
    training_rows,
    warm,
    writer,
)
from reid_jax.train.record import Record
from reid_jax.train.timing import Rate

log = logging.getLogger(__name__)


def train(config, dataset, workdir, devices):
    """Trains every stage; returns {"method", "step", "images_per_second"} of the last, "seconds" of all.

    config: ConfigDict or nested namespace; dataset: data.records.Dataset; devices: train.devices.Devices. A
    run that was interrupted goes on from its newest checkpoint, stages that are done are passed over. Raises
    signals.Stopped after a SIGTERM or SIGINT.
    """
    names, result, seconds = stages.to_train(config), None, 0.0
    dataset = preflight.check(config, dataset, workdir, devices, info_of(dataset, devices.axis_name))
    with signals.StopSignal() as stop:
        for name in names:
            run = Run(config, name, dataset, workdir, devices, stop)
            if name != names[-1] and processes.from_first(run.done):
                seconds += processes.from_first(run.seconds_before)
                run.checkpoints.close()
                log.info("stage %s is done", name)
            else:
                result = run.train()
                seconds += result["seconds"]
    return result | {"seconds": seconds}


def info_of(dataset, axis_name=None):
    """methods.Info of a data set."""
    labelled, unlabelled = rows.rows_of(dataset)
    block = labelled if unlabelled is None else unlabelled
    return methods.Info(
        num_pids=dataset.num_train_pids,
        num_cams=max(b.num_cams for b in (labelled, unlabelled) if b is not None),
        axis_name=axis_name,
        num_images=len(block.pid),
        domains=() if labelled is None else labelled.ids_of_domains,
        labelled=labelled,
        unlabelled=unlabelled,
        attributes=dataset.attributes,
    )


class Run(Record):
    """One stage in progress."""

    def __init__(self, config, name, dataset, workdir, devices, stop):
        self.run_config, self.name, self.dataset, self.workdir = config, name, dataset, workdir
        self.devices, self.stop, self.names = devices, stop, stages.of_config(config)
        info = info_of(dataset, devices.axis_name)
        self.config, self.method = stages.build(config, name, info)
        stages.check_batch(self.config, devices)
        pipeline.check_fields(dataset, self.config.data)
        self.intervals = stages.intervals(self.config, self.method)
        self.folder = os.path.join("eval", *([] if name == self.names[-1] else [name]))
        self.label = name if len(self.names) > 1 else ""
        self.checkpoints = checkpoint.Checkpoints(workdir, name)
        self.evaluator = evaluate.Evaluator(self.config, dataset, self.method, devices)
        embedders = self.evaluator.embedders
        self.rows = training_rows.TrainingRows(self.config, self.method, dataset, devices, embedders)
        self.study = evaluate.study(self.config, dataset, self.method, devices)
        self.marks = marks.of(dataset)
        self.trace = tracing.of_run(self.config, workdir, self.label)
        self.pending = []  # (step, device metrics) not fetched yet

    def done(self):
        """Whether an earlier start finished this stage."""
        steps = self.checkpoints.steps()
        final = os.path.join(self.workdir, self.folder, "final.json")
        return (
            bool(steps)
            and self.at_end(position.of_checkpoint(self.checkpoints.read_meta(steps[-1])))
            and os.path.exists(final)
        )

    def seconds_before(self):
        """Seconds that a stage took which an earlier start finished."""
        return self.checkpoints.read_meta(self.checkpoints.steps()[-1])["seconds"]

    def train(self):
        """The training loop of every stage of every method: parts, their streams and steps, to the end.

        Goes on from the newest checkpoint when there is one; returns what `finish` does. Raises
        signals.Stopped when it was asked to stop and has saved.
        """
        state, at = self.start()
        try:
            self.catch_up(at, state)
            while (part := self.method.part(at.part)) is not None:
                if part.begin is not None and not at.taken:
                    state = self.begin(part, state, at)
                length, streams = self.length(part, state, at)
                if at.taken < length:
                    step = self.devices.compile(part.step)
                    norms = _steps.gradient_norms(self.config.train.log_gradients)
                    with self.batches(streams, at.taken) as batches, self.bar(part, at, length) as bar, norms:
                        self.trace.between(at.step)
                        while at.taken < length:
                            state, metrics = step(state, next(batches))
                            at = at.after_step()
                            self.note(at, metrics, bar)
                            if at.taken < length:
                                self.between(at, state)
                    self.flush(at)
                at = at.after_part(part.round)
                self.between(at, state)
            return self.finish(state, at)
        finally:
            self.trace.close()
            self.writer.close()
            self.checkpoints.close()

    def start(self):
        """(State on the devices, its At), of the newest checkpoint or fresh; opens what a run writes."""
        state, meta = self.first_state()
        self.seconds, self.started, self.rate = meta["seconds"], time.monotonic(), Rate()
        self.batch_size = self.config.data.ids * self.config.data.instances
        self.writer = writer.Silent()
        if processes.first():
            titles.write(self.workdir, self.run_config, {self.name: self.method.nets})
            self.writer = writer.Writer(self.workdir, self.label, meta)
        return self.devices.replicate(self.keyed(state)), position.of_checkpoint(meta)

    def keyed(self, state):
        """The state with the key of its random numbers, which no checkpoint keeps: config.seed says it."""
        return state._replace(key=np.asarray(jax.random.key_data(jax.random.key(self.config.seed))))

    def first_state(self):
        """(host state, meta): of a checkpoint, or a fresh one."""
        state, meta = self.checkpoints.restore(stages.state_shapes(self.method))
        if state is not None:
            log.info("going on from step %d of %s", meta["step"], self.workdir)
            return state, meta
        state = jax.jit(self.method.init)(jax.random.key(self.config.seed))
        state = warm.start(self.config, self.method, state, needed=self.name == self.names[0])
        if self.method.inherit is not None:
            load = stages.loader(self.run_config, self.workdir)
            state = self.method.inherit(state, load, self.rows.extract)
        return processes.arrays_from_first(state), {"step": 0, "seconds": 0.0}

    # ---- parts

    def begin(self, part, state, at):
        """The state that a part starts from, by process 0: another's rounding could tip a cluster over."""
        if part.features is not None:
            log.info("%s: features of %d training images", self.where(part, at), len(self.rows.records()))
        features, begun = self.rows.features(state, part), []
        host = self.devices.fetch(state._replace(key=None))
        processes.from_first(lambda: begun.append(jax.tree.map(np.asarray, part.begin(host, features))))
        state = processes.arrays_from_first(begun[0] if begun else host)
        for quality in self.rows.qualities(part, state.memory):
            self.write("labels", at, {"phase": part.name, "round": at.round + 1, **quality})
            text = "  ".join(f"{k} {v:.3g}" for k, v in quality.items())
            log.info("%s: %s", self.where(part, at), text)
        return self.devices.replicate(self.keyed(state))

    def where(self, part, at):
        """A part in words."""
        return f"round {at.round + 1}, {part.name}" if self.method.rounds else f"{self.name} {part.name}"

    def length(self, part, state, at):
        """(steps of a part, its streams); (0, {}) with a warning when its labels allow no training."""
        host = self.devices.fetch(state._replace(nets={}, opt={}))
        try:
            streams = part.streams(host)
        except DataError as error:
            if part.begin is None:
                raise
            log.warning("%s: no training on these labels: %s", self.where(part, at), error)
            return 0, {}
        first = next(iter(streams.values())).sampler
        for name, stream in streams.items():
            stream.check_shared(name, len(self.devices.devices))
        self.batch_size = sum(s.sampler.size for s in streams.values())
        steps = part.steps(host) if callable(part.steps) else part.steps
        return steps or int(part.epochs * first.batches_per_epoch), streams

    def batches(self, streams, taken):
        """{stream: batch} of this host from step `taken` of a part on, on its devices."""
        data, shard = self.config.data, (jax.process_index(), jax.process_count())
        opened = {n: s.open(self.dataset, data, taken, shard) for n, s in streams.items()}
        ahead = pipeline.at_least(data, "device_prefetch", 0)
        return prefetch.OnDevice(prefetch.Together(opened), self.devices.shard, ahead)

    def bar(self, part, at, length):
        """Progress bar of a part."""
        several = self.method.rounds or self.method.part(1) is not None
        title = (
            f"{self.name} {part.name} {at.round + 1}/{self.method.rounds}"
            if self.method.rounds
            else self.name
        )
        return tqdm(
            total=length,
            initial=at.taken,
            desc=title if self.method.rounds or not several else f"{self.name} {part.name}",
            unit="step",
            dynamic_ncols=True,
            disable=not processes.first(),
        )

    # ---- after every step, and after a part

    def note(self, at, metrics, bar):
        """The metrics of a step; fetched when it is time to log."""
        self.pending.append((at.step, metrics))
        self.trace.between(at.step, metrics)
        bar.update()
        if at.step % self.intervals.log == 0:
            self.flush(at, bar)

    def between(self, at, state):
        """Checkpoint, evaluation and stop inside a part, or after it, as far as they are due.

        What was trained is saved before it is evaluated, which may fail or be killed.
        """
        last, evaluation = self.at_end(at), self.evaluation_due(at)
        save = evaluation or self.due(at, self.intervals.checkpoint)
        if save:
            self.save(at, state)
        if evaluation and (last or not self.stop.requested):
            self.evaluate(at, state)
        if not self.stop.due(at.step):
            return
        if not save:
            self.save(at, state)
        if not last:
            self.checkpoints.wait()
            raise signals.Stopped(self.name, at.step)

    def finish(self, state, at):
        """Everything on the disk; what the report needs to know of the run."""
        self.checkpoints.wait()
        seconds = self.elapsed()
        final = os.path.join(self.workdir, self.folder, "final.json")
        if processes.from_first(lambda: not os.path.exists(final)):  # killed before they were written
            self.evaluate(at, state)
        if self.config.report.enabled and self.name == self.names[-1] and processes.first():
            pictures.save(self.config, self.workdir, self.method, state, self.devices, self.dataset)
        if self.name == self.names[-1] and processes.first():
            self.measure_drawn(state, at)
        processes.wait()  # the next stage reads what this one leaves
        rate = self.rate.median()
        return {"method": self.method, "seconds": seconds, "step": at.step, "images_per_second": rate}
