"""Exact nearest neighbours, tile by tile: memory grows with the images, not with their square.

From features on the device (JAX), or from a distance matrix handed over row block by row block.
Equal distances are ordered by index, as a stable argsort of every row would.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from reid_jax.config import choice
from reid_jax.errors import NOT_FINITE, ConfigError, DataError
from reid_jax.eval import tiles

DISTANCES = ("cosine", "euclidean")
_TILE = 2048  # rows of a tile; its products take 16 MiB
_PAIRS = 256  # pairs whose features are gathered at a time: they stay in the cache
_MATRIX_BYTES = 64 << 20  # upper bound of a block of a distance matrix
_HUGE = 1e37  # squared norms from here on could overflow in a distance


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The nearest entries of every row, nearest first.

    Distances from features are squared Euclidean ones (2 - 2 cos for "cosine"), never below 0.
    """

    index: np.ndarray  # i32[N,k]
    distance: np.ndarray  # f[N,k]
    farthest: np.ndarray  # f[N], the largest distance of the whole row


def search(features, k, *, gallery=None, distance="cosine", tile=_TILE, progress=False) -> Neighbours:
    """The k nearest gallery entries of every row; without a gallery of the rows themselves, each included.

    features f[N,D], gallery f[G,D]; computed in float32. k is cut to the number of entries. tile: rows
    compared with as many at a time. Row i of a search without gallery normally starts with i, but an exact
    copy of lower index comes before it. progress: shows a bar.
    Raises DataError for unusable features, ConfigError for unusable settings.
    """
    rows = Features(features, distance=distance, tile=tile)
    if gallery is None:
        return rows.search(k, progress=progress)
    return rows.search(k, gallery=Features(gallery, distance=distance, tile=tile), progress=progress)


class Features:
    """Feature rows on the device, padded to whole tiles: searched, compared by pairs or by blocks."""

    def __init__(self, *parts, distance="cosine", tile=_TILE):
        """parts: f[N,D] arrays that are put one under the other."""
        choice("distance", distance, DISTANCES)
        at_least_one("tile", tile)
        parts = [_checked(p) for p in parts]
        _same_dimension(*(p.shape[1] for p in parts))
        self.count, self.dim = sum(map(len, parts)), parts[0].shape[1]
        self.cosine = distance == "cosine"
        tiles = -(-self.count // tile)
        self.tile = -(-self.count // (8 * tiles)) * 8
        self.tiles = -(-self.count // self.tile)
        self._put(parts)

    def _put(self, parts):
        """Device arrays: rows f32[P,D], half their squared norms f32[P] (1 for cosine), penalty f32[P].

        Half the squared distance of a and b is then half[a] - (a.b - penalty[b]): within a row only the
        last term decides, and padding never wins.
        """
        rows = tiles.aligned((self.tiles * self.tile, self.dim))
        rows[self.count :] = 0
        half = np.full(len(rows), np.inf, np.float32)
        start = 0
        for part in parts:
            for first in range(0, len(part), _TILE):
                block = np.asarray(part[first : first + _TILE], np.float32)
                square = _square_norms(block, start)
                place = slice(start, start + len(block))
                scale = 1 / np.sqrt(np.where(square > 0, square, 1)) if self.cosine else np.ones_like(square)
                np.multiply(block, scale[:, None], out=rows[place])
                half[place] = 1 if self.cosine else square / 2
                start += len(block)
        self.rows, self.half = jax.device_put(rows, may_alias=True), jnp.asarray(half)
        self.penalty = jnp.where(jnp.isinf(self.half), jnp.inf, 0 if self.cosine else self.half)

    def search(self, k, *, gallery=None, progress=False):
        """See `search`; gallery: Features or None."""
        at_least_one("k", k)
        _same_dimension(self.dim, (gallery or self).dim)
        k = min(k, (gallery or self).count)
        best = [_nothing_yet(self.tile, k)] * self.tiles
        steps = self.tiles * gallery.tiles if gallery else self.tiles * (self.tiles + 1) // 2
        with tqdm(total=steps, desc="neighbours", unit="tile", disable=not progress) as bar:
            for a in range(self.tiles):
                for b in range(0 if gallery else a, (gallery or self).tiles):
                    self._compare(a, b, best, gallery)
                    bar.update()
        return self._gathered(best)

    def _compare(self, a, b, best, gallery):
        """Tile a with tile b; without a gallery also b with a. Tiles must come in ascending order."""
        if gallery is None and a < b:
            best[a], best[b] = _both_ways(self.rows, self.penalty, a, b, best[a], best[b], size=self.tile)
        else:
            other = gallery or self
            size = (self.tile, other.tile)
            best[a] = _one_way(self.rows, other.rows, other.penalty, a, b, best[a], size=size)
        jax.block_until_ready(best[a].least)  # else every tile's scores could be in memory at once

    def _gathered(self, best):
        parts = [jax.device_get(b) for b in best]
        score, index, least = (np.concatenate([p[f] for p in parts])[: self.count] for f in range(3))
        half = np.asarray(self.half[: self.count])
        distance = np.maximum(2 * (half[:, None] - score), 0)
        return Neighbours(index, distance, np.maximum(2 * (half - least), 0))

    def array(self):
        """The rows f32[N,D] on the host, at unit length for cosine; on CPUs no copy."""
        return np.asarray(self.rows)[: self.count]

    def pairs(self, i, j):
        """Squared distances f32[P] of rows i[P] and j[P]; exactly 0 where i = j."""
        rows, half, penalty = self.array(), np.asarray(self.half), np.asarray(self.penalty)
        out = np.empty(len(i), np.float32)
        for start in range(0, len(i), _PAIRS):
            a, b = i[start : start + _PAIRS], j[start : start + _PAIRS]
            inner = np.einsum("pd,pd->p", rows[a], rows[b])
            out[start : start + len(a)] = 2 * (half[a] - (inner - penalty[b]))
        out[i == j] = 0
        return np.maximum(out, 0, out=out)

    def block(self, start, stop, first=0):
        """Squared distances f32[stop - start, N - first] of rows start, ... to rows first, first + 1, ..."""
        out = np.empty((stop - start, self.count - first), np.float32)
        for tile in range(first // self.tile, self.tiles):
            size = (stop - start, self.tile)
            distances = _block_distances(self.rows, self.half, self.penalty, start, tile, size=size)
            skip, place = max(first - tile * self.tile, 0), max(tile * self.tile - first, 0)
            width = min(self.tile - skip, out.shape[1] - place)
            out[:, place : place + width] = np.asarray(distances)[:, skip : skip + width]
        return out


def smallest(rows, count, k, *, progress=False) -> Neighbours:
    """The k smallest entries of every row of a matrix [N,N] that is never whole in memory.

    rows: function of (start, stop) that gives the rows f[stop - start, N]; count: N. float64 rows are
    compared in float64. Raises DataError when an entry is not finite.
    """
    k, step = min(k, count), max(1, min(count, _MATRIX_BYTES // (8 * count)))
    parts = []
    for start in tqdm(range(0, count, step), desc="neighbours", unit="block", disable=not progress):
        block = rows(start, min(start + step, count))
        farthest = block.max(1)
        index, distance = _smallest(block, k)
        if not (np.isfinite(farthest).all() and np.isfinite(distance).all()):
            raise DataError(f"distances of rows {start} to {start + len(block) - 1} are not all finite")
        parts.append((index, distance, farthest))
    return Neighbours(*map(np.concatenate, zip(*parts, strict=True)))


def _smallest(block, k):
    """Indices i32[b,k] and values f[b,k] of the smallest entries, ascending, equal ones by index."""
    minus = np.subtract(0, block, dtype=np.float32)  # 0 - x: no negative zero, which sorts apart
    value, index = (np.asarray(x) for x in _top_k(minus, k))
    if block.dtype == np.float32:
        return index, -value
    row, column = np.nonzero(minus >= value[:, -1:])  # rounding keeps the order: none of the k is missed
    values = block[row, column]
    order = np.lexsort((values, row))  # stable: columns ascend
    pick = order[np.searchsorted(row, np.arange(len(block)))[:, None] + np.arange(k)]
    return column[pick].astype(np.int32), values[pick]


def at_least_one(name, value):
    """ConfigError when a setting is below 1 or not whole."""
    if value != int(value) or value < 1:
        raise ConfigError(f"{name} is {value}; it must be a whole number from 1 on")


def _same_dimension(*dims):
    if len(set(dims)) > 1:
        raise DataError(f"features have {' and '.join(map(str, dims))} dimensions; they cannot be compared")


def _checked(features):
    features = np.asarray(features)
    real = jnp.issubdtype(features.dtype, jnp.floating) or jnp.issubdtype(features.dtype, jnp.integer)
    if features.ndim != 2 or not len(features) or not real:
        raise DataError(
            f"features have shape {features.shape} and type {features.dtype}; "
            "numbers [N,D] with at least one row are needed"
        )
    return features


def _square_norms(block, start):
    """Squared norms f32[n]; DataError naming the first row that cannot be used."""
    square = np.einsum("nd,nd->n", block, block)
    bad = np.flatnonzero(~(square < _HUGE))
    if len(bad):
        raise DataError(
            f"features are not finite or too large for float32 (first: row {start + bad[0]}); {NOT_FINITE}"
        )
    return square


class _Best(NamedTuple):
    """What is known of the rows of a tile."""

    score: jax.Array  # f32[T,k], best first
    index: jax.Array  # i32[T,k]
    least: jax.Array  # f32[T], lowest score so far


def _nothing_yet(tile, k):
    return _Best(
        jnp.full((tile, k), -jnp.inf, jnp.float32),
        jnp.zeros((tile, k), jnp.int32),
        jnp.full(tile, jnp.inf, jnp.float32),
    )


def _product(a, b):
    """Inner products of the rows of a and b, in full float32 on every platform."""
    return jnp.dot(a, b.T, precision=lax.Precision.HIGHEST)


def _part(array, tile, size):
    return lax.dynamic_slice_in_dim(array, tile * size, size)


def _merged(best, product, penalty, first):
    """best with the entries first, first + 1, ... of inner products [T,S]; earlier entries win ties."""
    score = product - penalty
    score = jnp.where(score == 0, 0.0, score)  # no negative zero, which sorts apart
    better = jnp.where(score > best.score[:, -1:], score, -jnp.inf)  # few: top_k is 3 times faster on CPUs
    value, index = lax.top_k(better, min(best.score.shape[1], score.shape[1]))
    values, indices = jnp.concatenate([best.score, value], 1), jnp.concatenate([best.index, first + index], 1)
    value, place = lax.top_k(values, best.score.shape[1])
    least = jnp.where(jnp.isinf(penalty), jnp.inf, score).min(1)
    return _Best(value, jnp.take_along_axis(indices, place, 1), jnp.minimum(best.least, least))


@functools.partial(jax.jit, static_argnames="size")
def _one_way(rows, gallery, penalty, a, b, best, *, size):
    """Rows of tile a against the gallery's tile b; size: of both kinds of tile."""
    product = _product(_part(rows, a, size[0]), _part(gallery, b, size[1]))
    return _merged(best, product, _part(penalty, b, size[1]), b * size[1])


@functools.partial(jax.jit, static_argnames="size")
def _both_ways(rows, penalty, a, b, best_a, best_b, *, size):
    """Tiles a and b of the same rows against each other, from one product."""
    product = _product(_part(rows, a, size), _part(rows, b, size))
    best_a = _merged(best_a, product, _part(penalty, b, size), b * size)
    return best_a, _merged(best_b, product.T, _part(penalty, a, size), a * size)


@functools.partial(jax.jit, static_argnames="size")
def _block_distances(rows, half, penalty, start, tile, *, size):
    """Squared distances of size[0] rows from `start` on to the rows of a tile of size[1]."""
    a, half_a = (lax.dynamic_slice_in_dim(x, start, size[0]) for x in (rows, half))
    inner = _product(a, _part(rows, tile, size[1]))
    return jnp.maximum(2 * (half_a[:, None] - (inner - _part(penalty, tile, size[1]))), 0)


_top_k = jax.jit(lax.top_k, static_argnums=1)
