"""A trained run, ready to embed images, without its training data."""

import contextlib
import logging
from typing import Any, NamedTuple

from reid_jax import methods, places
from reid_jax.data import testable
from reid_jax.errors import CheckpointError, ConfigError, PictureError
from reid_jax.fields import namespace
from reid_jax.train import embedding, stages
from reid_jax.train.devices import Devices

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint of a run with everything that using it needs."""

    config: Any  # the run's own
    method: methods.Method
    state: Any  # as the devices' embedding functions take it
    step: int
    devices: Any

    def features(self, splits, root, net="auto", progress=False, on_broken="stop", source=""):
        """FeatureSet of {split: records} by one network of the state; paths relative to root.

        on_broken: "stop" raises PictureError for a picture that cannot be read, "skip" leaves it out.
        source: name of the public set that the records are of; cameras of another set than the run's own are
        unknown to it.
        """
        if on_broken == "skip":
            splits = self.readable(splits, progress)
        if net == "all":
            raise ConfigError("one network at a time: auto or a network's name, not 'all'")
        (name,) = methods.choose_net(self.method, net)
        embedder = embedding.Embedder(self.method, name, self.devices)
        try:
            foreign = not source or source != self.config.data.name
            return embedding.feature_set(
                self.config, embedder, self.state, splits, root, progress, foreign=foreign
            )
        except PictureError as e:
            raise PictureError(f"{e}, or leave out what cannot be read with --on_broken=skip") from e

    def broken(self, splits, progress=False):
        """Paths of the pictures that cannot be read; a warning names them."""
        paths = testable.paths_of(r for records in splits.values() for r in records)
        reasons = testable.unreadable(paths, self.config.data, progress)
        if reasons:
            text = "\n".join(f"  {why}" for why in reasons.values())
            log.warning("%d of %d pictures cannot be read:\n%s", len(reasons), len(paths), text)
        return {paths[i] for i in reasons}

    def readable(self, splits, progress=False):
        """{split: records} without the pictures that cannot be read, which are named in a warning."""
        gone = self.broken(splits, progress)
        return {split: testable.without(records, gone) for split, records in splits.items()}


def info_of(meta, workdir, axis_name):
    """methods.Info of the data that a checkpoint was trained on, by its meta, without their rows."""
    if "num_pids" not in meta:
        raise CheckpointError(f"{workdir} was made by an older version, which kept no class counts")
    return methods.Info(
        meta["num_pids"],
        meta["num_cams"],
        axis_name=axis_name,
        num_images=meta.get("num_images", 0),
        domains=tuple(meta.get("domains", ())),
    )


def run(workdir, devices=None, which="latest", batch=0):
    """Restored checkpoint of a run's last stage: which = 'latest', 'best' or a step number.

    devices: default, all devices. batch: images at a time, 0: as in the run. Raises CheckpointError or
    ConfigError when there is no such run or checkpoint.
    """
    devices, workdir = devices or Devices(), places.local(workdir, "the run")
    config = namespace(stages.of_run(workdir))
    name, checkpoints = stages.last_begun(workdir)
    with contextlib.closing(checkpoints):
        step = checkpoints.choose(which)
        info = info_of(checkpoints.read_meta(step), workdir, devices.axis_name)
        config, method = stages.build(config, name, info)
        config.eval.batch_size = batch or config.eval.batch_size
        state, _ = checkpoints.restore(stages.state_shapes(method), step)
    state = devices.local_state(devices.replicate(state))
    return Restored(config, method, state, step, devices)
