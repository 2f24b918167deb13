"""Weights under PyTorch names: flax variables <-> state dictionaries (.npz).

The rules of a name: `layer1_0` is `layer1.0`; kernel, scale -> weight; mean, var -> running_mean,
running_var. Convolutions are HWIO here and OIHW there, linear layers are transposed. Two naming
schemes of the same net:

    here             torchvision      mmt
    base.conv1       conv1            base.0
    base.bn1         bn1              base.1
    base.layerI_J    layerI.J         base.(I + 2).J
    neck             neck             feat_bn
    feat, classifier feat, classifier feat, classifier
"""

import re

import flax
import jax
import numpy as np

from reid_jax.config import choice
from reid_jax.errors import WeightsError

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_key(path, naming="torchvision"):
    """PyTorch's key of a leaf with this path in params or batch_stats, e.g. ('base', 'conv1', 'kernel')."""
    choice("naming", naming, ("torchvision", "mmt"))
    *modules, leaf = path
    parts = [re.sub(r"_(\d+)$", r".\1", m) for m in modules]
    if naming == "torchvision":
        parts = parts[1:] if parts[0] == "base" else parts
    elif parts[0] == "base":
        stem = {"conv1": "0", "bn1": "1"}
        parts[1] = stem.get(parts[1]) or re.sub(r"layer(\d)", lambda m: str(int(m[1]) + 2), parts[1])
    elif parts[0] == "neck":
        parts[0] = "feat_bn"
    return ".".join([*parts, _LEAVES.get(leaf, leaf)])


def _swap(array, leaf, to_torch):
    """Changes the axes of a kernel between the two layouts; other leaves stay as they are."""
    if leaf != "kernel":
        return array
    if array.ndim == 2:
        return array.T
    return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))


def _leaves(variables):
    """{(collection, *path): leaf} of a variables dict."""
    return flax.traverse_util.flatten_dict(dict(variables))


def to_torch(variables, naming="torchvision"):
    """Variables {'params', 'batch_stats'} -> {PyTorch key: numpy array}."""
    return {
        torch_key(path[1:], naming): np.ascontiguousarray(_swap(np.asarray(leaf), path[-1], True))
        for path, leaf in _leaves(variables).items()
    }


def _naming(keys):
    return "mmt" if any(k.startswith("base.0.") for k in keys) else "torchvision"


def load(entries, variables, fresh=()):
    """Fills variables from {PyTorch key: array}: (variables, report).

    entries: in either naming (told apart by their keys), a leading 'module.' is ignored; cast to the
      type of the leaf.
    fresh: modules to leave alone whatever the entries hold, e.g. ('classifier',).
    report: {'used', 'unused', 'missing'}: lists of keys. Entries of a classifier of another shape (another
      number of classes) are 'unused', its leaves 'missing' and unchanged; any other wrong shape raises
      WeightsError.
    """
    entries = {re.sub(r"^module\.", "", k): v for k, v in entries.items()}
    naming = _naming(entries)
    filled, used, missing = {}, [], []
    for path, leaf in _leaves(variables).items():
        key, value = torch_key(path[1:], naming), None
        if key in entries and path[1] not in fresh:
            value = _fit(key, entries[key], path, leaf)
        (missing if value is None else used).append(key)
        filled[path] = leaf if value is None else value
    if not used:
        raise WeightsError(
            f"no entry fits this model: it has {', '.join(missing[:3])}, ..., "
            f"the file {', '.join(list(entries)[:3])}, ..."
        )
    unused = sorted(set(entries) - set(used))
    return flax.traverse_util.unflatten_dict(filled), {"used": used, "unused": unused, "missing": missing}


def _fit(key, value, path, leaf):
    """The entry as a leaf, or None for a classifier of another shape."""
    value = np.asarray(value)
    want = _swap(np.empty(leaf.shape, bool), path[-1], True).shape
    if value.shape == want:
        return jax.numpy.asarray(_swap(value, path[-1], False), leaf.dtype)
    if path[1] == "classifier":
        return None
    raise WeightsError(
        f"{key} has shape {value.shape}, the model needs {want}; is the file of another backbone?"
    )


def from_torch(entries, variables):
    """As `load`, but every leaf must be there: returns variables only."""
    filled, report = load(entries, variables)
    if report["missing"]:
        raise WeightsError(
            f"{len(report['missing'])} entries are missing: {', '.join(report['missing'][:5])}"
        )
    return filled


def load_npz(path, variables, fresh=()):
    """`load` from an .npz file of a state dictionary: (variables, report)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            entries = {k: archive[k] for k in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: not a readable .npz of plain arrays ({error})") from error
    try:
        return load(entries, variables, fresh)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
