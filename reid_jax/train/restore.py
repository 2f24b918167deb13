"""A trained run, ready to embed images, without its training data."""

import contextlib
from typing import Any, NamedTuple

from reid_jax import methods
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.fields import namespace
from reid_jax.train import evaluate, stages
from reid_jax.train.devices import Devices


class Restored(NamedTuple):
    """A checkpoint of a run with everything that using it needs."""

    config: Any  # the run's own
    method: methods.Method
    state: Any  # as the devices' embedding functions take it
    step: int
    devices: Any

    def features(self, splits, root, net="auto", progress=False):
        """FeatureSet of {split: records} by one network of the state; paths relative to root."""
        if net == "all":
            raise ConfigError("one network at a time: auto or a network's name, not 'all'")
        (name,) = methods.choose_net(self.method, net)
        embedder = evaluate.Embedder(self.method, name, self.devices)
        return evaluate.feature_set(self.config, embedder, self.state, splits, root, progress)


def run(workdir, devices=None, which="latest", batch=0):
    """Restored checkpoint of a run's last stage: which = 'latest', 'best' or a step number.

    devices: default, all devices. batch: images at a time, 0: as in the run. Raises CheckpointError or
    ConfigError when there is no such run or checkpoint.
    """
    devices = devices or Devices()
    config = namespace(stages.of_run(workdir))
    name, checkpoints = stages.last_begun(workdir)
    with contextlib.closing(checkpoints):
        step = checkpoints.choose(which)
        meta = checkpoints.read_meta(step)
        if "num_pids" not in meta:
            raise CheckpointError(f"{workdir} was made by an older version, which kept no class counts")
        info = methods.Info(
            meta["num_pids"],
            meta["num_cams"],
            axis_name=devices.axis_name,
            num_images=meta.get("num_images", 0),
            domains=tuple(meta.get("domains", ())),
        )
        config, method = stages.build(config, name, info)
        config.eval.batch_size = batch or config.eval.batch_size
        state, _ = checkpoints.restore(stages.state_shapes(method), step)
    state = devices.local_state(devices.replicate(state))
    return Restored(config, method, state, step, devices)
