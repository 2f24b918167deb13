"""Starting values from elsewhere: a weight file (init.weights) or a finished run (init.run)."""

import logging
import os

import jax.numpy as jnp
from flax import traverse_util

from reid_jax.errors import ConfigError, WeightsError
from reid_jax.models import weights
from reid_jax.train import checkpoint

log = logging.getLogger(__name__)


def start(config, method, state):
    """`state` with the starting values that config.init names; says what was used and what was not.

    Classifiers of another number of identities or cameras stay fresh. Raises WeightsError or
    CheckpointError when the source does not fit, ConfigError when both sources are given.
    """
    init = config.init
    if init.weights and init.run:
        raise ConfigError("config.init.weights and config.init.run are both set; use one")
    if not (init.weights or init.run):
        return state
    if method.warm_start is None:
        raise ConfigError(
            f"method {config.method!r} cannot start from config.init.weights or config.init.run"
        )
    load = from_file(init.weights) if init.weights else from_run(init.run)
    return method.warm_start(state, load)


def from_file(path):
    """load(name, variables, fallback) from an .npz with PyTorch names, the same for every network."""

    def load(name, variables, fallback=None):
        del fallback
        filled, report = weights.load_npz(path, variables)
        tell(name, path, report["used"], report["unused"], report["missing"])
        return filled

    return load


def from_run(workdir):
    """load(name, variables, fallback) from the best checkpoint of a finished run, without classifiers.

    `fallback` names the network to read when the run has none called `name`.
    """
    folder = os.path.join(workdir, "checkpoints")
    if not os.path.isdir(folder) or not os.listdir(folder):
        raise WeightsError(
            f"config.init.run={workdir} holds no checkpoints; name the --workdir of a finished run"
        )
    checkpoints = checkpoint.Checkpoints(workdir, sorted(os.listdir(folder))[-1])
    if not checkpoints.steps():
        raise WeightsError(f"config.init.run={workdir} holds no finished checkpoint")
    arrays = checkpoints.read_arrays(checkpoints.best())
    checkpoints.close()

    def load(name, variables, fallback=None):
        source = next((n for n in (name, fallback, "net", "m1", "phi1") if any_of(arrays, n)), None)
        if source is None:
            raise WeightsError(f"{workdir} has no network {name!r} to start from")
        filled, used, missing = {}, [], []
        for path, leaf in traverse_util.flatten_dict(variables).items():
            value = None if "classifier" in path else arrays.get("/".join(("nets", source, *path)))
            if value is not None and value.shape != leaf.shape:
                raise WeightsError(
                    f"{workdir}: {'/'.join(path)} is {value.shape}, this model needs {leaf.shape}"
                )
            (missing if value is None else used).append("/".join(path))
            filled[path] = leaf if value is None else jnp.asarray(value)
        tell(name, f"{workdir} ({source})", used, [], missing)
        return traverse_util.unflatten_dict(filled)

    return load


def any_of(arrays, name):
    """Whether a checkpoint holds a network."""
    return name is not None and any(k.startswith(f"nets/{name}/") for k in arrays)


def tell(name, source, used, unused, missing):
    """One line on what came from where; nothing is dropped in silence."""
    text = f"{name} starts from {source}: {len(used)} arrays used"
    text += f"; not in it, left fresh: {', '.join(missing)}" if missing else ""
    text += f"; in it, not used: {', '.join(unused)}" if unused else ""
    log.info("%s", text)
