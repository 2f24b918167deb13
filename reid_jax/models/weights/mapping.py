"""Variables {'params', 'batch_stats'} <-> {key: array} of a layout, with a report of every key.

Convolutions are [kh,kw,in,out] here and [out,in,kh,kw] there, linear layers are transposed. A clip's
convolutions over space are 2-D here and have a time axis of length 1 in AP3D's files; those over time
are [kt,1,1,in,out] here and [out,in,kt,1,1] there.
"""

import re

import flax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import WeightsError
from reid_jax.models.weights import files
from reid_jax.models.weights.names import guess, keys, strip

_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
_FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}


def leaves(variables):
    """{(collection, *path): leaf} of a variables dict."""
    return flax.traverse_util.flatten_dict(dict(variables))


def to_torch(variables, naming="torchvision", counters=False):
    """Variables {'params', 'batch_stats'} -> {key: numpy array} in a layout.

    counters: with a zero num_batches_tracked for every batch norm, which PyTorch's strict loading wants.
    """
    entries = {}
    for path, leaf in leaves(variables).items():
        key, value = keys(path, naming)[0], np.asarray(leaf)
        if path[-1] == "kernel" and naming != "reid_jax":
            value = value.transpose(_TO_TORCH[value.ndim])
            value = value[:, :, None] if naming == "ap3d" and value.ndim == 4 else value
        entries[key] = np.ascontiguousarray(value)
        if counters and path[-1] == "mean" and naming != "reid_jax":
            entries[re.sub("running_mean$", "num_batches_tracked", key)] = np.zeros((), np.int64)
    return entries


def nested(found):
    """{(collection, *path): array} -> variables."""
    return flax.traverse_util.unflatten_dict(found)


def fill(entries, shapes, layout="", inflate=False):
    """Finds the leaves of `shapes` among {key: array}: ({path: numpy array in the leaf's type}, report).

    shapes: variables, or ShapeDtypeStructs of them.
    layout: one of names.LAYOUTS; '' tells it from the keys. A leading 'module.' or '_orig_mod.' is ignored.
    inflate: a 2-D net may fill an AP3D net: its blocks move past the non-local ones, its 3x3 convolutions
      become those over space, kernels with a time axis get the 2-D kernel in the middle.
    report: {'layout', 'used', 'unused', 'missing', 'ignored', 'cast', 'inflated', 'notes'}: the layout, lists
      of keys, and sentences; every entry is in one of used, unused and ignored (num_batches_tracked), every
      leaf in used or missing. 'mapping' is {used key: our key}.
    Entries of a classifier of another shape (another number of classes) are 'unused', its leaves 'missing';
    any other wrong shape raises WeightsError, as do a 2-D net for an AP3D one without `inflate`, non-local
    blocks in other places, and files of which nothing fits the backbone.
    """
    entries = _stripped(entries)
    layout = layout or guess(entries)
    leaf = leaves(shapes)
    non_local = _moved_blocks(leaf, entries, layout)
    report = {"layout": layout} | {
        n: [] for n in ("used", "unused", "missing", "ignored", "cast", "inflated")
    }
    found, mapping = {}, {}
    for path, like in leaf.items():
        key, flat = _find(path, non_local, entries, layout)
        if flat and not inflate:
            raise WeightsError(
                f"has {key} where the model has {'.'.join(path)}: weights of a 2-D net for an AP3D net; "
                "ask for inflation (--inflate)"
            )
        value = None if flat is None else _fit(key, entries[key], path, like, layout, inflate, report)
        if value is None:
            report["missing"].append(key)
            continue
        if flat:
            report["inflated"].append(key)
        found[path], mapping[key] = value, ".".join(path)
    trunk = {p for p in leaf if p[1] == "base"} or set(leaf)
    if not trunk & set(found):
        wanted = [keys(p, layout)[0] for p in sorted(trunk)]
        raise WeightsError(
            f"no entry fits this model: it has {', '.join(wanted[:3])}, ..., the file "
            f"{', '.join(list(entries)[:3])}, ... (taken for layout {layout}). Another beginning "
            "of its keys is taken off with python -m reid_jax.convert --key"
        )
    report["used"] = list(mapping)
    rest = sorted(set(entries) - set(mapping))
    report["ignored"] = [k for k in rest if k.endswith("num_batches_tracked")]
    report["unused"] = [k for k in rest if not k.endswith("num_batches_tracked")]
    return found, report | {"mapping": mapping, "notes": _notes(report, entries)}


def _stripped(entries):
    found = {}
    for key, value in entries.items():
        if strip(key) in found:
            raise WeightsError(f"has {strip(key)} twice, with and without 'module.' or '_orig_mod.' in front")
        found[strip(key)] = value
    return found


def _moved_blocks(paths, entries, layout):
    """Places (without collection) of the model's non-local blocks if the file has none of them, else none."""
    theta = {keys(p, layout)[0]: p[1:-2] for p in paths if p[-2:] == ("theta", "kernel")}
    there = {k for k in entries if re.search(r"(^|\.)layer\d[._]\d+\.theta\.(weight|kernel)$", k)}
    if there - set(theta):
        raise WeightsError(
            f"has non-local blocks where the model has none: {tell(sorted(there - set(theta)), 3)}; "
            "is it of another backbone?"
        )
    return set() if set(theta) & set(entries) else set(theta.values())


def _sources(path, non_local):
    """Paths under which a file may have a leaf, the usual first.

    Blocks behind non-local ones that the file has not are further back in it; AP3D's convolution over
    space is the 2-D net's only one.
    """
    for i, name in enumerate(path):
        if block := re.fullmatch(r"(layer\d)_(\d+)", name):
            before = sum((*path[1:i], f"{block[1]}_{j}") in non_local for j in range(int(block[2])))
            path = (*path[:i], f"{block[1]}_{int(block[2]) - before}", *path[i + 1 :])
    return [path, tuple(name for name in path if name != "spatial_conv3d")]


def _find(path, non_local, entries, layout):
    """(key, whether it is a 2-D net's) of a leaf; the key it should have and None when it is not there.

    The batch norm `bat_n` of a norm that mixes several also takes the weights of a plain batch norm.
    """
    for place in (path, tuple(name for name in path if name != "bat_n")):
        for source in _sources(place, non_local):
            for key in keys(source, layout):
                if key in entries:
                    return key, source != place
    return keys(path, layout)[0], None


def _fit(key, value, path, like, layout, inflate, report):
    """The entry as a leaf, or None for a classifier of another shape."""
    value = np.asarray(value)
    kernel = path[-1] == "kernel" and layout != "reid_jax"
    want = tuple(like.shape[a] for a in _TO_TORCH[len(like.shape)]) if kernel else tuple(like.shape)
    if kernel and value.ndim == 5 and len(want) == 4 and value.shape[2] == 1:
        value = value[:, :, 0]
    if inflate and path[-1] == "kernel" and value.ndim == 4 and len(want) == 5:
        value = _middle(value, want, 2 if kernel else 0)
        report["inflated"].append(key)
    if value.shape != want:
        if re.fullmatch(r"classifier|instance\d+", path[1]):
            return None
        raise WeightsError(
            f"{key} has shape {value.shape}, the model needs {want}; is the file of another backbone?"
        )
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise WeightsError(f"{key} has type {value.dtype}, not numbers")
    if value.dtype != like.dtype:
        report["cast"].append(f"{key}: {value.dtype} -> {np.dtype(like.dtype)}")
    value = value.transpose(_FROM_TORCH[value.ndim]) if kernel else value
    return np.ascontiguousarray(value.astype(like.dtype, copy=False)).reshape(like.shape)


def _middle(value, shape, axis):
    """A 2-D kernel in the middle of the time axis, zeros before and after; unchanged if it does not fit."""
    if value.shape != shape[:axis] + shape[axis + 1 :]:
        return value
    wide = np.zeros(shape, value.dtype)
    wide[(slice(None),) * axis + (shape[axis] // 2,)] = value
    return wide


def _notes(report, entries):
    notes = []
    if report["inflated"]:
        notes.append(
            f"{len(report['inflated'])} arrays of a 2-D net put to their places in the net for clips; what "
            "works over time and between pixels is not in the file and starts fresh (kernels over time: 0)"
        )
    kinds = sorted({c.rpartition(": ")[2] for c in report["cast"]})
    notes += [f"{len(report['cast'])} arrays change their type ({', '.join(kinds)})"] if kinds else []
    if report["ignored"]:
        notes.append(f"{len(report['ignored'])} counters of batches (num_batches_tracked) ignored")
    missing = [
        k for k in report["missing"] if re.search(r"(^|\.)(classifier|heads|fc)\.(weight|bias|kernel)$", k)
    ]
    if missing and any(k in entries for k in missing):
        shape = np.shape(entries[next(k for k in missing if k in entries)])
        notes.append(f"the file's classifier is of another number of classes (shape {shape}); it is not used")
    if report["layout"] == "torchvision" and "fc.weight" in report["unused"]:
        notes.append("fc is the classifier of ImageNet or another task; it is not used")
    return notes


def load(entries, variables, layout="", inflate=False):
    """Variables with everything found in {key: array}, the rest as it was: (variables, report).

    See `fill` for the layouts, the report and the errors; arrays are cast to the type of the leaf.
    """
    found, report = fill(entries, variables, layout, inflate)
    filled = {p: jnp.array(found[p]) if p in found else leaf for p, leaf in leaves(variables).items()}
    return nested(filled), report


def from_torch(entries, variables):
    """As `load`, but every leaf must be there: returns variables only."""
    filled, report = load(entries, variables)
    if report["missing"]:
        raise WeightsError(
            f"{len(report['missing'])} entries are missing: {', '.join(report['missing'][:5])}"
        )
    return filled


def load_file(path, variables, layout="", key="", inflate=False):
    """`load` from a .pth, .pt, .safetensors or .npz file: (variables, report)."""
    found = files.read(path, key)
    try:
        return load(found.entries, variables, layout, inflate)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def tell(names, limit=8):
    """'a, b, c and 12 more'."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
