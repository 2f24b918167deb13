"""The training loop. It knows stages, batches, metrics and checkpoints, but no method."""

import logging
import math
import os
import signal
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from reid_jax import methods
from reid_jax.data import pipeline, prefetch
from reid_jax.errors import CheckpointError, ConfigError, TrainingError
from reid_jax.eval import store
from reid_jax.train import checkpoint, evaluate, pictures, warm, writer

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Training was asked to stop (SIGTERM, SIGINT) and has saved; args: stage, step."""


class Plan(NamedTuple):
    """When things happen, in steps."""

    total: int
    per_epoch: int
    log: int
    evaluate: int  # 0: only at the end
    checkpoint: int


def plan(config, dataset):
    """The run's length and intervals in steps."""
    train = config.train
    per_epoch = pipeline.steps_per_epoch(dataset, config.data)
    total = train.steps or math.ceil(train.epochs * per_epoch)
    return Plan(
        total,
        per_epoch,
        max(train.log_every, 1),
        math.ceil(train.eval_every * per_epoch),
        max(math.ceil(train.checkpoint_every * per_epoch), 1),
    )


def method_stages(config, dataset, when, axis_name):
    """{stage: Method} of config.method for this data set."""
    info = methods.Info(
        num_pids=dataset.num_train_pids,
        num_cams=dataset.num_cams,
        steps_per_epoch=when.per_epoch,
        total_steps=when.total,
        axis_name=axis_name,
    )
    return methods.find(config.method).stages(config, info)


def example_batch(config, size=2):
    """A training batch of zeros: what init and shape inference need."""
    d, views = config.data, 2
    return {
        "image": np.zeros((size, *([d.frames] if d.frames else []), d.height, d.width, 3), np.uint8),
        "pid": np.zeros(size, np.int32),
        "camid": np.zeros(size, np.int32),
        "index": np.zeros(size, np.int32),
        "flip": np.zeros((size, views), bool),
        "crop": np.zeros((size, views, 2), np.int32),
        "erase": np.zeros((size, views, 4), np.int32),
    }


def state_shapes(config, method):
    """The State of a method as ShapeDtypeStructs."""
    return jax.eval_shape(method.init, jax.random.key(config.seed), example_batch(config))


def train(config, dataset, workdir, runner):
    """Runs every stage of the method; returns {"method", "state", "step", "seconds"} of the last.

    config: ConfigDict; dataset: data.records.Dataset; runner: train.parallel.Runner. A run that was
    interrupted goes on from its newest checkpoint. Raises Stopped after a SIGTERM or SIGINT.
    """
    when = plan(config, dataset)
    check_batch(config, runner)
    pipeline.check_kind(dataset, config.data)
    with StopSignal() as stop:
        for name, method in method_stages(config, dataset, when, runner.axis_name).items():
            result = Stage(config, dataset, workdir, runner, name, method, when, stop).run()
    return result


def check_batch(config, runner):
    """Raises ConfigError when the global batch does not fit the devices."""
    size = config.data.ids * config.data.instances
    runner.check_batch(size)
    if size == len(runner.devices) and config.model.bn_group == "device":
        raise ConfigError(
            f"{size} images (data.ids x data.instances) on {size} devices leave one to each, and batch norm "
            "nothing to average: use config.model.bn_group=global, a larger batch or fewer devices"
        )


class Stage:
    """One stage in progress."""

    def __init__(self, config, dataset, workdir, runner, name, method, when, stop):
        self.config, self.dataset, self.workdir, self.runner = config, dataset, workdir, runner
        self.name, self.method, self.when, self.stop = name, method, when, stop
        self.checkpoints = checkpoint.Checkpoints(workdir, name)
        self.evaluator = evaluate.Evaluator(config, dataset, method, runner)
        self.pending = []  # (step, device metrics) not fetched yet

    def run(self):
        """Trains to the end, from the newest checkpoint when there is one."""
        state, self.step, self.seconds = self.start()
        self.started, self.rate = time.monotonic(), Rate(self.config.data.ids * self.config.data.instances)
        self.writer = writer.Writer(self.workdir, self.step)
        total = self.when.total
        bar = tqdm(total=total, initial=self.step, desc=self.name, unit="step", dynamic_ncols=True)
        compiled = self.runner.compile(self.method.step)
        self.state = self.runner.replicate(state)
        del state
        batches = self.batches(self.step) if self.step < total else None
        try:
            with bar:
                while self.step < total:
                    self.state, metrics = compiled(self.state, next(batches))
                    self.step += 1
                    self.pending.append((self.step, metrics))
                    bar.update()
                    self.after_step(bar)
            return self.finish()
        finally:
            if batches is not None:
                batches.close()
            self.writer.close()
            self.checkpoints.close()

    def start(self):
        """(host state, step, seconds so far): a checkpoint's, or a fresh one."""
        state, meta = self.checkpoints.restore(state_shapes(self.config, self.method))
        if state is not None:
            log.info("going on from step %d of %s", meta["step"], self.workdir)
            return state, meta["step"], meta["seconds"]
        state = jax.jit(self.method.init)(jax.random.key(self.config.seed), example_batch(self.config))
        return warm.start(self.config, self.method, state), 0, 0.0

    def batches(self, step):
        """This host's batches from `step` on, on its devices."""
        data, shard = self.config.data, (jax.process_index(), jax.process_count())
        ahead = pipeline.at_least(data, "device_prefetch", 0)
        batches = pipeline.train_batches(
            self.dataset, data, seed=self.config.seed, start_step=step, shard=shard
        )
        return prefetch.OnDevice(batches, self.runner.shard, ahead)

    def after_step(self, bar):
        """Logging, evaluation, checkpoint and stop at the step just done."""
        step, when = self.step, self.when
        last = step == when.total
        if step % when.log == 0 or last:
            self.flush(bar)
        figures = None
        if last or (when.evaluate and step % when.evaluate == 0):
            self.flush(bar)
            figures = self.evaluate()
            self.rate.note(step)
        if figures or step % when.checkpoint == 0 or self.stop.requested:
            self.flush(bar)
            self.save(figures)
        if self.stop.requested and not last:
            self.checkpoints.wait()
            raise Stopped(self.name, step)

    def elapsed(self):
        """Training seconds of the whole run, earlier parts included."""
        return self.seconds + time.monotonic() - self.started

    def flush(self, bar):
        """Fetches the pending metrics, checks that they are finite, writes the means since the last."""
        if not self.pending:
            return
        values = [(step, self.runner.fetch(metrics)) for step, metrics in self.pending]
        self.pending = []
        for step, metrics in values:
            bad = [k for k, v in metrics.items() if not np.isfinite(v)]
            if bad:
                raise self.not_finite(step, bad, metrics)
        mean = {k: float(np.mean([m[k] for _, m in values])) for k in values[0][1]}
        self.rate.note(self.step)
        self.writer.write("train", self.step, self.step / self.when.per_epoch, self.elapsed(), mean)
        shown = {k: f"{mean[k]:.3g}" for k in ("loss", "ce", "triplet", "kl", "mi") if k in mean}
        bar.set_postfix({**shown, "img/s": self.rate.recent()})

    def not_finite(self, step, bad, metrics):
        """The error for a loss that is NaN or infinite; nothing of this state was saved."""
        try:
            self.checkpoints.wait()
        except CheckpointError as e:
            log.warning("%s", e)
        shown = ", ".join(f"{k}={metrics[k]}" for k in bad)
        kept = self.checkpoints.steps()
        return TrainingError(
            f"{shown} at step {step} is not finite. The last good checkpoint (step "
            f"{kept[-1] if kept else 'none'}) is kept in {self.checkpoints.folder}. Lower config.optim.lr or "
            "config.efl.lambda_mi, or train in float32 (config.model.dtype), in a new --workdir."
        )

    def evaluate(self):
        """Evaluates every network asked for; returns the first one's figures."""
        self.rate.pause()
        results = self.evaluator(self.state)
        first = os.path.join(self.workdir, "eval", "first.npz")
        for net, result in results.items():
            self.writer.write(
                "eval",
                self.step,
                self.step / self.when.per_epoch,
                self.elapsed(),
                {"net": net, **result.figures},
            )
            tqdm.write(evaluate.line(f"step {self.step} {net}", result.figures))
        chosen = next(iter(results.values()))
        if self.step < self.when.total and self.first_evaluation():
            os.makedirs(os.path.dirname(first), exist_ok=True)
            store.save(first, chosen.features)
        if self.step == self.when.total:
            evaluate.save_final(self.config, self.workdir, self.step, results)
        return chosen.figures

    def first_evaluation(self):
        """Whether no evaluation came before this one."""
        return self.when.evaluate and self.step == self.when.evaluate

    def save(self, figures, wait=False):
        """Checkpoint of the present step."""
        meta = {
            "step": self.step,
            "seed": self.config.seed,
            "seconds": self.elapsed(),
            "config": checkpoint.plain(self.config),
            "num_pids": self.dataset.num_train_pids,  # a run is used without its training data
            "num_cams": self.dataset.num_cams,
        }
        self.checkpoints.save(self.step, self.runner.fetch(self.state), meta, figures, wait)

    def finish(self):
        """Everything on the disk; what the report needs to know of the run."""
        self.checkpoints.wait()
        seconds = self.elapsed()
        final = os.path.join(self.workdir, "eval", "final.json")
        if not os.path.exists(final):  # killed between the last checkpoint and its evaluation's files
            self.evaluate()
        if self.config.report.enabled:
            pictures.save(self.config, self.workdir, self.method, self.state, self.runner, self.dataset)
        rate = self.rate.median()
        return {"method": self.method, "seconds": seconds, "step": self.step, "images_per_second": rate}


class Rate:
    """Images per second between logging points; evaluation and compilation are left out."""

    def __init__(self, batch):
        self.batch, self.last, self.rates = batch, None, []

    def note(self, step):
        """A logging point at `step`."""
        now = time.monotonic()
        if self.last and step > self.last[0]:
            self.rates.append((step - self.last[0]) * self.batch / max(now - self.last[1], 1e-9))
        self.last = step, now

    def pause(self):
        """What comes now is not training."""
        self.last = None

    def recent(self):
        """The newest rate, as text."""
        return f"{self.rates[-1]:.0f}" if self.rates else "?"

    def median(self):
        """Median over the run; None when nothing was measured."""
        return float(np.median(self.rates)) if self.rates else None


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the loop can save and leave; a second signal ends at once."""

    def __init__(self):
        self.requested: Any = None

    def __enter__(self):
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self.old[s] = signal.signal(s, self.note)
        return self

    def note(self, signum, frame):
        """Signal handler."""
        del frame
        if self.requested:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.requested = signum

    def __exit__(self, *error):
        for s, handler in self.old.items():
            signal.signal(s, handler)
