"""From which similarity on a hit is to be believed: thresholds for verification and for open sets.

Pairs are those of the Market-1501 rule: a person's pictures of the query's own camera are left out, so that
those of one person are of two cameras. NumPy only, block by block: memory grows with the gallery.
"""

from typing import NamedTuple

import numpy as np

from reid_jax.errors import DataError

FPIR = (0.5, 0.1, 0.05, 0.01)  # false positive identification rates
FMR = (1e-2, 1e-3, 1e-4)  # false match rates
EVENTS = 10  # a rate with fewer events behind it is left out
BINS = 1 << 16
_BLOCK = 256


class Searches(NamedTuple):
    """What every query gave."""

    first: np.ndarray  # f32[Q], similarity of the first hit; -inf without one
    right: np.ndarray  # bool[Q], it shows the query's person
    mated: np.ndarray  # bool[Q], somebody of the gallery is the query's person
    stranger: np.ndarray  # f32[Q], similarity of the most similar other person; -inf without one
    same: np.ndarray  # i64[BINS], pairs of one person by similarity, -1 to 1
    other: np.ndarray  # i64[BINS], pairs of two


def search(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam):
    """Searches of every query f[Q,D] in a gallery f[G,D]; pids and cameras i[Q], i[G], pid -1: junk.

    Raises DataError when a side is empty or holds nobody, or features are not finite.
    """
    q_feat, g_feat = (_unit(side, f) for side, f in (("query", q_feat), ("gallery", g_feat)))
    q_known, g_known = np.asarray(q_pid) != -1, np.asarray(g_pid) != -1
    if not q_known.any() or not g_known.any():
        raise DataError("thresholds need queries and a gallery of known people; there are none")
    q_feat, q_pid, q_cam = (np.asarray(x)[q_known] for x in (q_feat, q_pid, q_cam))
    g_feat, g_pid, g_cam = (np.asarray(x)[g_known] for x in (g_feat, g_pid, g_cam))
    columns, same, other = [], np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for start in range(0, len(q_feat), _BLOCK):
        part = slice(start, start + _BLOCK)
        score = np.clip(q_feat[part] @ g_feat.T, -1, 1)
        alike = q_pid[part, None] == g_pid
        valid = ~(alike & (q_cam[part, None] == g_cam))
        columns.append(_of_block(score, alike, valid))
        place = np.minimum((score + 1) * (BINS / 2), BINS - 1).astype(np.int32)
        same += np.bincount(place[alike & valid], minlength=BINS)
        other += np.bincount(place[~alike], minlength=BINS)
    return Searches(*(np.concatenate(c) for c in zip(*columns, strict=True)), same, other)


def _of_block(score, alike, valid):
    seen = np.where(valid, score, -np.inf)
    best = seen.argmax(1)
    rows = np.arange(len(score))
    return seen[rows, best], alike[rows, best], (alike & valid).any(1), np.where(alike, -np.inf, score).max(1)


def _unit(side, features):
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not features.size:
        raise DataError(f"the {side} features have shape {features.shape}; at least one row [N,D] is needed")
    if not np.isfinite(features).all():
        raise DataError(f"some {side} features are not finite")
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def open_set(searches, rates=FPIR):
    """[[rate, similarity, hit share], ...]: false positive identification rates and what they leave.

    rate: share of the queries whose person is not in the gallery that still get a hit of at least the
    similarity (each query against all other people). hit share: of the queries with a match, those whose
    first hit is right and at least that similar. Rates with fewer than EVENTS events are left out.
    """
    strangers = np.sort(searches.stranger[np.isfinite(searches.stranger)])[::-1]
    points = []
    for rate in rates:
        allowed = int(np.floor(rate * len(strangers) + 1e-9))
        if allowed < EVENTS or not searches.mated.any():
            continue
        similarity = _above(strangers, allowed)
        hits = searches.right & (searches.first >= similarity) & searches.mated
        points.append([rate, float(similarity), float(hits.sum() / searches.mated.sum())])
    return points


def _above(descending, allowed):
    """A similarity that at most `allowed` of the descending ones reach: midway to the next, but for ties."""
    if allowed >= len(descending):
        return descending[-1]
    below = descending[allowed]
    return max((descending[allowed - 1] + below) / 2, np.nextafter(below, np.float32(np.inf)))


def verification(searches, rates=FMR):
    """[[rate, similarity, hit share], ...]: share of the pairs of two people, and of one, that are at least
    so similar. Rates with fewer than EVENTS events are left out.
    """
    total, points = int(searches.other.sum()), []
    above = np.cumsum(searches.other[::-1])[::-1]  # pairs of two people from this bin on
    hits = np.cumsum(searches.same[::-1])[::-1]
    for rate in rates:
        if rate * total < EVENTS or not hits[0]:
            continue
        place = int(np.argmax(np.append(above, 0) <= rate * total))
        share = hits[place] / hits[0] if place < BINS else 0.0
        points.append([rate, float(place * 2 / BINS - 1), float(share)])
    return points


def thresholds(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam):
    """{"fpir": see `open_set`, "fmr": see `verification`, "queries": Q, "gallery": G, "people": P}."""
    searches = search(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam)
    counts = {"queries": len(q_pid), "gallery": len(g_pid), "people": len(np.unique(q_pid))}
    return {"fpir": open_set(searches), "fmr": verification(searches), **counts}


def of_features(features):
    """`thresholds` of a store.FeatureSet with query and gallery; {"fpir": [], "fmr": []} without them."""
    query, gallery = features.of("query"), features.of("gallery")
    sides = (query.feature, gallery.feature, query.pid, gallery.pid, query.camid, gallery.camid)
    try:
        return thresholds(*sides)
    except DataError:
        return {"fpir": [], "fmr": []}
