"""What a stage in progress leaves, and when: lines of metrics, checkpoints, evaluations and their files."""

import logging
import os
import time

import numpy as np
from tqdm import tqdm

from reid_jax import methods
from reid_jax.data import union
from reid_jax.errors import CheckpointError, TrainingError
from reid_jax.eval import sequence, store
from reid_jax.fields import plain
from reid_jax.train import checkpoint, evaluate, pictures, processes, swap

log = logging.getLogger(__name__)


class Record:
    """What one stage in progress leaves. run.Run sets what is read here.

    run_config, config: of the run and of the stage; name, names: of the stage and of all; workdir, folder: of
    the run and, in it, of the stage's evaluations; method, dataset, devices, marks; checkpoints, evaluator,
    study, writer; intervals, seconds, started, rate, batch_size; pending: [(step, device metrics)] that were
    not fetched yet.
    """

    def at_end(self, at):
        """Whether no part is left."""
        return self.method.part(at.part) is None

    def due(self, at, interval):
        """Whether what comes every `interval` steps or rounds (0: never) comes here."""
        count = at.step
        if self.method.rounds:  # they end with a part
            count = self.method.part(at.part - 1).round if at.part and not at.taken else 0
        return bool(interval and count and count % interval == 0)

    def evaluation_due(self, at):
        """Whether the state is evaluated here: at the end it always is."""
        return self.at_end(at) or self.due(at, self.intervals.evaluate)

    def epoch(self, at):
        """Epochs so far, or rounds."""
        return at.round if self.method.rounds else at.step / self.method.info.steps_per_epoch

    def elapsed(self):
        """Training seconds of the whole stage, earlier starts included."""
        return self.seconds + time.monotonic() - self.started

    # ---- metrics

    def flush(self, at, bar=None):
        """Fetches the pending metrics, checks that they are finite, writes the means since the last."""
        if not self.pending:
            return
        values = [(step, self.devices.fetch(metrics)) for step, metrics in self.pending]
        self.pending = []
        for step, metrics in values:
            bad = [k for k, v in metrics.items() if not np.isfinite(v)]
            if bad:
                raise self.not_finite(step, bad, metrics)
        mean = {k: float(np.mean([m[k] for _, m in values])) for k in values[0][1]}
        self.rate.note(at.step, self.batch_size)
        self.write("train", at, mean)
        if bar is not None:
            shown = [k for k in mean if k not in ("lr", "accuracy")][:5]
            bar.set_postfix({**{k: f"{mean[k]:.3g}" for k in shown}, "img/s": self.rate.recent()})

    def not_finite(self, step, bad, metrics):
        """The error for a loss that is NaN or infinite; nothing of this state was saved."""
        try:
            self.checkpoints.wait()
        except CheckpointError as e:
            log.warning("%s", e)
        shown = ", ".join(f"{k}={metrics[k]}" for k in bad)
        saved, method = self.checkpoints.steps(), self.config.method
        weights = ", ".join(f"config.{x}" for x in (method, "loss") if hasattr(self.config, x))
        narrow = self.config.model.dtype != "float32"
        wider = ", or train in float32 (config.model.dtype)" if narrow else ""
        return TrainingError(
            f"{shown} at step {step} is not finite. The last good checkpoint (step "
            f"{saved[-1] if saved else 'none'}) is kept in {self.checkpoints.folder}. Lower config.optim.lr "
            f"or the weights of the losses ({weights}){wider}, in a new --workdir."
        )

    def write(self, kind, at, values):
        """A line of metrics.jsonl."""
        self.writer.write(kind, at.step, self.epoch(at), self.elapsed(), values)

    # ---- evaluation and files

    def evaluate(self, at, state):
        """Evaluates every network asked for on every test set, and writes what comes of it."""
        self.rate.pause()
        results = self.evaluator(state)
        for (test, net), result in results.items():
            where = {"set": test} if test else {}
            self.write("eval", at, {"net": net, **where, **result.figures})
            if processes.first():
                title = " ".join(filter(None, (self.name, f"step {at.step}", net, test)))
                tqdm.write(evaluate.line(title, result.figures))
        if self.at_end(at):
            self.write_kept(at, results)
        arrays = None
        if self.study:
            figures, arrays = self.study(state)
            self.write("study", at, figures)
        if processes.first():
            self.keep_evaluation(at, results, arrays)
        chosen = evaluate.chosen(results)
        self.checkpoints.add_figures(at.step, chosen and chosen.figures, self.writer.lines)
        self.rate.note(at.step, self.batch_size)

    def write_kept(self, at, results):
        """What is found of the sets that were learnt one after another, where the stages train on such."""
        trained, chosen = methods.sets(self.run_config), evaluate.chosen(results)
        if not trained or chosen is None:
            return
        data = self.run_config.data
        main = union.tested(data.name.split("+"), data)[0]
        net = next(net for (test, net), result in results.items() if result is chosen)
        now = {test or main: r.figures for (test, n), r in results.items() if n == net}
        table = sequence.read(self.workdir, list(trained), main) | {self.name: now}
        self.write("kept", at, sequence.averages(trained, table, self.name))

    def catch_up(self, at, state):
        """Evaluates a state that was saved, and whose evaluation was not finished."""
        due = at.step and self.evaluation_due(at)
        if due and not processes.from_first(lambda: self.checkpoints.evaluated(at.step)):
            self.evaluate(at, state)

    def keep_evaluation(self, at, results, arrays):
        """Files of an evaluation; arrays: of the method's study."""
        folder, chosen = os.path.join(self.workdir, self.folder), evaluate.chosen(results)
        if arrays is not None:
            pictures.save_study(folder, at.step, arrays)
        if self.at_end(at):
            left_out = self.evaluator.left_out
            evaluate.save_final(self.config, self.workdir, at.step, results, left_out, self.folder)
        elif chosen and not os.path.exists(os.path.join(folder, "first.npz")):
            store.save(os.path.join(folder, "first.npz"), chosen.features)

    def save(self, at, state):
        """Checkpoint of the present step."""
        self.flush(at)
        info = self.method.info
        meta = {
            **at._asdict(),
            "layout": checkpoint.LAYOUT,
            "lines": self.writer.lines,
            "seed": self.config.seed,
            "seconds": self.elapsed(),
            "config": plain(self.run_config),
            "num_pids": info.num_pids,  # a run is used without its training data
            "num_cams": info.num_cams,
            "num_images": info.num_images,
            "domains": list(info.domains),
            "data": self.marks,
        }
        self.checkpoints.save(at.step, self.devices.fetch(state._replace(key=None)), meta)

    def measure_drawn(self, state, at):
        """Figures that only a drawn set allows: eval/drawn.json and a line of metrics.jsonl."""
        path = os.path.join(self.workdir, "eval", "drawn.json")
        if os.path.exists(path):
            return
        args = self.config, self.method, state, self.devices, self.dataset
        figures = pictures.pointing(*args) if self.config.report.enabled else {}
        if self.config.eval.swap:
            stored = store.load(os.path.join(self.workdir, self.folder, "final.npz"))
            figures |= swap.measure(*args, stored)
        if figures:
            self.write("drawn", at, figures)
            checkpoint.write_json(path, figures)
