"""Recorded cases: one .npz file with a reference's inputs, weights, outputs and gradients.

Arrays are named `in/NAME`, `param/KEY` (weights under PyTorch keys), `shape/KEY` (weights that follow from
key, shape and seed), `out/NAME`, `grad/...`; `meta` is JSON: reference, seed, mode, config, weights.
"""

import dataclasses
import glob
import json
import os
import zlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from reid_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case, to be run in one float type."""

    name: str  # of the file, without .npz: chooses the runner
    meta: dict
    arrays: dict  # as stored: float32 or integers
    dtype: type = np.float64

    @property
    def config(self):
        """meta.config with its fields as attributes."""
        return SimpleNamespace(**self.meta.get("config", {}))

    @property
    def train(self):
        """Whether batch norm uses batch statistics."""
        return self.meta.get("mode") == "train"

    def input(self, name):
        """Input array, floats in the case's type; DataError when it is not recorded."""
        return jnp.asarray(self._float(self._get(f"in/{name}")))

    def weights(self, prefix=""):
        """{PyTorch key after prefix: numpy array} of all weights whose key begins with prefix."""
        seed = self.meta.get("config", {}).get("weights_seed", self.meta.get("seed", 0))
        stored = {k: v for k, v in self.under("param/").items() if k.startswith(prefix)}
        shapes = {k: v for k, v in self.under("shape/").items() if k.startswith(prefix)}
        entries = {k: recipe(k, tuple(v), seed) for k, v in shapes.items()} | stored
        return {k[len(prefix) :]: self._float(v) for k, v in entries.items()}

    def under(self, prefix):
        """{name after prefix: array as stored}."""
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def recorded(self):
        """{name: array} of everything a runner must reproduce."""
        return {k: v for k, v in self.arrays.items() if k.startswith(("out/", "grad/", "gradnorm/"))}

    def _get(self, name):
        if name not in self.arrays:
            raise DataError(f"{self.name} has no array {name}")
        return self.arrays[name]

    def _float(self, array):
        return array.astype(self.dtype) if array.dtype.kind == "f" else array


def recipe(key, shape, seed):
    """A weight that follows from its PyTorch key, shape and a seed: f32 array (num_batches_tracked: i64)."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) < 2 and key.endswith("bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) < 2:
        value = rng.uniform(0.5, 1.5, shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    return np.asarray(value, np.float32)


def load(path):
    """Case of a file; DataError when it is no readable case."""
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz archive")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
        if not all(isinstance(a, np.ndarray) for a in arrays.values()):
            raise ValueError("it holds something else than arrays")
        meta = json.loads(str(arrays.pop("meta")))
        if not isinstance(meta, dict):
            raise ValueError("its meta is no JSON object")
    except Exception as e:  # damaged bytes make zipfile and numpy fail in many ways
        raise DataError(f"{path} is no readable parity case ({e})") from e
    return Case(os.path.splitext(os.path.basename(path))[0], meta, arrays)


def find(paths):
    """The case files that the paths name, folders taken with everything below them, sorted."""
    files = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(glob.glob(os.path.join(glob.escape(path), "**", "*.npz"), recursive=True))
            if not inside:
                raise DataError(f"{path} holds no .npz file")
            files += inside
        elif os.path.exists(path):
            files.append(path)
        else:
            raise DataError(f"{path} does not exist; name .npz files or folders of them")
    return list(dict.fromkeys(files))
