"""Variables {'params', 'batch_stats'} <-> {key: array} of a layout, with a report of every key.

Convolutions are [kh,kw,in,out] here and [out,in,kh,kw] there, linear layers are transposed. A clip's
convolutions over space are 2-D here and have a time axis of length 1 in AP3D's files; those over time
are [kt,1,1,in,out] here and [out,in,kt,1,1] there.
"""

import math
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import models
from reid_jax.errors import WeightsError
from reid_jax.models.weights import files
from reid_jax.models.weights.names import STEMS, keys
from reid_jax.models.weights.wrapped import plain, recognise

TARGET = "dsbn_1"  # of a source's and a target's norms
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
_FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}


def leaves(variables):
    """{(collection, *path): leaf} of a variables dict."""
    return flax.traverse_util.flatten_dict(dict(variables))


def by_domain(leaf):
    """{path: leaf} with norms [G,C] of G domains as G modules `dsbn_0`, ... with leaves [C]."""
    norms = {p[1:-1] for p, x in leaf.items() if p[-1] in ("mean", "scale") and len(x.shape) == 2}
    split = {}
    for path, x in leaf.items():
        if path[1:-1] not in norms:
            split[path] = x
            continue
        for g in range(x.shape[0]):
            of = jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x[g]
            split[*path[:-1], f"dsbn_{g}", path[-1]] = of
    return split


def joined(arrays, leaf):
    """`by_domain` undone, under the paths of {path: leaf}; of norms those whose domains are all there."""
    whole = {}
    for path, x in leaf.items():
        parts = [arrays.get((*path[:-1], f"dsbn_{g}", path[-1])) for g in range((*x.shape, 0)[0])]
        if path in arrays:
            whole[path] = arrays[path]
        elif parts and all(part is not None for part in parts):
            whole[path] = np.stack(parts)
    return whole


def to_torch(variables, naming="torchvision", counters=False):
    """Variables {'params', 'batch_stats'} -> {key: numpy array} in a layout.

    counters: with a zero num_batches_tracked for every batch norm, which PyTorch's strict loading wants.
    """
    entries = {}
    for path, leaf in by_domain(leaves(variables)).items():
        key, value = keys(path, naming)[0], np.asarray(leaf)
        if path[-1] == "kernel" and naming != "reid_jax":
            value = value.transpose(_TO_TORCH[value.ndim])
            value = value[:, :, None] if naming == "ap3d" and value.ndim == 4 else value
        entries[key] = np.ascontiguousarray(value)
        if counters and path[-1] == "mean" and naming != "reid_jax":
            entries[re.sub("running_mean$", "num_batches_tracked", key)] = np.zeros((), np.int64)
    write = getattr(models.keys().get(naming), "write", None)
    return write(entries) if write else entries


def nested(arrays):
    """{(collection, *path): array} -> variables."""
    return flax.traverse_util.unflatten_dict(arrays)


def fill(entries, shapes, layout="", inflate=False):
    """Finds the leaves of `shapes` among {key: array}: ({path: numpy array in the leaf's type}, report).

    shapes: variables, or ShapeDtypeStructs of them.
    layout: one of names.layouts(); '' tells it from the keys. What is wrapped around the network is taken
      away by `wrapped.recognise`.
    inflate: a 2-D net may fill an AP3D net: its blocks move past the non-local ones, its 3x3 convolutions
      become those over space, kernels with a time axis get the 2-D kernel in the middle.
    report: {'layout', 'used', 'unused', 'missing', 'ignored', 'cast', 'inflated', 'notes'}: the layout, lists
      of keys, and sentences; every entry is in one of used, unused and ignored (num_batches_tracked, copies
      of a mixing weight), every leaf in used or missing. 'mapping' is {used key: our key}.
    Entries of a head (what is no trunk) of another shape, as of a classifier of another number of classes,
    are 'unused', their leaves 'missing'; any other wrong shape raises WeightsError, as do a 2-D net for an
    AP3D one without `inflate`, non-local blocks in other places, and files of which nothing fits the
    backbone.
    """
    leaf = by_domain(leaves(shapes))
    file = max(plain(entries, layout), recognise(entries, layout), key=lambda f: _fitting(leaf, f))
    file = _in_our_form(file, leaf)
    entries, layout = file.entries, file.layout
    non_local = _moved_blocks(leaf, entries, layout)
    report = {"layout": layout} | {
        n: [] for n in ("used", "unused", "missing", "ignored", "cast", "inflated", "misfits")
    }
    trunk = {p for p in leaf if p[1] == "base"} or set(leaf)
    arrays, taken = {}, {}
    for path, like in leaf.items():
        key, flat = _find(path, like, non_local, entries, layout)
        if flat and not inflate:
            raise WeightsError(
                f"has {file.origin[key]} where the model has {'.'.join(path)}: weights of a 2-D net for an "
                "AP3D net; ask for inflation (--inflate)"
            )
        head = path not in trunk or re.fullmatch(r"classifier|instance\d+", path[1])
        value = None if flat is None else _fit(key, path, like, file, inflate, head, report)
        if value is None:
            report["missing"].append(key)
            continue
        if flat:
            report["inflated"].append(file.origin[key])
        arrays[path], taken[key] = value, ".".join(path)
    if not trunk & set(arrays):
        wanted = [keys(p, layout)[0] for p in sorted(trunk)]
        if not _alike_inside(wanted, file):
            raise WeightsError(
                f"its network is not known here: it has {', '.join([*file.origin.values()][:3])}, ..., the "
                f"model {', '.join(wanted[:3])}, ...; give the --backbone it is of, if there is that one"
            )
        raise WeightsError(
            f"no entry fits this model: it has {', '.join(wanted[:3])}, ..., the file "
            f"{', '.join([*file.origin.values(), *file.beside][:3])}, ... (taken for layout {layout}). "
            "Another beginning of its keys is taken off with python -m reid_jax.convert --key"
        )
    _account(report, file, taken)
    return joined(arrays, leaves(shapes)), report | {"notes": file.notes + _notes(report, leaf, file)}


def _in_our_form(file, leaf):
    """A Recognised file with what its layout keeps in another form as ours."""
    read = getattr(models.keys().get(file.layout), "read", None)
    if not read:
        return file
    ours, notes = read(file.entries, leaf)
    gone = {source for source, _ in ours.values()}
    entries = {k: v for k, v in file.entries.items() if k not in gone} | {k: v for k, (_, v) in ours.items()}
    origin = file.origin | {key: file.origin[source] for key, (source, _) in ours.items()}
    return file._replace(entries=entries, origin=origin, notes=[*file.notes, *notes])


def _fitting(leaf, file):
    """Number of leaves that a Recognised file has an entry for."""
    return sum(any(key in file.entries for key in keys(path, file.layout)) for path in leaf)


def _account(report, file, taken):
    """Puts every entry of the file into one of the report's lists; taken: {key: our key}."""
    report["mapping"] = {file.origin[key]: ours for key, ours in taken.items()}
    report["used"] = list(report["mapping"])
    left = [key for key in file.entries if key not in taken]
    idle = {k for k in left if k.endswith("num_batches_tracked") or _copied(k, file.entries)}
    report["ignored"] = sorted(file.origin[k] for k in idle)
    counters = {k for k in file.beside if k.endswith("num_batches_tracked")}
    report["ignored"] += sorted(counters)
    report["unused"] = sorted({file.origin[k] for k in left if k not in idle} | set(file.beside) - counters)


def _copied(key, entries):
    """Whether this is a norm's copy of its block's mixing weight, which IICS writes down once for each."""
    block = re.sub(r"\.(bn\d|downsample\.\d)\.adaptive_weight$", ".adaptive_weight", key)
    return block != key and block in entries and np.array_equal(entries[block], entries[key])


def _alike_inside(wanted, file):
    """Whether keys of a file end as some that are wanted do, whatever stands before: module and leaf."""
    ends = {tuple(key.split(".")[-3:]) for key in wanted}
    return any(tuple(key.split(".")[-3:]) in ends for key in (*file.origin.values(), *file.beside))


def _moved_blocks(paths, entries, layout):
    """Places (without collection) of the model's non-local blocks if the file has none of them, else none."""
    theta = {keys(p, layout)[0]: p[1:-2] for p in paths if p[-2:] == ("theta", "kernel")}
    there = {k for k in entries if re.search(r"(^|\.)(layer\d[._]|NL_\d[._])\d+\.theta\.(weight|kernel)$", k)}
    if there - set(theta):
        raise WeightsError(
            f"has non-local blocks where the model has none: {listing(sorted(there - set(theta)), 3)}; "
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


def _find(path, like, non_local, entries, layout):
    """(key, whether it is a 2-D net's) of a leaf; the key it should have and None when it is not there.

    The batch norm `bat_n` of a norm that mixes several also takes the weights of a plain batch norm, and so
    does every domain's; a plain one takes the target's of a file with norms by domain; the branches of a
    trunk take those of a trunk without, a second stem those of the only one. Of several names the first with
    as many axes as the leaf counts.
    """
    there = []
    plain_norm = tuple(name for name in path if not re.fullmatch(r"bat_n|dsbn_\d+", name))
    target = (*path[:-1], TARGET, path[-1])
    unbranched = tuple(name for name in path if not re.fullmatch(r"branch\d", name))
    one_stem = tuple(name.removeprefix("second_") for name in path)
    for place in (path, plain_norm, target, unbranched, one_stem):
        for source in _sources(place, non_local):
            there += [(key, source != place) for key in keys(source, layout) if key in entries]
    if not there:
        return keys(path, layout)[0], None
    axes = len(like.shape)
    fitting = (f for f in there if len(_without_ones(entries[f[0]].shape, axes)) == axes)
    return next(fitting, there[0])


def _without_ones(shape, least):
    """A shape without the ones at its end, as long as it keeps `least` axes: a linear 1x1 convolution's."""
    while len(shape) > least and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _fit(key, path, like, file, inflate, head, report):
    """The entry as a leaf, or None for part of a head of another shape."""
    value, name = np.asarray(file.entries[key]), file.origin[key]
    kernel = path[-1] == "kernel" and file.layout != "reid_jax"
    want = tuple(like.shape[a] for a in _TO_TORCH[len(like.shape)]) if kernel else tuple(like.shape)
    if kernel and value.ndim == 5 and len(want) == 4 and value.shape[2] == 1:
        value = value[:, :, 0]
    if inflate and path[-1] == "kernel" and value.ndim == 4 and len(want) == 5:
        value = _middle(value, want, 2 if kernel else 0)
        report["inflated"].append(name)
    if len(want) < 3 and value.size == math.prod(want) and _without_ones(value.shape, len(want)) == want:
        value = value.reshape(want)
    if value.shape == () and want == (1,):  # an exponent
        value = value.reshape(want)
    if value.shape != want:
        if head:
            report["misfits"].append((key, value.shape, want))
            return None
        raise WeightsError(
            f"{name} has shape {value.shape}, the model needs {want}; is the file of another backbone?"
        )
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise WeightsError(f"{name} has type {value.dtype}, not numbers")
    if value.dtype != like.dtype:
        report["cast"].append(f"{name}: {value.dtype} -> {np.dtype(like.dtype)}")
    value = value.transpose(_FROM_TORCH[value.ndim]) if kernel else value
    return np.ascontiguousarray(value.astype(like.dtype, copy=False)).reshape(like.shape)


def _middle(value, shape, axis):
    """A 2-D kernel in the middle of the time axis, zeros before and after; unchanged if it does not fit."""
    if value.shape != shape[:axis] + shape[axis + 1 :]:
        return value
    wide = np.zeros(shape, value.dtype)
    wide[(slice(None),) * axis + (shape[axis] // 2,)] = value
    return wide


def _notes(report, leaf, file):
    """Sentences for the report; leaf: {path: shape} of the model."""
    notes = []
    if report["inflated"]:
        notes.append(
            f"{len(report['inflated'])} arrays of a 2-D net put to their places in the net for clips; what "
            "works over time and between pixels is not in the file and starts fresh (kernels over time: 0)"
        )
    kinds = sorted({c.rpartition(": ")[2] for c in report["cast"]})
    notes += [f"{len(report['cast'])} arrays change their type ({', '.join(kinds)})"] if kinds else []
    if any(re.search(r"\.(BN_S|dsbn\.0)\.weight$", k) for k in report["unused"]):
        notes.append("the file has norms of two domains, this model one: it gets those of the target")
    counters = sum(k.endswith("num_batches_tracked") for k in report["ignored"])
    copies = len(report["ignored"]) - counters
    notes += [f"{counters} counters of batches (num_batches_tracked) ignored"] if counters else []
    notes += [f"{copies} copies of the blocks' mixing weights ignored"] if copies else []
    notes += _heads(report.pop("misfits"), file)
    if report["layout"] == "torchvision" and "fc.weight" in report["unused"]:
        notes.append("fc is the classifier of ImageNet or another task; it is not used")
    exponent = exponent_of(file)
    if exponent is not None and ("params", "pooling", "p") not in leaf:
        notes.append(
            f"the file pools by GeM with exponent {exponent:.4g}, this model does not: use it with "
            "config.model.pool=gem"
        )
    return notes


def _heads(misfits, file):
    """Sentences on the parts of a head that have another shape, [(key, shape, the model's)]."""
    notes = []
    for key, shape, want in misfits:
        if re.search(r"(^|\.)(classifier|heads|fc|classifier\.1)\.(weight|kernel)$", key):
            notes.append(
                f"the file's classifier is of another number of classes (shape {shape}); it is not used"
            )
        elif not re.search(r"\.(bias|running_mean|running_var|mean|var)$", key):
            notes.append(f"{file.origin[key]} has shape {shape}, this model's head {want}; it is not used")
    return notes


def implied(file):
    """{field of config.model: value} that a Recognised file stands for, {} in layouts of many nets."""
    known = models.keys().get(file.layout)
    return known.fields(file.entries) if known else STEMS.get(file.layout, {}) | _trunk_of(file.entries)


def _trunk_of(entries):
    """The ResNet-50 that keys speak of, where it is no plain one: non-local blocks, instance norms, gates."""

    def some(pattern):
        return any(re.search(pattern, key) for key in entries)

    non_local, ibn = some(r"(^|\.)NL_\d\."), some(r"\.bn1\.IN\.")
    name = f"resnet50{'_nl' if non_local else ''}{'_ibn_a' if ibn else ''}"
    told = {"backbone": name} if non_local or ibn else {}
    if some(r"layer\d\.\d+\.IN\."):  # IBN-b's stem has no running statistics
        told |= {"norm": "dualnorm" if some(r"^(?!.*layer).*bn1\.running_mean$") else "ibn_b"}
    return told | ({"norm": "metabin" if some(r"\.bat_n\.") else "bin"} if some(r"\.gate$") else {})


def exponent_of(file):
    """The exponent of GeM in a Recognised file, None when there is none."""
    names = [key for key in keys(("params", "pooling", "p"), file.layout) if key in file.entries]
    return float(np.asarray(file.entries[names[0]]).mean()) if names else None


def load(entries, variables, layout="", inflate=False):
    """Variables with everything found in {key: array}, the rest as it was: (variables, report).

    See `fill` for the layouts, the report and the errors; arrays are cast to the type of the leaf.
    """
    arrays, report = fill(entries, variables, layout, inflate)
    filled = {p: jnp.array(arrays[p]) if p in arrays else leaf for p, leaf in leaves(variables).items()}
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
    weights = files.read(path, key)
    try:
        return load(weights.entries, variables, layout, inflate)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def listing(names, limit=8):
    """'a, b, c and 12 more'."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
