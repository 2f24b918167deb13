"""A profiler's trace of some steps of a stage."""

import logging
import os
import re

import jax

from reid_jax.errors import ConfigError
from reid_jax.train import processes

log = logging.getLogger(__name__)


class Trace:
    """Steps START to STOP of a stage, counted from 1, as jax.profiler writes them into `folder`.

    text: "START:STOP" or "" for none; ConfigError for another. Of several processes the first writes. A run
    that goes on from between the two traces what is left.
    """

    def __init__(self, text, folder):
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if text and not (match and 1 <= int(match[1]) <= int(match[2])):
            raise ConfigError(
                f"config.train.profile (--profile) is {text!r}; use START:STOP, steps counted from 1"
            )
        self.first, self.last = (int(match[1]), int(match[2])) if match else (0, 0)
        self.folder, self.running = folder, False

    def between(self, step, metrics=None):
        """To be called before the first step and after each; step: steps so far, metrics: its results."""
        if self.running and step >= self.last:
            jax.block_until_ready(metrics)
            self.close()
        elif not self.running and self.first <= step + 1 <= self.last and processes.first():
            jax.profiler.start_trace(self.folder)
            self.running = True

    def close(self):
        """Ends a trace that has begun."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            log.info("trace of steps %d to %d: tensorboard --logdir %s", self.first, self.last, self.folder)


def of_run(config, workdir, label):
    """The Trace that config.train.profile asks for; label: of a stage of several, or ""."""
    return Trace(config.train.profile, os.path.join(workdir, "profile", label))
