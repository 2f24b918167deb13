"""From which similarity on "same person" may be said: thresholds from labelled features, across cameras.

Two questions: of two pictures (false match rate: pairs of two persons above the threshold), and of a search
(false positive identification rate: people who are not in the gallery, whose first hit is above it).
"""

import numpy as np

from reid_jax.errors import DataError

FALSE_MATCH = (1e-2, 1e-3, 1e-4)
FALSE_POSITIVE = (0.5, 0.1, 0.05, 0.01)
LEAST_EVENTS = 10  # false ones at a rate; with fewer the rate says nothing
MOST_QUERIES = 5000  # drawn from the rows, so that the work stays linear in them
_BINS = 1 << 18
_BLOCK = 64  # queries at a time


def thresholds(feature, pid, camid, *, seed=0):
    """{"fmr": [[rate, similarity, hit share], ...], "fpir": [[rate, similarity, hit share], ...], counts}.

    "fmr": of pairs of one person; "fpir": of queries.
    feature f32[N,D] at unit length, pid i[N], camid i[N]. Only pairs of two cameras count. The hit share is
    that of queries with a match whose first hit is right and not below the similarity. Rates of fewer than 10
    false events are left out. DataError where no pair of two persons or of one crosses cameras.
    """
    pid, camid = np.asarray(pid), np.asarray(camid)
    queries = np.arange(len(pid))
    if len(queries) > MOST_QUERIES:
        queries = np.sort(np.random.default_rng(seed).choice(queries, MOST_QUERIES, replace=False))
    pairs, stranger, mate = np.zeros((2, _BINS), np.int64), [], []
    for start in range(0, len(queries), _BLOCK):
        part = queries[start : start + _BLOCK]
        score = feature[part] @ feature.T
        kept, same = camid[part, None] != camid, pid[part, None] == pid
        for side, mask in enumerate((kept & ~same, kept & same)):
            place = np.clip((score[mask] + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64)
            pairs[side] += np.bincount(place, minlength=_BINS)
        stranger.append(np.where(kept & ~same, score, -np.inf).max(axis=1))
        mate.append(np.where(kept & same, score, -np.inf).max(axis=1))
    if not pairs.any(axis=1).all():
        raise DataError(
            "no two pictures of one person, or of two, are from two cameras; name more entries and cameras"
        )
    stranger, mate = np.concatenate(stranger), np.concatenate(mate)
    return {
        "fmr": _pair_points(*pairs),
        "fpir": _search_points(stranger[np.isfinite(stranger)], stranger, mate),
        "queries": len(queries),
        "pairs": [int(n) for n in pairs.sum(axis=1)],
    }


def _pair_points(other, same):
    """[rate, similarity, share of `same` not below it] for each rate; counts i64[bins] from -1 to 1."""
    points = []
    above = np.append(np.cumsum(other[::-1])[::-1], 0)  # pairs from each bin's lower edge on
    found = np.append(np.cumsum(same[::-1])[::-1], 0)
    for rate in FALSE_MATCH:
        if rate * above[0] >= LEAST_EVENTS:
            edge = int(np.argmax(above <= rate * above[0]))
            points.append([rate, float(2 * edge / _BINS - 1), float(found[edge] / found[0])])
    return points


def _search_points(strangers, stranger, mate):
    """[rate, similarity, hit share] for each rate; strangers f32[n]: best scores of other persons."""
    points, falling = [], np.sort(strangers)[::-1]
    matched = np.isfinite(mate)
    for rate in FALSE_POSITIVE:
        events = int(rate * len(falling) * (1 + 1e-9))
        if events >= LEAST_EVENTS:
            bar = np.nextafter(falling[min(events, len(falling) - 1)], np.float32(np.inf))
            hits = matched & (mate > stranger) & (mate >= bar)
            points.append([rate, float(bar), float(hits.sum() / matched.sum())])
    return points
