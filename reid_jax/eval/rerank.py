"""k-reciprocal re-ranking of a gallery (Zhong et al., CVPR 2017), as published and as toolboxes call it.

With the images of query and gallery under one another, D their distance matrix, J the Jaccard distance of
the expanded k-reciprocal sets with weights exp(-O), the result is (1 - lambda) J + lambda P for query rows
and gallery columns; O_ij = (x_ji - m_i) / (largest x_ji - m_i of i) and P = O unless said otherwise.

    form       D                                        x, m_i               source
    original   Euclidean                                D^2, 0               Zhong et al.
    torchreid  squared Euclidean or 1 - cosine          D^2, 0               torchreid's evaluation
    fastreid   squared Euclidean (unit rows, cosine)    O = D                fast-reid's evaluation
    iics       1 - cosine as a rule                     D, smallest x of i   IICS (Xuan and Zhang, CVPR 2021)

fastreid has P = D, or 1 - cosine, unscaled, and lists of k1 entries with the image itself; the others have
k1 + 1. torchreid and fast-reid hold the function of the original form, and give it other distances or none.
"""

import numpy as np
from tqdm import tqdm

from reid_jax.config import choice
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import neighbours, reciprocal

FORMS = ("original", "torchreid", "fastreid", "iics")
MATRIX_FORMS = tuple(f for f in FORMS if f != "fastreid")  # of distances, whatever they are
_BLOCK_BYTES = 32 << 20  # upper bound of a block of the result


def from_distances(
    q_g, q_q, g_g, *, form="original", k1=20, k2=6, lambda_value=0.3, progress=False
) -> np.ndarray:
    """Re-ranked distances f[Q,G] from distances q_g f[Q,G], q_q f[Q,Q], g_g f[G,G], in their type.

    k1: length of the reciprocal lists, k2: images a set is averaged over, lambda_value: weight of the
    original distance. The distances are D above; forms: MATRIX_FORMS. Raises DataError when shapes disagree
    or an entry is not finite, ConfigError for unusable settings.
    """
    choice("form", form, MATRIX_FORMS)
    source = _Matrices(*_matrices(q_g=q_g, q_q=q_q, g_g=g_g), form)
    return _joined(_blocks(source, _settings(form, k1, k2, lambda_value), progress), source.queries)


def square(distance, *, form="iics", k1=20, k2=6, lambda_value=0.3, progress=False) -> np.ndarray:
    """Re-ranked distances f[N,N], not symmetric, of one set with distances f[N,N]. See `from_distances`."""
    choice("form", form, MATRIX_FORMS)
    (distance,) = _matrices(distance=distance)
    source = _Square(distance, form)
    return _joined(_blocks(source, _settings(form, k1, k2, lambda_value), progress), source.queries)


def from_features(query, gallery, **options) -> np.ndarray:
    """Re-ranked distances f32[Q,G], all at once; arguments of `blocks`."""
    return _joined(blocks(query, gallery, **options), len(query))


def blocks(
    query,
    gallery,
    *,
    distance="cosine",
    form="original",
    k1=20,
    k2=6,
    lambda_value=0.3,
    tile=2048,
    progress=False,
):
    """Iterates over (start, re-ranked distances f32[b,G] of the queries from `start` on), from features.

    query f[Q,D], gallery f[G,D]; distance="cosine": D of the forms above is 1 - cosine where the table has
    it, else the distance of the features at unit length; "euclidean": of the features as they are. Memory
    grows with Q + G, not its square.
    Raises DataError for unusable features, ConfigError for unusable settings.
    """
    settings = _settings(form, k1, k2, lambda_value)
    source = _Rows(neighbours.Features(query, gallery, distance=distance, tile=tile), len(query), form)
    return _blocks(source, settings, progress)


def _settings(form, k1, k2, lambda_value):
    choice("form", form, FORMS)
    neighbours.at_least_one("k1", k1)
    neighbours.at_least_one("k2", k2)
    if not 0 <= lambda_value <= 1:
        raise ConfigError(f"lambda_value is {lambda_value}; it must lie between 0 and 1")
    return form, int(k1), int(k2), float(lambda_value)


def _matrices(**named):
    """The matrices as float32 or float64 arrays; DataError when their shapes cannot belong together."""
    arrays = {k: np.asarray(v) for k, v in named.items()}
    shapes = {k: v.shape for k, v in arrays.items()}
    flat = any(v.ndim != 2 or not v.size or v.dtype.kind not in "fiu" for v in arrays.values())
    q, g = next(iter(shapes.values())) if not flat else (0, 0)
    if flat or list(shapes.values()) not in ([(q, g), (q, q), (g, g)], [(q, q)]):
        raise DataError(
            f"distance matrices have shapes {shapes}; [Q,G], [Q,Q] and [G,G], or one [N,N], are needed"
        )
    kind = np.float32 if all(v.dtype == np.float32 for v in arrays.values()) else np.float64
    return [v.astype(kind, copy=False) for v in arrays.values()]


class _Square:
    """x of a set within itself."""

    first = 0  # row of the first gallery image

    def __init__(self, distance, form):
        self.distance, self.squared = distance, form != "iics"
        self.queries = self.count = len(distance)

    def x(self, start, stop):
        """x_ji of images i from start to stop, f[b,N]."""
        return self._power(np.ascontiguousarray(self.distance[:, start:stop].T))

    def pairs(self, i, j):
        return self._power(self.distance[j, i])

    def gallery(self, start, stop):
        return self.x(start, stop)[:, self.first :]

    def nearest(self, k, progress):
        return neighbours.smallest(self.x, self.count, k, progress=progress)

    def low(self, nearest):
        """Smallest x_ji of every i."""
        return nearest.distance[:, 0]

    def _power(self, x):
        return np.square(x) if self.squared else x


class _Matrices(_Square):
    """x of query and gallery from the three matrices of distances."""

    def __init__(self, q_g, q_q, g_g, form):
        self.q_g, self.q_q, self.g_g, self.squared = q_g, q_q, g_g, form != "iics"
        self.queries = self.first = len(q_q)
        self.count = len(q_q) + len(g_g)

    def x(self, start, stop):
        """x_ji of images i from start to stop, f[b,Q+G]."""
        rows, q = np.empty((stop - start, self.count), self.q_g.dtype), self.first
        split = min(max(q - start, 0), stop - start)
        rows[:split, :q] = self.q_q[:, start : start + split].T
        rows[:split, q:] = self.q_g[start : start + split]
        columns = slice(max(start - q, 0), max(stop - q, 0))
        rows[split:, :q] = self.q_g[:, columns].T
        rows[split:, q:] = self.g_g[:, columns].T
        return np.square(rows, out=rows) if self.squared else rows

    def pairs(self, i, j):
        out, q = np.empty(len(i), self.q_g.dtype), self.first
        i_query, j_query = i < q, j < q
        for rows, matrix, a, b in (
            (i_query & j_query, self.q_q, j, i),
            (i_query & ~j_query, self.q_g, i, j - q),
            (~i_query & j_query, self.q_g, j, i - q),
            (~i_query & ~j_query, self.g_g, j - q, i - q),
        ):
            out[rows] = matrix[a[rows], b[rows]]
        return self._power(out)


class _Rows:
    """x of query and gallery from their features.

    A factor common to a row changes nothing, so squared distances stand for 1 - cosine too.
    """

    def __init__(self, features, queries, form):
        self.features, self.queries, self.first = features, queries, queries
        self.count = features.count
        self.root = form == "iics" and not features.cosine
        self.fourth = form == "torchreid"  # its distance is squared already

    def nearest(self, k, progress):
        lists = self.features.search(k, progress=progress)
        return neighbours.Neighbours(lists.index, self._power(lists.distance), self._power(lists.farthest))

    def pairs(self, i, j):
        return self._power(self.features.pairs(i, j))

    def gallery(self, start, stop):
        return self._power(self.features.block(start, stop, self.first))

    def low(self, nearest):
        return np.zeros_like(nearest.farthest)  # that of i itself, free of rounding

    def _power(self, x):
        return np.sqrt(x) if self.root else np.square(x) if self.fourth else x


def _joined(parts, queries):
    """Blocks (start, f[b,G]) as one array f[Q,G]."""
    result = None
    for start, block in parts:
        if result is None:
            result = np.empty((queries, block.shape[1]), block.dtype)
        result[start : start + len(block)] = block
    return result


def _blocks(source, settings, progress):
    """The result by blocks of queries: (start, f[b,G])."""
    form, k1, k2, lambda_value = settings
    depth = k1 if form == "fastreid" else k1 + 1
    nearest = source.nearest(max(depth, k2), progress)
    low, scale = _scaling(source, nearest, form)
    blend_scale = scale / 2 if form == "fastreid" and source.features.cosine else scale  # 1 - cosine

    def original(i, j):
        return (source.pairs(i, j) - low[i]) * scale[i]

    v = reciprocal.vectors(nearest.index, depth, reciprocal.half_depth(k1), k2, original)
    lists = reciprocal.inverted(v[source.first :])
    step = max(1, _BLOCK_BYTES // (v.dtype.itemsize * lists.shape[1]))
    with tqdm(total=source.queries, desc="re-ranking", unit="query", disable=not progress) as bar:
        for start in range(0, source.queries, step):
            stop = min(start + step, source.queries)
            if lambda_value:
                block = source.gallery(start, stop) - low[start:stop, None]
                block *= v.dtype.type(lambda_value) * blend_scale[start:stop, None]
                block += v.dtype.type(1 - lambda_value)
            else:
                block = np.ones((stop - start, lists.shape[1]), v.dtype)
            _add_jaccard(block, v[start:stop], lists, v.dtype.type(1 - lambda_value))
            yield start, block
            bar.update(stop - start)


def _scaling(source, nearest, form):
    """m_i and 1 / (largest x_ji - m_i), f[N] each."""
    low = source.low(nearest) if form == "iics" else np.zeros_like(nearest.farthest)
    if form == "fastreid":
        return low, np.ones_like(low)
    spread = nearest.farthest - low
    return low, np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)


def _add_jaccard(block, v, lists, weight):
    """Adds weight (J - 1) to a block f[b,G], in place; v: CSR [b,N] of its rows."""
    for start, similarity in reciprocal.similarities(v, lists):
        row = np.repeat(np.arange(start, start + similarity.shape[0]), np.diff(similarity.indptr))
        block[row, similarity.indices] += weight * (reciprocal.distance(similarity.data) - 1)
