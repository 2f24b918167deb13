"""Exact nearest rows of a float32 matrix in memory: filters first, then tiles, then the first k.

Candidates of the matrix product are scored again, one way for all, so that a score depends on the two
features alone and not on the batch, the tile or the filter; equal scores are ordered by row.
"""

import numpy as np

TILE_BYTES = 16 << 20  # of the matrix, in one product
QUERIES = 256  # in one product
MARGIN = 4e-6  # above what rounding can move a product of unit rows
_FIRST = 1024  # products by which the first floor is set
GATHERED = 0.5  # share of passing rows from which on all rows are multiplied instead of copied


def nearest(queries, matrix, k, rows=None):
    """The k rows of the largest inner product with each query, best first, ties to the lower row.

    queries f32[Q,D], matrix f32[N,D], rows: bool[N], the rows that take part (None: all).
    Returns a list of Q (row i64[k'], score f32[k']), k' = k or as many rows as there are.
    """
    wanted = None if rows is None else np.flatnonzero(rows)
    if wanted is not None and len(wanted) > GATHERED * len(matrix):
        wanted, outside = None, ~rows
    else:
        outside = None
    count = len(matrix) if wanted is None else len(wanted)
    hits = []
    for start in range(0, len(queries), QUERIES):
        part = queries[start : start + QUERIES]
        best = _Best(len(part), k)
        for first, scores in _products(part, matrix, wanted, count):
            if outside is not None:
                scores[:, outside[first : first + scores.shape[1]]] = -np.inf
            best.add(scores, first)
        hits += [_final(q, matrix, i if wanted is None else wanted[i], k) for q, i in best.of(part)]
    return hits


def _products(queries, matrix, wanted, count):
    """(first, f32[Q,T]) of tile after tile; each is gone with the next."""
    tile = max(256, TILE_BYTES // (4 * matrix.shape[1]))
    buffer = np.empty((len(queries), min(tile, count)), np.float32)
    for first in range(0, count, tile):
        last = min(first + tile, count)
        block = matrix[first:last] if wanted is None else matrix[wanted[first:last]]
        scores = buffer if last - first == buffer.shape[1] else np.empty((len(queries), last - first), "f4")
        yield first, np.matmul(queries, block.T, out=scores)


class _Best:
    """Candidates of each query: all whose product comes within MARGIN of the k-th best so far."""

    def __init__(self, queries, k):
        self.k, self.floor = k, np.full(queries, -np.inf, np.float32)
        self.query, self.row = np.empty(0, np.intp), np.empty(0, np.intp)
        self.score = np.empty(0, np.float32)

    def add(self, scores, first):
        """The products f32[Q,T] with the rows from `first` on; may be overwritten."""
        if np.isneginf(self.floor).any():
            self._begin(scores)
        low = np.maximum(self.floor - MARGIN, np.finfo("f4").min)
        place = np.flatnonzero(scores >= low[:, None])  # much faster than of two dimensions
        if not len(place):
            return
        query, row = np.divmod(place, scores.shape[1])
        self.query = np.append(self.query, query)
        self.score = np.append(self.score, scores[query, row])
        self.row = np.append(self.row, row + first)
        self._cut()

    def _begin(self, scores):
        """Floors from some of the products: at least k of all are not below them."""
        some = scores[:, : max(_FIRST, 4 * self.k)]
        if some.shape[1] > self.k:
            cut = some.shape[1] - self.k
            self.floor = np.maximum(self.floor, np.partition(some, cut, axis=1)[:, cut])

    def _cut(self):
        """Raises the floors to the k-th best and drops what is below them."""
        order = np.lexsort((-self.score, self.query))
        starts = np.searchsorted(self.query[order], np.arange(len(self.floor) + 1))
        enough = np.diff(starts) >= self.k
        kth = self.score[order[np.minimum(starts[:-1] + self.k - 1, len(order) - 1)]]
        self.floor = np.where(enough, np.maximum(kth, self.floor), self.floor)
        keep = self.score >= self.floor[self.query] - MARGIN
        self.query, self.row, self.score = self.query[keep], self.row[keep], self.score[keep]

    def of(self, queries):
        """(query, its candidates' rows, ascending) of each query."""
        order = np.lexsort((self.row, self.query))
        parts = np.split(self.row[order], np.searchsorted(self.query[order], np.arange(1, len(queries))))
        return zip(queries, parts, strict=True)


def _final(query, matrix, rows, k):
    """(rows, scores) of the best k of some rows, ascending before."""
    score = scores(query, matrix, rows)
    order = np.lexsort((rows, -score))[:k]
    return rows[order], score[order]


def scores(query, matrix, rows):
    """Inner products f32[n] of a query f32[D] and some rows, the same whatever the other rows are."""
    parts = [
        np.multiply(matrix[rows[i : i + 4096]], query).sum(axis=1, dtype=np.float32)
        for i in range(0, len(rows), 4096)
    ]
    return np.clip(np.concatenate(parts), -1, 1) if parts else np.empty(0, np.float32)


def unit(vectors):
    """Rows f32[N,D] of unit length; rows of zeros stay."""
    vectors = np.asarray(vectors, np.float32)
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm != 0)
