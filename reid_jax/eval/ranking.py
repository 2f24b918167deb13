"""Exact retrieval figures: CMC, mAP, mINP, top-k lists, the kinds of first hits.

Market-1501 rule: per query, gallery entries of the same identity and camera and entries with pid -1
(junk) are removed. The rank of a match is the number of kept entries before it, so nothing is sorted
and no query x gallery matrix kept: blocks of queries go over tiles of the gallery on the device
(`reid_jax.eval.scoring`).
"""

import dataclasses

import numpy as np

from reid_jax.errors import DataError
from reid_jax.eval import scoring

DISTANCES = scoring.DISTANCES  # and ratioN, see scoring.FeatureScores
_SCORE_BYTES = 192 << 20  # upper bound of one block of scores
_ABSENT = np.iinfo(np.int32).max  # rank of padding


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
    mAP_trapezoid: float  # mAP by the trapezoid rule (MARS, DI-REID)
    ap_trapezoid: np.ndarray  # f64[Q], precision averaged with that just before the match (1 before rank 1)

    def figures(self):
        """Figures in percent: rank1, rank5, rank10, mAP, mINP and those of `breakdown`."""
        hits = self.first_hit[self.valid]
        ranks = {f"rank{r}": 100 * float(np.mean(hits < r)) for r in (1, 5, 10)}
        return {**ranks, "mAP": 100 * self.mAP, "mINP": 100 * self.mINP, **self.breakdown}


def rank(
    q_feat,
    g_feat,
    q_pid,
    g_pid,
    q_cam,
    g_cam,
    *,
    distance="cosine",
    topk=10,
    max_rank=50,
    camera_filter=True,
    q_mask=None,
    g_mask=None,
    block=400,
) -> Retrieval:
    """Ranks the gallery for every query.

    q_feat f32[Q,D], g_feat f32[G,D], NumPy or JAX arrays; pids and cameras i[Q], i[G]. Higher scores come
    first, equal scores by gallery index; scores are computed in float32. Only equal pids match, so
    distractors (pid 0, which no query has) match nothing; pid -1 is never kept. max_rank and topk may
    exceed the gallery.
    camera_filter: False keeps entries of the query's own identity and camera too, so that all pairs
    count. (To compare a set with itself, leave it on and give every image a camera of its own: an image
    is then removed for itself only.)
    q_mask, g_mask: bool[Q], bool[G]; rows where False are padding: queries have no match, gallery
    entries are never kept, features may be anything.
    block: most queries scored at a time (fewer for large galleries).
    Raises DataError when lengths disagree, a side is empty, features are not finite, or no query has a match.
    """
    scoring.check_distance(distance)
    scores, labels = problem(
        q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, distance, camera_filter, q_mask, g_mask
    )
    return _search(scores, labels, topk, max_rank, block)


def rank_distances(
    distance,
    q_pid,
    g_pid,
    q_cam,
    g_cam,
    *,
    topk=10,
    max_rank=50,
    camera_filter=True,
    q_mask=None,
    g_mask=None,
    block=400,
) -> Retrieval:
    """Ranks by given distances (of re-ranking, say), lower ones first; otherwise as `rank`.

    distance: f32[Q,G], a NumPy array or anything with its shape whose rows can be read by an index array
    (a memory map); only `block` rows are read at a time.
    Raises DataError when lengths disagree, a side is empty, distances are not finite, or no query has a
    match.
    """
    if len(distance.shape) != 2 or 0 in distance.shape:
        raise DataError(f"the distances have shape {distance.shape}; they must be [queries, gallery]")
    labels = Labels(q_pid, g_pid, q_cam, g_cam, *distance.shape, camera_filter, q_mask, g_mask)
    scores = scoring.DistanceScores(distance, labels)
    return _search(scores, labels, topk, max_rank, block)


def problem(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, distance, camera_filter, q_mask, g_mask):
    """(scoring.FeatureScores, Labels) of the arguments of `rank`, checked."""
    dtype = scoring.score_type(q_feat, g_feat)
    q_feat, g_feat = scoring.features("query", q_feat, dtype), scoring.features("gallery", g_feat, dtype)
    labels = Labels(q_pid, g_pid, q_cam, g_cam, len(q_feat), len(g_feat), camera_filter, q_mask, g_mask)
    if q_feat.shape[1] != g_feat.shape[1]:
        raise DataError(
            f"query features have {q_feat.shape[1]} dimensions, gallery features {g_feat.shape[1]}"
        )
    return scoring.FeatureScores(q_feat, g_feat, distance, labels), labels


class Labels:
    """Who matches whom and what is removed, from pids, cameras and masks.

    Raises DataError when lengths disagree with the numbers of queries and of gallery entries, or when no
    query has a match.
    """

    def __init__(self, q_pid, g_pid, q_cam, g_cam, queries, gallery, camera_filter, q_mask, g_mask):
        self.q_pid, self.q_cam = _label_arrays("query", queries, q_pid, q_cam)
        self.g_pid, self.g_cam = _label_arrays("gallery", gallery, g_pid, g_cam)
        self.q_mask, self.g_mask = _mask("query", queries, q_mask), _mask("gallery", gallery, g_mask)
        self.g_keep = self.g_mask & (self.g_pid != -1)
        both = np.stack([np.append(self.q_pid, self.g_pid), np.append(self.q_cam, self.g_cam)])
        pid, cam = (np.unique(x, return_inverse=True)[1].astype(np.int64) for x in both)
        label = np.unique(pid * (cam.max() + 1) + cam, return_inverse=True)[1].astype(np.int32)
        self.g_label = np.where(self.g_keep, label[queries:], scoring.REMOVED).astype(np.int32)
        self.q_label = label[:queries] if camera_filter else np.full(queries, scoring.NO_LABEL, np.int32)
        self._find_matches()

    def _find_matches(self):
        """Matches of a query: a run of `self.order`, less the entries of the query's label."""
        entries = np.flatnonzero(self.g_keep)
        self.order = entries[np.argsort(self.g_pid[entries], kind="stable")].astype(np.int32)
        pids, labels = self.g_pid[self.order], np.sort(self.g_label[entries])
        self.low = np.searchsorted(pids, self.q_pid)
        self.run = np.searchsorted(pids, self.q_pid, side="right") - self.low
        same = np.searchsorted(labels, self.q_label, side="right") - np.searchsorted(labels, self.q_label)
        self.run = np.where(self.q_mask & (self.q_pid != -1), self.run, 0)
        self.matches = np.maximum(self.run - same, 0)  # of each query, i64[Q]
        if not self.matches.any():
            raise DataError(
                f"none of the {len(self.matches)} queries has a match: the gallery holds no image of a "
                "query's identity from another camera; check pids and camids of query and gallery"
            )
        self.width = -(-self.matches.max() // scoring.GROUP) * scoring.GROUP

    def match(self, queries, rows):
        """Gallery rows of the matches of the queries i[n]: i32[rows,width], ascending, then -1 padding."""
        matches = np.full((rows, self.width), -1, np.int32)
        run = self.run[queries]
        row = np.repeat(np.arange(len(queries)), run)
        place = np.arange(len(row)) - np.repeat(np.cumsum(run) - run, run)
        entry = self.order[self.low[queries][row] + place]
        other = self.g_label[entry] != self.q_label[queries][row]
        row, entry = row[other], entry[other]
        count = self.matches[queries]
        matches[row, np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)] = entry
        return matches


def _label_arrays(side, count, pid, cam):
    for name, values in (("pids", pid), ("cameras", cam)):
        if len(values) != count:
            raise DataError(f"there are {count} {side} features but {len(values)} {side} {name}")
    return np.asarray(pid), np.asarray(cam)


def _mask(side, count, mask):
    mask = np.ones(count, bool) if mask is None else np.asarray(mask, bool)
    if len(mask) != count:
        raise DataError(f"there are {count} {side} features but the {side} mask has {len(mask)} entries")
    return mask


def blocks(labels, gallery, most, entry_bytes=4):
    """Blocks of queries as row numbers i[n], and S, the rows of a block's buffer.

    Queries of a like number of matches come together, so that padding is small; masked ones are left out.
    """
    queries = np.flatnonzero(labels.q_mask)
    queries = queries[np.argsort(labels.matches[queries], kind="stable")]
    most = max(1, min(most, int(_SCORE_BYTES // (entry_bytes * gallery))))
    count = -(-len(queries) // most)
    size = -(-len(queries) // count)
    return [queries[i : i + size] for i in range(0, len(queries), size)], size


def _search(scores, labels, topk, max_rank, block):
    """Retrieval of all queries."""
    figures = _Figures(len(labels.q_pid), max(topk, 1))
    parts, size = blocks(labels, len(labels.g_pid), block)
    rows, waiting = scoring.buffer(size, len(labels.g_pid), scores.dtype), None
    for queries in parts:
        rows = scores.fill(rows, queries)
        groups = -(-int(labels.matches[queries].max()) // scoring.GROUP)
        rows, *measured = scoring.measure(rows, labels.match(queries, size), groups, topk=max(topk, 1))
        if waiting is not None:  # the last block's, while the device is busy with this one
            figures.add(*waiting)
        waiting = queries, labels.matches[queries], measured
    figures.add(*waiting)
    return _summary(figures, scores, labels, topk, max_rank)


class _Figures:
    """Figures of every query, filled block by block."""

    def __init__(self, queries, topk):
        self.first_hit = np.full(queries, -1, np.int32)
        self.ap, self.ap_trapezoid, self.inp = (np.full(queries, np.nan) for _ in range(3))
        self.top_index = np.full((queries, topk), -1, np.int32)
        self.top_score = np.full((queries, topk), -np.inf, np.float32)

    def add(self, queries, matches, measured):
        """Results of `scoring.measure` for a block of queries with so many matches."""
        ranks, top_index, top_score = (np.asarray(x)[: len(queries)] for x in measured)
        self.top_index[queries], self.top_score[queries] = top_index, top_score
        some = np.flatnonzero(matches)
        queries, matches, ranks = queries[some], matches[some], ranks[some]
        columns = np.arange(ranks.shape[1])
        used = columns < matches[:, None]
        ranks = np.sort(np.where(used, ranks, _ABSENT), axis=1)
        at = (columns + 1) / (ranks + 1.0)  # precision at the match; padding gives less than 1e-5
        just_before = np.where(ranks > 0, columns / np.maximum(ranks, 1), 1)
        self.first_hit[queries] = ranks[:, 0]
        self.ap[queries] = at.sum(1, where=used) / matches
        self.ap_trapezoid[queries] = (at + just_before).sum(1, where=used) / (2 * matches)
        self.inp[queries] = matches / (ranks[np.arange(len(ranks)), matches - 1] + 1.0)


def _summary(figures, scores, labels, topk, max_rank):
    """Retrieval from finished figures."""
    valid = figures.first_hit >= 0
    hits = np.bincount(np.minimum(figures.first_hit[valid], max_rank), minlength=max_rank + 1)
    best = figures.top_index[valid, 0]
    return Retrieval(
        cmc=hits[:max_rank].cumsum() / valid.sum(),
        mAP=float(figures.ap[valid].mean()),
        mINP=float(figures.inp[valid].mean()),
        ap=figures.ap,
        inp=figures.inp,
        valid=valid,
        first_hit=figures.first_hit,
        top_index=figures.top_index[:, :topk],
        top_score=scores.shown(figures.top_score[:, :topk]),
        breakdown=_breakdown(
            labels.g_pid[best] == labels.q_pid[valid], labels.g_cam[best] == labels.q_cam[valid]
        )
        | {"chance_prop": 100 / len(np.unique(labels.g_cam[labels.g_keep]))},
        mAP_trapezoid=float(figures.ap_trapezoid[valid].mean()),
        ap_trapezoid=figures.ap_trapezoid,
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
