"""Starting values from elsewhere: a weight file (init.weights) or a finished run (init.run)."""

import logging
import os

import jax.numpy as jnp
from flax import traverse_util

from reid_jax.errors import CheckpointError, ConfigError, WeightsError
from reid_jax.models import weights
from reid_jax.train import stages

log = logging.getLogger(__name__)


def start(config, method, state, needed=True):
    """`state` with the starting values that config.init names; says what was used and what was not.

    Classifiers of another number of identities or cameras stay fresh. Raises WeightsError or
    CheckpointError when the source does not fit, ConfigError when both sources are given, or when the method
    takes none and `needed` is set.
    """
    init = config.init
    if init.weights and init.run:
        raise ConfigError("config.init.weights and config.init.run are both set; use one")
    if not (init.weights or init.run):
        return state
    if method.warm_start is None:
        if not needed:
            return state
        raise ConfigError(
            f"method {config.method!r} cannot start from config.init.weights or config.init.run"
        )
    load = from_file(init.weights) if init.weights else from_run(init.run)
    return method.warm_start(state, load)


def from_file(path):
    """load(name, variables, fallback) from a weight file, the same for every network.

    .pth, .pt, .safetensors or .npz in any of the layouts of `reid_jax.models.weights`. Weights of a 2-D net
    go to their places in an AP3D net.
    """
    found = weights.read(path)
    for note in found.notes:
        log.info("%s: %s", path, note)
    if found.skipped:
        log.info("%s: %s values that are no weights of this part are not read", path, found.skipped)

    def load(name, variables, fallback=None):
        del fallback
        try:
            filled, report = weights.load(found.entries, variables, inflate=True)
        except WeightsError as error:
            raise WeightsError(f"config.init.weights={path}: {error}") from error
        source = f"{path} ({found.kind}, layout {report['layout']})"
        tell(name, source, report["used"], report["unused"], report["missing"])
        for note in report["notes"]:
            log.info("%s: %s", name, note)
        return filled

    return load


def run_arrays(workdir):
    """{leaf path: numpy array} of the best checkpoint of a finished run, as nets/m1/params/base/...

    Raises WeightsError when there is none.
    """
    folder = os.path.join(workdir, "checkpoints")
    if not os.path.isdir(folder) or not os.listdir(folder):
        raise WeightsError(f"{workdir} holds no checkpoints; name the --workdir of a finished run")
    try:
        _, checkpoints = stages.last_begun(workdir)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    try:
        return checkpoints.read_arrays(checkpoints.best())
    finally:
        checkpoints.close()


def from_run(workdir):
    """load(name, variables, fallback) from the best checkpoint of a finished run, without classifiers.

    `fallback` names the network to read when the run has none called `name`.
    """
    try:
        arrays = run_arrays(workdir)
    except WeightsError as error:
        raise WeightsError(f"config.init.run={error}") from error

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
    text += f"; {len(missing)} not in it, left fresh: {weights.tell(missing)}" if missing else ""
    text += f"; {len(unused)} in it, not used: {weights.tell(unused)}" if unused else ""
    log.info("%s", text)
