"""The comparison of computed with recorded arrays."""

import dataclasses

import numpy as np

TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Within:
    """A computed array with a tolerance of its own, e.g. for references in half precision."""

    value: np.ndarray
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Partition:
    """Computed cluster labels i[N]: only which rows share a label counts; -1 is its own label."""

    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Comparison of one array."""

    name: str
    error: float  # inf: absent, not finite or of another shape
    tolerance: float = TOLERANCE
    note: str = ""

    @property
    def ok(self):
        return self.error <= self.tolerance


def outcomes(case, results):
    """An Outcome for every recorded array of a case; {name: computed array} may hold more."""
    return [outcome(name, results.get(name), want) for name, want in case.recorded().items()]


def outcome(name, got, want):
    """Compares one array with the recorded one."""
    if got is None:
        return Outcome(name, np.inf, note="not computed")
    if isinstance(got, Partition):
        return Outcome(name, 0.0 if same_partition(got.labels, want) else 1.0)
    tolerance = TOLERANCE
    if isinstance(got, Within):
        got, tolerance = got.value, got.tolerance
    got = np.asarray(got)
    if not _same_shape(got.shape, want.shape):
        return Outcome(name, np.inf, note=f"shape {got.shape}, recorded {want.shape}")
    return Outcome(name, error(got.reshape(want.shape), want, name.startswith("grad/")), tolerance)


def error(got, want, gradient=False):
    """Largest difference over the largest recorded value (at least 1e-6).

    Integers and truth values must be equal (0 or 1). A gradient recorded as all zero, which it is in exact
    arithmetic, may differ by 1e-6: its largest value counts as 0.1.
    """
    if want.dtype.kind in "iub":
        return float(not np.array_equal(got, want))
    if want.dtype.kind not in "f":
        return 0.0 if np.array_equal(got, want) else 1.0
    if not want.size:
        return 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    difference = np.subtract(got, want, out=np.zeros_like(got), where=~same)
    if not np.isfinite(difference).all():
        return float("inf")
    finite = np.where(np.isfinite(want), np.abs(want), 0).max()
    scale = 0.1 if gradient and finite == 0 else max(finite, 1e-6)
    return float(np.abs(difference).max() / scale)


def same_partition(a, b):
    """Whether two labelings i[N] put the same rows together, outliers (-1) being the same rows."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or not np.array_equal(a == -1, b == -1):
        return False
    pairs = len(np.unique(np.stack([a, b], 1), axis=0))
    return pairs == len(np.unique(a)) == len(np.unique(b))


def _same_shape(a, b):
    """Equal but for axes of size 1: 2-D kernels are recorded as 1xkxk ones."""
    return a == b or [n for n in a if n != 1] == [n for n in b if n != 1]
