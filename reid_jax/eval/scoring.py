"""Scores of queries against a gallery on the device, and what is read off them: ranks and top lists.

Features come in tiles of the gallery, so that the whole [Q,G] matrix never exists: a block of queries has
one buffer of score rows [S,W], W being G rounded up to whole lanes. All scores of a query live in that
buffer, so a match is compared with bit-identical numbers, itself included. Removed entries are -inf.

Scores are float32, or float64 for float64 features and distances where JAX's x64 mode is on.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.errors import NOT_FINITE, ConfigError, DataError
from reid_jax.eval import tiles

REMOVED = -2  # label of gallery entries that no query keeps
NO_LABEL = -1  # label of a query for which nothing is removed
GROUP = 8  # matches counted at a time
_LANES = 256
_TOP_GROUP = 32  # entries whose maximum stands for them in a search for the top k


def buffer(queries, gallery, dtype=np.float32):
    """Score rows f[S,W] of -inf, to be filled by FeatureScores or DistanceScores of that type."""
    return jnp.full((queries, -(-gallery // _LANES) * _LANES), -jnp.inf, dtype)


def score_type(*arrays):
    """float64 when all arrays are and JAX computes in it, else float32."""
    wide = jax.config.jax_enable_x64 and all(getattr(a, "dtype", None) == np.float64 for a in arrays)
    return np.float64 if wide else np.float32


def features(side, array, dtype=np.float32):
    """Features as f[N,D], on the host unless they are on an accelerator already.

    Raises DataError when they are no [N,D] of at least one row.
    """
    on_device = isinstance(array, jax.Array) and not tiles.on_cpu() and len(array.devices()) == 1
    array = array.astype(dtype) if on_device else np.asarray(array, dtype)
    if array.ndim != 2 or not array.size:
        raise DataError(f"the {side} features have shape {array.shape}; at least one row [N,D] is needed")
    return array


DISTANCES = ("cosine", "euclidean")
_RATIO = re.compile(r"ratio([1-9]\d{0,3})")


def check_distance(distance, field="eval.distance"):
    """The distance: cosine, euclidean or ratioN, N from 1 to 9999; ConfigError for another."""
    if isinstance(distance, str) and _RATIO.fullmatch(distance):
        return distance
    if distance not in DISTANCES:
        raise ConfigError(
            f"config.{field} is {distance!r}; it must be one of {', '.join(map(repr, DISTANCES))}, or "
            "'ratioN' with N the weights at the end of each feature"
        )
    return distance


def weights_of(distance):
    """N of ratioN, 0 of the others."""
    match = _RATIO.fullmatch(distance)
    return int(match[1]) if match else 0


class FeatureScores:
    """Score rows from features: cosine similarity, or 2 q.g - |g|^2 (the order of Euclidean distances).

    Distance ratioN: a similarity that is a mean with weights, of features [a, b] whose last N columns b are
    weights: (a_q . a_g) / (b_q . b_g), 0 where nobody has weight. Features are to be such that it lies
    between 0 and 1.
    """

    def __init__(self, q_feat, g_feat, distance, labels):
        self.cosine, self.q_feat, self.q_label = distance == "cosine", q_feat, labels.q_label
        self.weights = weights_of(distance)
        if self.weights >= q_feat.shape[1]:
            raise DataError(
                f"the features have {q_feat.shape[1]} columns, too few for the distance {distance}"
            )
        self.dtype = q_feat.dtype
        self.q_square = tiles.Tiles(q_feat).square_norms("query", labels.q_mask)
        self.tiles = tiles.Tiles(g_feat)
        self.g_square = self.tiles.square_norms("gallery", labels.g_mask)
        self.g_factor = jnp.asarray(_inverse(self.g_square) if self.cosine else self.g_square)
        self.g_label = jnp.asarray(labels.g_label)
        factor = 1 if self.weights else 2
        self.q_factor = _inverse(self.q_square) if self.cosine else np.full(len(q_feat), factor, q_feat.dtype)

    def fill(self, rows, queries):
        """Scores of the queries (row numbers i[n], n <= S) in the buffer `rows` f[S,W], which is given up.

        Rows from n on repeat the last query.
        """
        queries = _padded(queries, len(rows))
        q, label = self._scaled(queries), jnp.asarray(self.q_label[queries])

        def use(rows, tile, start):
            args = rows, q, tile, start, self.g_factor, label, self.g_label
            return _fill_features(*args, cosine=self.cosine, weights=self.weights)

        return self.tiles.each(use, rows)

    def _scaled(self, queries):
        """Features of a block times their factors, on the device."""
        factor = self.q_factor[queries, None]
        if isinstance(self.q_feat, jax.Array):
            return self.q_feat[queries] * factor
        q = tiles.take(self.q_feat, queries)
        return jax.device_put(np.multiply(q, factor, out=q), may_alias=True)

    def range(self):
        """(lowest, highest) similarity that features of these lengths can have, as `shown` gives it."""
        if self.weights:
            return 0.0, 1.0
        if self.cosine:
            return -1.0, 1.0
        longest = [float(np.sqrt(square.max())) for square in (self.q_square, self.g_square)]
        return -sum(longest) or -1.0, 0.0

    def squares(self, queries, rows):
        """What turns scores of the queries into similarities: f[rows] squared norms; None: they are."""
        return None if self.cosine or self.weights else jnp.asarray(self.q_square[_padded(queries, rows)])

    def shown(self, score):
        """Scores f[Q,k] as users read them: the similarity or minus the distance."""
        if self.cosine or self.weights:
            return score
        square = np.maximum(self.q_square[:, None] - score, 0)
        return np.where(np.isfinite(score), -np.sqrt(square), score)


class DistanceScores:
    """Score rows from distances [Q,G] on the host: minus the distance. Rows are read when needed."""

    def __init__(self, distance, labels):
        self.distance, self.q_label, self.g_mask = distance, labels.q_label, labels.g_mask
        self.dtype = score_type(distance)
        self.g_label = jnp.asarray(labels.g_label)

    def fill(self, rows, queries):
        """As FeatureScores.fill; DataError naming a query with a distance that is not finite."""
        queries = _padded(queries, len(rows))
        block = np.asarray(self.distance[queries], self.dtype)
        bad = ~np.isfinite(block).all(axis=1, where=self.g_mask)
        if bad.any():
            raise DataError(f"the distances of query {queries[bad].min()} are not finite; {NOT_FINITE}")
        return _fill_distance(rows, jnp.asarray(block), jnp.asarray(self.q_label[queries]), self.g_label)

    def range(self):
        """(lowest, highest) of minus the distances."""
        starts = range(0, len(self.distance), 256)
        blocks = (np.asarray(self.distance[start : start + 256], self.dtype) for start in starts)
        masked = (block[:, self.g_mask] for block in blocks)
        low, high = zip(*((float(-block.max()), float(-block.min())) for block in masked), strict=True)
        return min(low), max(high) if max(high) > min(low) else min(low) + 1

    def squares(self, queries, rows):
        """As FeatureScores.squares: the scores are what is counted."""
        del queries, rows

    def shown(self, score):
        """Minus the distances."""
        return score


def _inverse(square):
    """1 / norm, 0 for a zero vector."""
    return np.where(square > 0, 1 / np.sqrt(np.where(square > 0, square, 1)), 0).astype(square.dtype)


def _padded(queries, rows):
    """`queries` i[n] with the last one repeated up to i[rows]."""
    return np.pad(queries, (0, rows - len(queries)), mode="edge")


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("cosine", "weights"))
def _fill_features(rows, q, tile, start, g_factor, q_label, g_label, *, cosine, weights):
    """Writes the scores of one tile to columns start.. of the rows."""
    g_factor = lax.dynamic_slice_in_dim(g_factor, start, len(tile))
    g_label = lax.dynamic_slice_in_dim(g_label, start, len(tile))
    if weights:
        over, under = (
            _product(q[:, part], tile[:, part]) for part in (slice(-weights), slice(-weights, None))
        )
        score = jnp.where(under == 0, 0, over / jnp.where(under == 0, 1, under))
    else:
        product = _product(q, tile)
        score = product * g_factor if cosine else product - g_factor
    return lax.dynamic_update_slice(rows, _kept(score, q_label, g_label), (0, start))


def _product(a, b):
    """f[S,D], f[T,D] -> f[S,T]"""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


@functools.partial(jax.jit, donate_argnums=0)
def _fill_distance(rows, distance, q_label, g_label):
    return lax.dynamic_update_slice(rows, _kept(-distance, q_label, g_label), (0, 0))


def _kept(score, q_label, g_label):
    """Scores, -inf for removed entries; -0.0 (which a sort would tell apart) and subnormals become 0.0."""
    removed = (g_label == q_label[:, None]) | (g_label == REMOVED)
    return jnp.where(removed, -jnp.inf, jnp.where(jnp.abs(score) < _tiny(score), 0.0, score))


def _tiny(score):
    """The smallest score above 0."""
    return jnp.finfo(score.dtype).tiny


def before(score, index, than, than_index):
    """Whether an entry comes before another: a higher score, or the same at a lower gallery index."""
    return (score > than) | ((score == than) & (index < than_index))


@functools.partial(jax.jit, donate_argnums=0, static_argnames="topk")
def measure(rows, match, groups, *, topk):
    """What the figures need of score rows f[S,W], which are given up and returned.

    match i32[S,P]: gallery rows of the matches, -1 padding, P a multiple of GROUP; groups: GROUPs of
    columns in use. Returns (rows, entries before each match i32[S,P], 0 for padding; top-k gallery rows
    i32[S,topk], -1 padding; their scores f[S,topk], -inf padding).
    """
    score = jnp.take_along_axis(rows, jnp.maximum(match, 0), axis=1)
    score = jnp.where(match < 0, jnp.inf, score)
    count = _count_by_lanes if tiles.on_cpu() else _count_plain

    def some(i, ranks):
        part = [lax.dynamic_slice_in_dim(x, i * GROUP, GROUP, 1) for x in (score, match)]
        return lax.dynamic_update_slice_in_dim(ranks, count(rows, *part), i * GROUP, 1)

    ranks = lax.fori_loop(0, groups, some, jnp.zeros(match.shape, jnp.int32))
    return rows, ranks, *_top(rows, topk)


def _count_plain(rows, score, index):
    """Entries of rows f32[S,W] before each of the given f32[S,P], i32[S,P]: i32[S,P]."""
    column = jnp.arange(rows.shape[1], dtype=jnp.int32)
    nearer = before(rows[:, None, :], column, score[:, :, None], index[:, :, None])
    return jnp.sum(nearer, axis=2, dtype=jnp.int32)


def _count_by_lanes(rows, score, index):
    """`_count_plain` with a counter for each lane: XLA's CPU code is then vector code, 20 times as fast."""
    lane = jnp.arange(_LANES, dtype=jnp.int32)
    above = _next_above(score)

    def add(i, count):
        part = lax.dynamic_slice_in_dim(rows, i * _LANES, _LANES, 1)
        equal_counts = i * _LANES + lane < index[:, :, None]
        least = jnp.where(equal_counts, score[:, :, None], above[:, :, None])
        return count + (part[:, None, :] >= least).astype(jnp.int32)

    count = jnp.zeros((*score.shape, _LANES), jnp.int32)
    count = lax.fori_loop(0, rows.shape[1] // _LANES, add, count)
    return jnp.sum(count, axis=2, dtype=jnp.int32)


def _next_above(score):
    """The next score above each; scores are not subnormal, which XLA's CPU code takes for 0."""
    tiny = _tiny(score)
    next_float = jnp.nextafter(score, jnp.full_like(score, jnp.inf))
    return jnp.where(score == 0, tiny, jnp.where(score == -tiny, 0.0, next_float))


def _top(rows, topk):
    """Top-k of rows f32[S,W], equal scores by index: (i32[S,topk] with -1, f32[S,topk] with -inf padding).

    The k best entries lie in the k groups with the best maxima (equal ones: the first groups), so that
    only those are searched.
    """
    k = min(topk, rows.shape[1])
    groups = rows.shape[1] // _TOP_GROUP
    if groups < 4 * k:
        score, index = lax.top_k(rows, k)
    else:
        grouped = rows.reshape(len(rows), groups, _TOP_GROUP)
        chosen = jnp.sort(lax.top_k(grouped.max(axis=2), k)[1], axis=1)
        candidates = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).reshape(len(rows), -1)
        score, place = lax.top_k(candidates, k)
        index = jnp.take_along_axis(chosen, place // _TOP_GROUP, axis=1) * _TOP_GROUP + place % _TOP_GROUP
    index = jnp.where(score == -jnp.inf, -1, index)
    pad = ((0, 0), (0, topk - k))
    return jnp.pad(index, pad, constant_values=-1), jnp.pad(score, pad, constant_values=-jnp.inf)
