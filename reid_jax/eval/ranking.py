"""Retrieval figures under the Market-1501 rule: CMC, mAP, mINP, top-k lists, the kinds of first hits.

Per query, gallery entries of the same identity and camera and entries with pid -1 (junk) are removed.
The rank of a match is the number of kept entries before it, so no distance row is ever argsorted
and no query x gallery matrix kept: work goes block by block of queries.
"""

import dataclasses

import numpy as np

from reid_jax.config import choice
from reid_jax.errors import DataError

DISTANCES = ("cosine", "euclidean")
_BLOCK_BYTES = 64 << 20  # upper bound of one block of scores
_HUGE = 1e37  # squared norms from here on could overflow in a distance


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Result of `rank`. Figures are over the queries with a match; fractions unless said otherwise."""

    cmc: np.ndarray  # f64[max_rank], cmc[r - 1]: share of queries with a match among the first r
    mAP: float  # mean over queries of the mean over matches of the precision at the match
    mINP: float  # mean over queries of (number of matches) / (rank of the last match)
    ap: np.ndarray  # f64[Q], average precision, NaN without a match
    inp: np.ndarray  # f64[Q], inverse negative penalty, NaN without a match
    valid: np.ndarray  # bool[Q], the query has a match
    first_hit: np.ndarray  # i32[Q], entries before the first match (0: top-1 is right), -1 without a match
    top_index: np.ndarray  # i32[Q,topk], gallery rows, best first, kept entries only, -1 padding
    top_score: np.ndarray  # f32[Q,topk], cosine similarity or minus the distance, -inf padding
    breakdown: dict  # percent: same_id, other_id_same_cam, other_id_other_cam, prop, chance_prop

    def figures(self):
        """Figures in percent: rank1, rank5, rank10, mAP, mINP and those of `breakdown`."""
        hits = self.first_hit[self.valid]
        ranks = {f"rank{r}": 100 * float(np.mean(hits < r)) for r in (1, 5, 10)}
        return {**ranks, "mAP": 100 * self.mAP, "mINP": 100 * self.mINP, **self.breakdown}


def rank(
    q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, *, distance="cosine", topk=10, max_rank=50, block=256
) -> Retrieval:
    """Ranks the gallery for every query.

    q_feat f32[Q,D], g_feat f32[G,D]; pids and cameras i[Q], i[G]. Higher scores come first, equal scores
    by gallery index; scores are computed in float32. Only equal pids match, so distractors (pid 0, which
    no query has) match nothing; pid -1 is never kept. max_rank and topk may exceed the gallery.
    block: most queries scored at a time (fewer for large galleries).
    Raises DataError when lengths disagree, a side is empty, features are not finite, or no query has a match.
    """
    choice("eval.distance", distance, DISTANCES)
    q_feat, g_feat = _features("query", q_feat, q_pid, q_cam), _features("gallery", g_feat, g_pid, g_cam)
    if q_feat.shape[1] != g_feat.shape[1]:
        raise DataError(
            f"query features have {q_feat.shape[1]} dimensions, gallery features {g_feat.shape[1]}"
        )
    q_pid, g_pid, q_cam, g_cam = (np.asarray(a) for a in (q_pid, g_pid, q_cam, g_cam))
    scorer = _Scorer(q_feat, g_feat, distance)
    search = _Search(g_pid, g_cam, len(q_pid), max(topk, 1))
    block = max(1, min(block, _BLOCK_BYTES // (4 * len(g_feat))))
    for start in range(0, len(q_feat), block):
        scores = scorer.product(start, start + block)
        for i, row in enumerate(scores, start):
            scorer.finish(i, row)
            search.query(i, row, q_pid[i], q_cam[i])
    return _summary(search, scorer, q_pid, g_pid, q_cam, g_cam, topk, max_rank)


def _features(side, features, pid, cam):
    """Features as f32[N,D]; DataError when the side cannot be used."""
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not len(features):
        raise DataError(f"the {side} features have shape {features.shape}; at least one row [N,D] is needed")
    for name, values in (("pids", pid), ("cameras", cam)):
        if len(values) != len(features):
            raise DataError(f"there are {len(features)} {side} features but {len(values)} {side} {name}")
    return features


def _square_norms(side, features):
    """Squared L2 norms f32[N]; DataError naming the first row that is not finite."""
    square = np.einsum("nd,nd->n", features, features)
    bad = np.flatnonzero(~(square < _HUGE))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(features)} {side} features are not finite or too large for float32 "
            f"(first: row {bad[0]}); training has probably diverged"
        )
    return square


class _Scorer:
    """Scores of query blocks: cosine similarity, or minus the squared Euclidean distance."""

    def __init__(self, q_feat, g_feat, distance):
        self.g_feat, self.cosine = g_feat, distance == "cosine"
        self.q_feat, self.q_square = q_feat, _square_norms("query", q_feat)
        g_square = _square_norms("gallery", g_feat)
        self.g_factor = self._inverse(g_square) if self.cosine else -g_square

    @staticmethod
    def _inverse(square):
        """1 / norm, 0 for a zero vector."""
        return np.where(square > 0, 1 / np.sqrt(np.where(square > 0, square, 1)), 0).astype(np.float32)

    def product(self, start, stop):
        """Unfinished scores f32[stop - start, G] of a block: one matrix product."""
        q = self.q_feat[start:stop]
        scale = self._inverse(self.q_square[start:stop])[:, None] if self.cosine else np.float32(2)
        return (q * scale) @ self.g_feat.T

    def finish(self, i, row):
        """Makes the scores of query i final, in place, while its row is in the cache."""
        if self.cosine:
            np.multiply(row, self.g_factor, out=row)
        else:
            np.add(row, self.g_factor, out=row)
            np.subtract(row, self.q_square[i], out=row)

    def shown(self, score):
        """Scores as users read them: cosine similarity or minus the distance."""
        if self.cosine:
            return score
        return np.where(np.isfinite(score), -np.sqrt(np.maximum(-score, 0)), score)


class _Search:
    """Goes through queries, filling first_hit, ap, inp and the top-k lists."""

    def __init__(self, g_pid, g_cam, queries, topk):
        self.g_cam = g_cam
        self.order = np.argsort(g_pid, kind="stable")
        self.sorted_pid = g_pid[self.order]
        self.junk = g_pid == -1 if (g_pid == -1).any() else None
        self.first_hit = np.full(queries, -1, np.int32)
        self.ap, self.inp = np.full(queries, np.nan), np.full(queries, np.nan)
        self.top_index = np.full((queries, topk), -1, np.int32)
        self.top_score = np.full((queries, topk), -np.inf, np.float32)
        self.groups = max(128, 4 * topk)

    def query(self, i, row, pid, cam):
        """Query i with the scores `row` of the whole gallery (changed: removed entries become -inf)."""
        matches = self._remove(row, pid, cam)
        wanted, bound = row[matches], self._top_bound(row)
        least = min(bound, wanted.min(initial=np.inf))
        index = np.flatnonzero(row >= least) if least > -np.inf else np.flatnonzero(row > -np.inf)
        values = row[index]
        self._top(i, index, values, bound)
        if len(matches):
            self._figures(i, _ranks(matches, wanted, index, values))

    def _remove(self, row, pid, cam):
        """Sets removed entries of `row` to -inf; returns the gallery rows that match."""
        if self.junk is not None:
            np.copyto(row, -np.inf, where=self.junk)
        if pid == -1:
            return self.order[:0]
        low, high = np.searchsorted(self.sorted_pid, (pid, pid + 1))
        same = self.order[low:high]
        same_cam = self.g_cam[same] == cam
        row[same[same_cam]] = -np.inf
        return same[~same_cam]

    def _top_bound(self, row):
        """A score that at least topk entries reach: the topk-th of the maxima of disjoint groups."""
        topk, groups = self.top_index.shape[1], self.groups
        if len(row) < 2 * groups:
            return -np.inf
        whole = len(row) // groups * groups
        best = row[:whole].reshape(-1, groups).max(0)
        return np.partition(best, groups - topk)[groups - topk]

    def _top(self, i, index, values, bound):
        """Fills the top-k of query i from kept entries (index ascending) that hold all scores >= bound."""
        near = np.flatnonzero(values >= bound)
        best = near[np.argsort(-values[near], kind="stable")[: self.top_index.shape[1]]]
        self.top_index[i, : len(best)] = index[best]
        self.top_score[i, : len(best)] = values[best]

    def _figures(self, i, ranks):
        """Figures of query i from the 0-based ranks of its matches, ascending."""
        found = np.arange(1, len(ranks) + 1)
        self.first_hit[i] = ranks[0]
        self.ap[i] = (found / (ranks + 1)).sum() / len(ranks)
        self.inp[i] = len(ranks) / (ranks[-1] + 1)


def _ranks(matches, wanted, index, values):
    """Numbers of kept entries that come before each match, ascending.

    matches: gallery rows with scores `wanted`; index, values: kept entries that include all that come
    before a match, index ascending.
    """
    ranks = np.empty(len(matches), np.int64)
    for j, split in enumerate(np.searchsorted(index, matches)):  # equal scores count if their index is lower
        before = np.count_nonzero(values[:split] >= wanted[j])
        ranks[j] = before + np.count_nonzero(values[split:] > wanted[j])
    return np.sort(ranks)


def _summary(search, scorer, q_pid, g_pid, q_cam, g_cam, topk, max_rank):
    """Retrieval from a finished search."""
    valid = search.first_hit >= 0
    if not valid.any():
        raise DataError(
            f"none of the {len(valid)} queries has a match: the gallery holds no image of a query's identity "
            "from another camera; check pids and camids of query and gallery"
        )
    hits = np.bincount(np.minimum(search.first_hit[valid], max_rank), minlength=max_rank + 1)
    best = search.top_index[valid, 0]
    return Retrieval(
        cmc=hits[:max_rank].cumsum() / valid.sum(),
        mAP=float(search.ap[valid].mean()),
        mINP=float(search.inp[valid].mean()),
        ap=search.ap,
        inp=search.inp,
        valid=valid,
        first_hit=search.first_hit,
        top_index=search.top_index[:, :topk],
        top_score=scorer.shown(search.top_score[:, :topk]),
        breakdown=_breakdown(g_pid[best] == q_pid[valid], g_cam[best] == q_cam[valid])
        | {"chance_prop": 100 / len(np.unique(g_cam[g_pid != -1]))},
    )


def _breakdown(same_id, same_cam):
    """Kinds of the first kept entry in percent (EFL Table 1); prop: share of same_cam among the errors."""
    other_same, other_other = np.sum(~same_id & same_cam), np.sum(~same_id & ~same_cam)
    return {
        "same_id": 100 * float(np.mean(same_id)),
        "other_id_same_cam": 100 * float(other_same / len(same_id)),
        "other_id_other_cam": 100 * float(other_other / len(same_id)),
        "prop": 100 * float(other_same / max(other_same + other_other, 1)),
    }
