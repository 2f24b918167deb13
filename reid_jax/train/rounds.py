"""Training on pseudo labels: rounds of labelling the training images and training on the labels."""

import contextlib
import logging

import numpy as np

from reid_jax.data import pipeline
from reid_jax.errors import DataError
from reid_jax.eval import cluster
from reid_jax.train import evaluate, loop, processes, writer

log = logging.getLogger(__name__)


class RoundStage(loop.Stage):
    """A stage with phases: each round goes through all of them, and each phase labels, then trains.

    The labels in use are part of every checkpoint, so a run goes on in the middle of a phase as if it had not
    been broken off. `when` counts rounds.
    """

    unit = "round"

    def __init__(self, job, *given):
        super().__init__(job, *given)
        net = self.method.nets[0]
        self.embedder = evaluate.Embedder(self.method, net, self.runner)
        self.camid = np.array([r.camid for r in self.dataset.train], np.int32)
        self.pid = np.array([r.pid for r in self.dataset.train], np.int32)  # to rate labels, never to train
        self.compiled = {n: self.runner.compile(p.step) for n, p in self.method.phases.items()}
        self.round, self.phase, self.taken, self.labels = 0, 0, 0, np.zeros(len(self.pid), np.int32)

    def done(self):
        steps = self.checkpoints.steps()
        return bool(steps) and self.checkpoints.read_meta(steps[-1])["round"] >= self.when.total

    def open_writer(self, meta):
        return writer.Writer(self.workdir, meta["step"], self.label, lambda line: self.written(line, meta))

    def written(self, line, meta):
        """Whether a line of metrics.jsonl is older than the checkpoint; the step alone does not tell."""
        if "round" not in meta or line["step"] > meta["step"]:
            return False
        if line.get("kind") != "labels":
            return line["step"] > 0 and line.get("epoch", 0) <= meta["round"]
        names = list(self.method.phases)
        if line.get("phase") not in names:
            return False
        place, here = (line.get("round", 0) - 1, names.index(line["phase"])), (meta["round"], meta["phase"])
        return place < here or (place == here and meta["taken"] > 0)

    def train(self, bar, meta):
        """All rounds that are left; meta: of the checkpoint this run goes on from."""
        self.round, self.phase, self.taken = (meta.get(k, 0) for k in ("round", "phase", "taken"))
        self.labels, self.state = self.split_labels()
        bar.update(self.round - bar.n)
        while self.round < self.when.total:
            name, phase = list(self.method.phases.items())[self.phase]
            if not self.taken:
                self.begin(name, phase)
            self.train_phase(name, phase, bar)
            self.after_phase(bar)

    def split_labels(self):
        """(labels, state without them) of the state to train."""
        host = self.state.labels
        if host is None:
            return self.labels, self.state
        return np.asarray(self.runner.fetch(host)), self.state._replace(labels=None)

    def begin(self, name, phase):
        """New labels, and the state that the phase starts from."""
        local = self.runner.local_state(self.state)
        log.info("round %d, %s: features of %d training images", self.round + 1, name, len(self.pid))
        splits = {"train": self.dataset.train}
        feature = evaluate.feature_set(
            self.config, self.embedder, local, splits, self.dataset.root, processes.first(), shared=True
        ).feature
        host = self.runner.fetch(self.state)
        if processes.first():  # another processor's rounding could tip a cluster over
            self.labels = np.asarray(phase.refresh(feature, self.camid, host, self.round), np.int32)
        self.labels = processes.arrays_from_first(self.labels)
        self.rate_labels(name)
        if self.length(phase)[0]:
            state = phase.begin(host, feature, self.labels, self.camid, self.round)
            self.state = self.runner.replicate(processes.arrays_from_first(state))

    def length(self, phase):
        """(steps of the phase, ""), or (0, why its labels allow none)."""
        try:
            epoch = pipeline.steps_per_epoch(self.dataset, phase.data, phase.batches, self.labels)
        except DataError as error:
            return 0, str(error)
        return phase.steps or phase.epochs * epoch, ""

    def rate_labels(self, name):
        """Writes how well the labels fit the identities (which training never sees)."""
        per_camera = self.method.phases[name].batches == "cameras"
        quality = cluster.quality(self.labels, self.pid, self.camid if per_camera else None)
        self.write("labels", {"phase": name, "round": self.round + 1, **quality})
        text = "  ".join(f"{k} {v:.3g}" for k, v in quality.items())
        log.info("round %d, %s: %s", self.round + 1, name, text)

    def train_phase(self, name, phase, bar):
        """The steps of the phase that are left."""
        total, why = self.length(phase)
        if not total:
            log.warning("round %d, %s: no training on these labels: %s", self.round + 1, name, why)
            return
        kind = dict(kind=phase.batches, labels=self.labels)
        seed = np.random.SeedSequence((self.config.seed % 2**64, self.round, self.phase))
        seed = int(seed.generate_state(1, np.uint64)[0])
        self.size = phase.data.ids * phase.data.instances
        with contextlib.closing(self.batches(phase.data, seed, self.taken, **kind)) as batches:
            while self.taken < total:
                self.taken += 1
                self.one_step(self.compiled[name], batches, bar)
                bar.set_description(f"{self.name} {name} {self.taken}/{total}")
                if self.taken < total and self.stop.due(self.step):
                    self.rest(bar, False, True, False)
        self.flush(bar)  # the next phase has other metrics

    def after_phase(self, bar):
        """Goes to the next phase; checkpoint; after a whole round evaluation. Or stops."""
        round_ = self.round + 1
        whole = self.phase + 1 == len(self.method.phases)
        self.round, self.phase, self.taken = (round_, 0, 0) if whole else (self.round, self.phase + 1, 0)
        bar.update(int(whole))
        last = self.round == self.when.total
        due = whole and (last or bool(self.when.evaluate and round_ % self.when.evaluate == 0))
        self.rest(bar, due, due or round_ % self.when.checkpoint == 0, last)

    def batch_size(self):
        return self.size

    def epoch(self):
        return self.round

    def position(self):
        return {"round": self.round, "phase": self.phase, "taken": self.taken}

    def host_state(self):
        return self.runner.fetch(self.state)._replace(labels=self.labels)

    def first_evaluation(self):
        return self.when.evaluate and self.round == self.when.evaluate
