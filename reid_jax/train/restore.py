"""A trained run, ready to embed images, without its training data."""

import contextlib
from typing import Any, NamedTuple

from reid_jax import methods
from reid_jax.config import namespace
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.train import evaluate, parallel, stages


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
            raise ConfigError("one network at a time: auto or a network's name, not 'all'")
        (name,) = methods.choose_net(self.method, net)
        embedder = evaluate.Embedder(self.method, name, self.runner)
        return evaluate.feature_set(self.config, embedder, self.state, splits, root, progress)


def run(workdir, runner=None, which="latest", batch=0):
    """Restored checkpoint of a run's last stage: which = 'latest', 'best' or a step number.

    runner: default, all devices. batch: images at a time, 0: as in the run. Raises CheckpointError or
    ConfigError when there is no such run or checkpoint.
    """
    runner = runner or parallel.Runner()
    config = namespace(stages.of_run(workdir))
    name, checkpoints = stages.last_begun(workdir)
    with contextlib.closing(checkpoints):
        step = checkpoints.choose(which)
        meta = checkpoints.read_meta(step)
        if "num_pids" not in meta:
            raise CheckpointError(f"{workdir} was made by an older version, which kept no class counts")
        config = stages.settings(config, name)
        config.eval.batch_size = batch or config.eval.batch_size
        images = meta.get("num_images", 0)
        info = methods.Info(meta["num_pids"], meta["num_cams"], 1, 1, runner.axis_name, images)
        method = methods.find(config.method).stages(config, info)[name]
        like = stages.state_shapes(config, method, images)
        state, _ = checkpoints.restore(like, step)
    state = runner.local_state(runner.replicate(state))
    return Restored(config, method, state, step, runner)
