"""Weight files: PyTorch's .pth and .pt, .safetensors and .npz, told apart by their content; and .whl."""

import hashlib
import json
import math
import os
import struct
import tempfile
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

from reid_jax import models, places
from reid_jax.errors import WeightsError
from reid_jax.models.weights import archives, pickles

ORDER = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "student",
    "teacher",
)
"""Names under which training programs keep a network in a checkpoint, the first one there is taken."""

_NOT_NETS = (
    *("optimizer", "optim", "optimizer_state_dict", "scheduler", "lr_scheduler", "scaler"),
    *("optimizer_states", "lr_schedulers", "callbacks", "loops", "hyper_parameters"),  # of Lightning
)
_SAFE = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{f"I{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
}
_COMPRESSION = 200  # times: zip archives that unpack to more are taken for bombs


class Weights(NamedTuple):
    """What a file holds."""

    entries: dict  # {key: numpy array}
    kind: str  # of file
    skipped: int = 0  # values that are no tensors, or tensors of other parts
    notes: tuple[str, ...] = ()  # what was chosen
    metadata: dict = {}  # of a .safetensors file


def read(path, key=""):
    """Weights in a file.

    key: the part to read: the name of a dictionary inside a checkpoint ('model', or 'a.b' for a nested one),
    the beginning of the keys, or both ('state_dict.teacher'). Without it: the object itself if most tensors
    are in it, else the first of ORDER, else the dictionary with most tensors; other parts are named in
    `notes`.
    Raises WeightsError naming the file when it cannot be read, is damaged, wants to run code, or has no such
    part.
    """
    path = places.local(path, "the weight file")
    try:
        check_published(path)
        return _reader(path)(path, key)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes make readers fail in many ways
        raise WeightsError(
            f"{path}: cut off, damaged or not a weight file ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def check_published(path):
    """WeightsError when a file has the name of published weights (models.published) and other bytes."""
    name = os.path.basename(path)
    if name not in {file for file, _ in models.published().values()}:
        return
    wanted = name.rpartition("-")[2].partition(".")[0]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(wanted):
        raise WeightsError(
            f"is not the published file, whose SHA-256 begins with {wanted} (its own: {digest[:8]}): fetch "
            "it again, or give your own file another name"
        )


def _reader(path):
    if path.endswith(".whl"):
        return _read_wheel
    with open(path, "rb") as file:
        start = file.read(9)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            arrays = any(n.endswith(".npy") for n in archive.namelist())
        return _read_npz if arrays else _read_torch
    if path.lower().endswith(".onnx"):
        raise WeightsError(
            "ONNX files are not read, their names are not those of a network's layers: convert the .pth or "
            ".safetensors that it was exported from"
        )
    if path.endswith(".safetensors") or start[8:] == b"{":
        return _read_safetensors
    if path.endswith(".npz") or not start:
        raise WeightsError("not a readable .npz of plain arrays; cut off or damaged")
    return _read_torch


# ---- Python packages


def _read_wheel(path, key):
    """The one weight file in a Python package."""
    with zipfile.ZipFile(path) as archive:
        inside = [m for m in archive.infolist() if m.filename.endswith((".pt", ".pth", ".safetensors"))]
        if len(inside) != 1:
            names = ", ".join(m.filename for m in inside[:4]) or "none"
            raise WeightsError(f"a package with {len(inside)} weight files ({names}); unpack it and name one")
        if inside[0].file_size > _COMPRESSION * os.path.getsize(path):
            raise WeightsError(f"{inside[0].filename} unpacks to far more than its size")
        with tempfile.TemporaryDirectory() as folder:
            file = archive.extract(inside[0], folder)
            weights = _reader(file)(file, key)
    return weights._replace(notes=(f"{inside[0].filename} in the package", *weights.notes))


# ---- .npz


def _read_npz(path, key):
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(m.file_size for m in members) > max(_COMPRESSION * os.path.getsize(path), 2**28):
            raise WeightsError("not a readable .npz of plain arrays: it unpacks to far more than its size")
        entries = {m.filename.removesuffix(".npy"): _npy(archive, m) for m in members}
    return _part(Weights(entries, ".npz"), key)


def _npy(archive, member):
    """One array; its size is compared with the member's before memory is taken."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = header(file)
        if dtype.hasobject or dtype.kind not in "fiub":
            raise WeightsError(f"not a readable .npz of plain arrays: {member.filename} has type {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if size > member.file_size:
            raise WeightsError(f"{member.filename} claims shape {shape} in {member.file_size} bytes")
        flat = np.frombuffer(file.read(), dtype, math.prod(shape))
    return flat.reshape(shape, order="F" if fortran else "C")


# ---- .safetensors


def _read_safetensors(path, key):
    import safetensors  # here: training steps need no files

    with open(path, "rb") as file:
        data = file.read()
    tensors = safetensors.deserialize(data)
    unknown = sorted({t["dtype"] for _, t in tensors} - set(_SAFE))
    if unknown:
        raise WeightsError(f"holds tensors of type {', '.join(unknown)}, which are not supported")
    entries = {name: np.frombuffer(t["data"], _SAFE[t["dtype"]]).reshape(t["shape"]) for name, t in tensors}
    (size,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return _part(Weights(entries, ".safetensors", metadata=metadata), key)


def save(path, entries, metadata):
    """Writes {key: array} as .safetensors, whole or not at all; WeightsError when that fails."""
    import safetensors
    import safetensors.numpy

    part = f"{path}.part"
    try:
        arrays = {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in entries.items()}
        safetensors.numpy.save_file(arrays, part, metadata)
        os.replace(part, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error
    finally:
        if os.path.exists(part):
            os.remove(part)


def _part(weights, key):
    """The entries of a flat file whose keys begin with `key.`."""
    if not key:
        return weights
    chosen = {k[len(key) + 1 :]: v for k, v in weights.entries.items() if k.startswith(f"{key}.")}
    if not chosen:
        parts = sorted({k.split(".")[0] for k in weights.entries})
        raise WeightsError(f"has nothing under {key!r}; its keys begin with {', '.join(parts[:12])}")
    return weights._replace(
        entries=chosen,
        skipped=weights.skipped + len(weights.entries) - len(chosen),
        notes=(*weights.notes, f"took {key!r}"),
    )


# ---- .pth, .pt


def _read_torch(path, key):
    source = archives.open_file(path)
    try:
        parts = networks(source.root)
        if not parts:
            raise WeightsError("holds no dictionary of tensors")
        name, prefix = _named(parts, key)
        chosen = parts[name]
        entries = {k: archives.array(source, t) for k, t in chosen.items()}
        notes = [f"took {name!r}"] if name else []
        others = [
            f"{n or '(top)'} ({len(p)})" for n, p in parts.items() if n != name and not _inside(n, name)
        ]
        more = f" and {len(others) - 12} more" if len(others) > 12 else ""
        told = f"not read, tensors in brackets: {', '.join(others[:12])}{more}; choose with key"
        notes += [told] if others else []
        notes += ["written on a big-endian machine; converted"] if source.big_endian else []
        values = sum(type(v) not in (dict, list, tuple) for _, v in archives.walk(source.root))
        skipped = values - len(entries)
        weights = Weights(entries, "PyTorch " + type(source).__name__.lower(), skipped, tuple(notes))
    finally:
        source.close()
    if prefix and not any(k.startswith(f"{prefix}.") for k in entries):
        raise WeightsError(f"has no part {key!r}; it has {', '.join(repr(n) for n in parts)}")
    return _part(weights, prefix)


def networks(root):
    """{dotted name: {key: Tensor}} of all dictionaries of tensors; '' is the object itself.

    Networks of DI-REID kept side by side also count as one, with their names in front of the keys.
    """
    nets = {}
    for path, value in archives.walk(root):
        if type(value) is dict:
            inside = {k: t for k, t in value.items() if isinstance(k, str) and isinstance(t, pickles.Tensor)}
            if inside:
                nets[".".join(map(str, path))] = inside
    beside = {k: v for k, v in nets.items() if k in ("E_id", "E_con")}
    if beside:
        nets[""] = {f"{n}.{k}": t for n, part in beside.items() for k, t in part.items()} | nets.get("", {})
    return nets


def choose(parts):
    """The name of the network to take."""
    nets = {n: p for n, p in parts.items() if n.split(".")[0] not in _NOT_NETS} or parts
    largest = max(nets, key=lambda n: len(nets[n]))
    if len(nets.get("", {})) == len(nets[largest]):
        return ""
    return next((n for n in ORDER if n in nets), largest)


def _named(parts, key):
    """(name of the part to read, beginning of its keys) that `key` stands for."""
    if key in parts and key:
        return key, ""
    fronts = [n for n in parts if n and key.startswith(f"{n}.")]
    for name in sorted(fronts, key=len, reverse=True):
        prefix = key[len(name) + 1 :]
        if any(k.startswith(f"{prefix}.") for k in parts[name]):
            return name, prefix
    return choose(parts), key


def _inside(name, whole):
    return whole == "" and name in ("E_id", "E_con")
