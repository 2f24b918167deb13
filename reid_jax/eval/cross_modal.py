"""Visible against infrared: SYSU-MM01's galleries and its ranking, in which persons count, not images.

As the published code of Cross-Modal-Re-ID-baseline does it. A gallery is drawn for each trial, one image of
each identity and camera. Images of cameras that stand where the query's does are left out; the ranked list
keeps every person at the best of its images, and rank k counts persons.
"""

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import DataError
from reid_jax.eval import ranking, scoring

SAME_PLACE = ((3, 2),)  # (camera of the query, camera of the gallery) of SYSU-MM01
CAMERAS = {"sysu-all": (1, 2, 4, 5), "sysu-indoor": (1, 2)}  # protocols: cameras of the gallery
TRIALS = 10


@dataclasses.dataclass(frozen=True)
class Persons:
    """Result of `rank` or `trials`; fractions, over the queries with a match."""

    cmc: np.ndarray  # f64[max_rank], cmc[k - 1]: share of queries whose person is among the first k persons
    mAP: float  # over images
    mINP: float  # over images
    ap: np.ndarray  # f64[Q], NaN without a match
    valid: np.ndarray  # bool[Q], the query has a match
    trials: int = 1

    def figures(self):
        """Figures in percent: rank1, rank5, rank10, rank20 (as far as max_rank goes), mAP and mINP."""
        ranks = {f"rank{r}": 100 * float(self.cmc[r - 1]) for r in (1, 5, 10, 20) if r <= len(self.cmc)}
        return {**ranks, "mAP": 100 * self.mAP, "mINP": 100 * self.mINP}


def draw(pid, cam, path, cameras, trial):
    """i64[n]: gallery rows of a trial, one of each identity and camera that there is.

    pid, cam i[N], path str[N]. Identities ascending, then cameras ascending, a choice of Python's
    random.Random(trial) among the sorted paths of each.
    """
    source, rows = random.Random(trial), {}
    for row in np.lexsort((path, cam, pid)):
        if cam[row] in cameras:
            rows.setdefault((pid[row], cam[row]), []).append(row)
    return np.array([source.choice(group) for group in rows.values()], np.int64)


def rank(
    q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, *, distance="cosine", max_rank=20, same_place=SAME_PLACE
):
    """Persons of queries against one gallery.

    q_feat f[Q,D], g_feat f[G,D], pids and cameras i[Q], i[G], numbered as in same_place, pairs of a query's
    and a gallery's camera; images of the latter, whoever they show, are left out for the former's queries.
    DataError when no query has a match.
    """
    q_pid, g_pid, q_cam, g_cam = (np.asarray(x) for x in (q_pid, g_pid, q_cam, g_cam))
    place = np.full(len(q_pid), -1)
    ap, inp = np.full(len(q_pid), np.nan), np.full(len(q_pid), np.nan)
    for mask, keep in views(q_cam, g_cam, same_place):
        if not np.isin(q_pid[mask], g_pid[keep]).any():
            continue
        options = dict(distance=distance, camera_filter=False, q_mask=mask, g_mask=keep)
        retrieval = ranking.rank(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, **options)
        ap, inp = np.where(mask, retrieval.ap, ap), np.where(mask, retrieval.inp, inp)
        place[mask] = places(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, **options)[mask]
    valid = np.isfinite(ap)
    if not valid.any():
        raise DataError("no query has a match in the gallery: check pids and camids of query and gallery")
    hits = np.bincount(np.minimum(place[valid], max_rank), minlength=max_rank + 1)
    cmc = hits[:max_rank].cumsum() / valid.sum()
    return Persons(cmc, float(ap[valid].mean()), float(inp[valid].mean()), ap, valid)


def views(q_cam, g_cam, same_place):
    """(bool[Q], bool[G]) of queries that see the same gallery, and what they see."""
    hidden = {c: frozenset(g for q, g in same_place if q == c) for c in np.unique(q_cam)}
    for gone in dict.fromkeys(hidden.values()):
        cameras = [c for c in hidden if hidden[c] == gone]
        yield np.isin(q_cam, cameras), ~np.isin(g_cam, list(gone))


def places(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, *, distance, camera_filter, q_mask, g_mask):
    """i32[Q]: persons whose best image comes before the best one of the query's person."""
    scores, labels = ranking.problem(
        q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, distance, camera_filter, q_mask, g_mask
    )
    people, person = np.unique(labels.g_pid, return_inverse=True)
    query_person = np.minimum(np.searchsorted(people, labels.q_pid), len(people) - 1)
    before = np.zeros(len(labels.q_pid), np.int32)
    parts, size = ranking.blocks(labels, len(labels.g_pid), 256, 8)
    rows = scoring.buffer(size, len(labels.g_pid), scores.dtype)
    for queries in parts:
        rows = scores.fill(rows, queries)
        whose = np.pad(query_person[queries], (0, size - len(queries)), mode="edge")
        counts = _before(rows, person.ravel(), whose, people=len(people))
        before[queries] = np.asarray(counts)[: len(queries)]
    return before


@functools.partial(jax.jit, static_argnames="people")
def _before(rows, person, query_person, *, people):
    """Persons before the own one, i32[S], of score rows f[S,W]; person i[G] of each column in use."""
    best = jax.ops.segment_max(rows[:, : len(person)].T, person, num_segments=people)
    return jnp.sum(best > jnp.take_along_axis(best, query_person[None], axis=0), axis=0, dtype=jnp.int32)


def trials(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, path, *, protocol, count=TRIALS, **options):
    """Persons, means over the drawn galleries of trials 0 to count - 1.

    Arguments as `rank`, g_feat being all gallery images, path str[G] their paths.
    """
    results = []
    for trial in range(count):
        rows = draw(g_pid, g_cam, path, CAMERAS[protocol], trial)
        drawn = (x[rows] for x in (g_feat, g_pid, g_cam))
        feature, pid, cam = drawn
        results.append(rank(q_feat, feature, q_pid, pid, q_cam, cam, **options))
    with np.errstate(invalid="ignore"):
        ap = np.nansum([f.ap for f in results], 0) / np.sum([f.valid for f in results], 0)
    means = (float(np.mean([getattr(f, name) for f in results])) for name in ("mAP", "mINP"))
    return Persons(np.mean([f.cmc for f in results], 0), *means, ap, np.isfinite(ap), count)
