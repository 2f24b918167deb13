"""A trained run, ready to embed images, without its training data."""

import contextlib
import os
from typing import Any, NamedTuple

from reid_jax import methods
from reid_jax.config import defaults, namespace
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.train import checkpoint, evaluate, loop


class Restored(NamedTuple):
    """A checkpoint of a run with everything that using it needs."""

    config: Any  # the run's own
    method: methods.Method
    state: Any  # as the runner's embedding functions take it
    step: int
    runner: Any

    def features(self, splits, root, net="auto", progress=False):
        """FeatureSet of {split: records} by one network of the state; paths relative to root."""
        if net == "all":
            raise ConfigError("one network at a time: auto, mean or a network's name, not 'all'")
        (name,) = methods.choose_net(self.method, net)
        embedder = evaluate.Embedder(self.method, name, self.runner)
        return evaluate.feature_set(self.config, embedder, self.state, splits, root, progress)


def run(workdir, runner, which="best"):
    """Restored checkpoint of a run's last stage: which = 'best', 'latest' or a step number.

    Raises CheckpointError or ConfigError when there is no such run or checkpoint.
    """
    config = checkpoint.read_config(workdir)
    config["data"] = defaults()["data"] | config["data"]  # fields newer than the run
    config = namespace(config)
    folder = os.path.join(workdir, "checkpoints")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    with contextlib.ExitStack() as stack:
        opened = {n: checkpoint.Checkpoints(workdir, n) for n in names}
        for checkpoints in opened.values():
            stack.callback(checkpoints.close)
        begun = {n: c for n, c in opened.items() if c.steps()}
        if not begun:
            raise CheckpointError(f"{workdir} holds no finished checkpoint; train first")
        meta = next(c.read_meta(c.steps()[-1]) for c in begun.values())
        if "num_pids" not in meta:
            raise CheckpointError(f"{workdir} was made by an older version, which kept no class counts")
        info = methods.Info(meta["num_pids"], meta["num_cams"], 1, 1, runner.axis_name)
        stages = methods.find(config.method).stages(config, info)
        name = [n for n in stages if n in begun][-1]
        step = begun[name].choose(which)
        state, _ = begun[name].restore(loop.state_shapes(config, stages[name]), step)
    state = runner.local_state(runner.replicate(state))
    return Restored(config, stages[name], state, step, runner)
