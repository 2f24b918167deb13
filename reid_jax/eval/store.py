"""Feature sets on disk: one .npz file that any numpy can read."""

import contextlib
import dataclasses
import os
import sys
import tempfile

import numpy as np

from reid_jax.errors import DataError

_KINDS = {"feature": "f", "pid": "iu", "camid": "iu", "path": "U", "split": "U"}


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of images and what is known of them, row by row."""

    feature: np.ndarray  # f32[N,D]
    pid: np.ndarray  # i64[N], -1 junk, 0 distractor
    camid: np.ndarray  # i32[N], from 0
    path: np.ndarray  # str[N], relative to the data set's root
    split: np.ndarray  # str[N], "query" | "gallery" | ...

    def __len__(self):
        return len(self.feature)

    def replace(self, **fields):
        """A FeatureSet with some arrays exchanged."""
        return dataclasses.replace(self, **fields)

    def of(self, split):
        """The rows of one split."""
        keep = self.split == split
        return FeatureSet(*(getattr(self, name)[keep] for name in _KINDS))


def save(path, features):
    """Writes a FeatureSet to `path` (.npz); a reader sees the old file or the whole new one.

    Raises DataError when fields do not fit together or the file cannot be written.
    """
    _check(path, features)
    save_arrays(path, {name: getattr(features, name) for name in _KINDS})


def save_arrays(path, arrays):
    """Writes {name: array} to `path` (.npz) as `save` does."""
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".features-", delete=False) as f:
            temporary = f.name
            np.savez(f, **arrays)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as e:
        raise DataError(
            f"cannot write the features to {path}: {e.strerror or e}; free space or choose another folder"
        ) from e
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)


def load(path):
    """Reads what `save` wrote; DataError when the file is absent, truncated or something else."""
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz file")
        with stored:
            missing = [name for name in _KINDS if name not in stored.files]
            if missing:
                raise ValueError(f"it has no array {', '.join(missing)}")
            arrays = {name: stored[name] for name in _KINDS}
            if not all(isinstance(a, np.ndarray) for a in arrays.values()):
                raise ValueError("it holds something else than arrays")
    except FileNotFoundError as e:
        raise DataError(f"there are no stored features at {path}; run the evaluation first") from e
    except Exception as e:  # damaged bytes make zipfile and numpy fail in many ways
        raise DataError(f"{path} is no readable feature file ({e}); delete it and evaluate again") from e
    features = FeatureSet(**arrays)
    _check(path, features)
    return features


def _check(path, features):
    """Raises DataError when arrays of a FeatureSet do not fit together."""
    for name, kinds in _KINDS.items():
        array = getattr(features, name)
        ndim = 2 if name == "feature" else 1
        if array.dtype.kind not in kinds or array.ndim != ndim or len(array) != len(features.feature):
            raise DataError(
                f"{path}: array {name} is {array.dtype} {array.shape} beside features "
                f"{features.feature.shape}; "
                "a feature set has feature f32[N,D], pid i64[N], camid i32[N], path, split str[N]"
            )
    if not all(_is_text(getattr(features, name)) for name in ("path", "split")):
        raise DataError(f"{path}: its names are damaged; evaluate again")
    if len(features) and features.camid.min() < 0:
        raise DataError(f"{path}: a camid is {features.camid.min()}; cameras count from 0")


def _is_text(array):
    """Whether all code points of str[N] exist; numpy does not look."""
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    return not native.itemsize or not native.size or native.view(np.uint32).max() <= sys.maxunicode


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
