"""The training loop. It knows stages, batches, metrics and checkpoints, but no method."""

import contextlib
import logging
import os
import signal
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from reid_jax.data import pipeline, prefetch
from reid_jax.errors import CheckpointError, TrainingError
from reid_jax.eval import embed, store
from reid_jax.train import checkpoint, evaluate, pictures, processes, stages, warm, writer

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Training was asked to stop (SIGTERM, SIGINT) and has saved; args: stage, step."""


class Job(NamedTuple):
    """What a Stage carries out."""

    name: str
    names: tuple  # of all stages of the method, in order
    run_config: Any  # of the whole run, kept in checkpoints
    config: Any  # of this stage
    method: Any
    when: Any  # stages.Plan


class Stage:
    """One stage in progress."""

    unit = "step"

    def __init__(self, job, dataset, workdir, runner, stop):
        self.job, self.dataset, self.workdir, self.runner, self.stop = job, dataset, workdir, runner, stop
        self.name, self.config, self.method, self.when = job.name, job.config, job.method, job.when
        self.folder = os.path.join("eval", *([] if job.name == job.names[-1] else [job.name]))
        self.label = job.name if len(job.names) > 1 else ""
        self.checkpoints = checkpoint.Checkpoints(workdir, job.name)
        self.evaluator = evaluate.Evaluator(job.config, dataset, job.method, runner)
        self.study = evaluate.study(job.config, dataset, job.method, runner)
        self.pending = []  # (step, device metrics) not fetched yet

    def done(self):
        """Whether an earlier start finished this stage."""
        steps = self.checkpoints.steps()
        final = os.path.join(self.workdir, self.folder, "final.json")
        return bool(steps) and steps[-1] >= self.when.total and os.path.exists(final)

    def run(self):
        """Trains to the end, from the newest checkpoint when there is one."""
        state, meta = self.start()
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.started, self.rate = time.monotonic(), Rate()
        first, total = processes.first(), self.when.total
        self.writer = self.open_writer(meta) if first else writer.Silent()
        bar = tqdm(
            total=total,
            initial=self.step,
            desc=self.name,
            unit=self.unit,
            dynamic_ncols=True,
            disable=not first,
        )
        self.state = self.runner.replicate(state)
        del state
        try:
            with bar:
                self.train(bar, meta)
            return self.finish()
        finally:
            self.writer.close()
            self.checkpoints.close()

    def open_writer(self, meta):
        """Writer of this stage; meta: of the checkpoint this run goes on from."""
        return writer.Writer(self.workdir, meta["step"], self.label)

    def train(self, bar, meta):
        """All steps that are left."""
        del meta
        if self.step == self.when.total:
            return
        compiled = self.runner.compile(self.method.step)
        with contextlib.closing(self.batches(self.config.data, self.config.seed, self.step)) as batches:
            while self.step < self.when.total:
                self.one_step(compiled, batches, bar)
                bar.update()
                self.after_step(bar)

    def one_step(self, compiled, batches, bar):
        """Trains on the next batch; fetches metrics when it is time to log."""
        self.state, metrics = compiled(self.state, next(batches))
        self.step += 1
        self.pending.append((self.step, metrics))
        if self.step % self.when.log == 0:
            self.flush(bar)

    def start(self):
        """(host state, meta): of a checkpoint, or a fresh one."""
        like = stages.state_shapes(self.config, self.method, len(self.dataset.train))
        state, meta = self.checkpoints.restore(like)
        if state is not None:
            log.info("going on from step %d of %s", meta["step"], self.workdir)
            return state, meta
        example = stages.example_batch(self.config, kind=self.method.batches)
        state = jax.jit(self.method.init)(jax.random.key(self.config.seed), example)
        state = warm.start(self.config, self.method, state, needed=self.name == self.job.names[0])
        if self.method.inherit:
            load = stages.loader(self.job.run_config, self.workdir)
            state = self.method.inherit(state, load, self.extract)
        return processes.arrays_from_first(state), {"step": 0, "seconds": 0.0}

    def extract(self, function, variables):
        """f32[N,D] of all training images by function(variables, image u8[B,H,W,3])."""
        compiled = self.runner.compile_embed(function)
        variables = self.runner.local_state(self.runner.replicate(variables))
        multiple = len(self.runner.local)
        size = -(-self.config.eval.batch_size // multiple) * multiple
        with pipeline.eval_batches(self.dataset.train, self.config.data, size) as batches:
            return embed.embed(lambda image: compiled(variables, image), batches)

    def batches(self, data, seed, step, **kind):
        """This host's batches from `step` on, on its devices; kind: as in pipeline.train_batches."""
        shard = jax.process_index(), jax.process_count()
        ahead = pipeline.at_least(data, "device_prefetch", 0)
        kind = {"kind": self.method.batches} | kind
        batches = pipeline.train_batches(self.dataset, data, seed=seed, start_step=step, shard=shard, **kind)
        return prefetch.OnDevice(batches, self.runner.shard, ahead)

    def after_step(self, bar):
        """Evaluation, checkpoint and stop at the step just done."""
        step, when = self.step, self.when
        last = step == when.total
        due = last or (when.evaluate and step % when.evaluate == 0)
        self.rest(bar, due, due or step % when.checkpoint == 0, last)

    def rest(self, bar, due, keep, last):
        """What comes between steps: evaluation if `due`, checkpoint if `keep` or a signal came, stop."""
        figures = None
        if due:
            self.flush(bar)
            figures = self.evaluate(last)
            self.rate.note(self.step, self.batch_size())
        stop = self.stop.due(self.step)
        if keep or stop:
            self.flush(bar)
            self.save(figures)
        if stop and not last:
            self.checkpoints.wait()
            raise Stopped(self.name, self.step)

    def batch_size(self):
        """Images in a global batch."""
        return self.config.data.ids * self.config.data.instances

    def epoch(self):
        """Epochs so far."""
        return self.step / self.when.per_epoch

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
        self.rate.note(self.step, self.batch_size())
        self.write("train", mean)
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

    def write(self, kind, values):
        """A line of metrics.jsonl at the present step."""
        self.writer.write(kind, self.step, self.epoch(), self.elapsed(), values)

    def evaluate(self, last):
        """Evaluates every network asked for; returns the first one's figures."""
        self.rate.pause()
        results = self.evaluator(self.state)
        for net, result in results.items():
            self.write("eval", {"net": net, **result.figures})
            if processes.first():
                tqdm.write(evaluate.line(f"{self.name} step {self.step} {net}", result.figures))
        chosen = next(iter(results.values()))
        if self.study:
            figures, arrays = self.study(self.state)
            self.write("study", figures)
        if processes.first():
            self.keep_evaluation(last, results, arrays if self.study else None)
        return chosen.figures

    def keep_evaluation(self, last, results, arrays):
        """Files of an evaluation; arrays: of the method's study."""
        folder = os.path.join(self.workdir, self.folder)
        if arrays is not None:
            pictures.save_study(folder, self.step, arrays)
        if not last and self.first_evaluation():
            os.makedirs(folder, exist_ok=True)
            store.save(os.path.join(folder, "first.npz"), next(iter(results.values())).features)
        if last:
            evaluate.save_final(self.config, self.workdir, self.step, results, self.folder)

    def first_evaluation(self):
        """Whether no evaluation came before this one."""
        return self.when.evaluate and self.step == self.when.evaluate

    def save(self, figures):
        """Checkpoint of the present step."""
        meta = {
            "step": self.step,
            "seed": self.config.seed,
            "seconds": self.elapsed(),
            "config": checkpoint.plain(self.job.run_config),
            "num_pids": self.dataset.num_train_pids,  # a run is used without its training data
            "num_cams": self.dataset.num_cams,
            "num_images": len(self.dataset.train),
            **self.position(),
        }
        self.checkpoints.save(self.step, self.host_state(), meta, figures)

    def position(self):
        """Where training is, beside the step."""
        return {}

    def host_state(self):
        """The state to keep, as numpy."""
        return self.runner.fetch(self.state)

    def finish(self):
        """Everything on the disk; what the report needs to know of the run."""
        self.checkpoints.wait()
        seconds = self.elapsed()
        final = os.path.join(self.workdir, self.folder, "final.json")
        if processes.from_first(lambda: not os.path.exists(final)):  # killed before they were written
            self.evaluate(True)
        if self.config.report.enabled and self.name == self.job.names[-1] and processes.first():
            pictures.save(self.config, self.workdir, self.method, self.state, self.runner, self.dataset)
        processes.wait()  # the next stage reads what this one leaves
        rate = self.rate.median()
        return {"method": self.method, "seconds": seconds, "step": self.step, "images_per_second": rate}


class Rate:
    """Images per second between logging points; evaluation and compilation are left out."""

    def __init__(self):
        self.last, self.rates = None, []

    def note(self, step, batch):
        """A logging point at `step`; batch: images in a step."""
        now = time.monotonic()
        if self.last and step > self.last[0]:
            self.rates.append((step - self.last[0]) * batch / max(now - self.last[1], 1e-9))
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
    """Notes SIGTERM and SIGINT, so that the loop can save and leave; a second signal ends at once.

    With several processes JAX notes SIGTERM, and all leave after the same step.
    """

    def __init__(self):
        self.requested: Any = None

    def __enter__(self):
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            several = processes.several()
            self.old[signal.SIGINT] = signal.signal(signal.SIGINT, self.hand_on if several else self.note)
            if not several:
                self.old[signal.SIGTERM] = signal.signal(signal.SIGTERM, self.note)
        return self

    def due(self, step):
        """Whether to save and leave after this step; to be asked after every one."""
        return processes.stop_due(step) if processes.several() else bool(self.requested)

    def hand_on(self, signum, frame):
        """Signal handler: SIGINT to where JAX notes it."""
        del signum, frame
        signal.raise_signal(signal.SIGTERM)

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
