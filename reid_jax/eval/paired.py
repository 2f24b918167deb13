"""How sure a difference of two nets is: paired by query, with an interval over test people and seeds.

Two nets are tested on the same queries. Queries of one person are no independent draws and neither are runs
of one training seed, so people and seeds are what is drawn again: in every replicate both, each with
replacement, and all queries of a drawn person under a drawn seed count (Owen, The pigeonhole bootstrap,
2007). An interval is that of 2.5 to 97.5 % of the replicates.
"""

import os
from typing import NamedTuple

import numpy as np

from reid_jax.errors import DataError

FIGURES = ("mAP", "rank1", "other_id_same_cam", "prop")
KINDS = ("same_id", "other_id_same_cam", "other_id_other_cam")  # of first hits, by number
REPLICATES = 2000


class Queries(NamedTuple):
    """What one net made of each query."""

    path: np.ndarray  # str[Q]
    pid: np.ndarray  # i[Q]
    ap: np.ndarray  # f[Q], NaN without a match
    kind: np.ndarray  # i[Q], number of KINDS, -1 without a match

    @classmethod
    def of(cls, retrieval, path, q_pid, q_cam, g_pid, g_cam):
        """Of a ranking.Retrieval and the labels it was made with."""
        best = retrieval.top_index[:, 0]
        other = np.where(g_cam[best] == q_cam, 1, 2)
        kind = np.where(retrieval.first_hit == 0, 0, other)
        return cls(path, q_pid, retrieval.ap, np.where(retrieval.valid, kind, -1))


class Difference(NamedTuple):
    """One figure of a net minus another's, in percent."""

    mean: float
    low: float
    high: float
    ahead: int  # seeds whose own difference is above zero
    seeds: int
    people: int

    @property
    def holds_zero(self):
        """Whether the interval says nothing about the sign."""
        return self.low <= 0 <= self.high

    def __str__(self):
        text = f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"
        ahead = f", ahead in {self.ahead} of {self.seeds}" if self.seeds > 1 else ""
        return f"{text}{ahead}{'; holds zero' if self.holds_zero else ''}"


def differences(ours, theirs, replicates=REPLICATES, seed=0):
    """{figure of FIGURES: Difference} of lists of Queries, one for each training seed, in the same order.

    Seeds whose queries are the same share the drawn people; otherwise each has people of its own. seed: of
    the draws. DataError when the two sides do not have the same queries.
    """
    sides = [_by_person(a, b) for a, b in zip(ours, theirs, strict=True)]
    weights = _weights([len(people) for people, _ in sides], _shared(ours), replicates, seed)
    return {
        name: _difference(*_of_figure(sides, i), *weights, len(sides[0][0])) for i, name in enumerate(FIGURES)
    }


def _shared(runs):
    return all(_same(q, runs[0]) for q in runs)


def _same(a, b):
    """Whether two Queries are of the same queries; a set that is joined with others lies in a folder more."""
    return np.array_equal(a.pid, b.pid) and _inside(a.path) == _inside(b.path)


def _inside(paths):
    """Paths without the folders that all of them share."""
    shared = os.path.commonpath([os.path.dirname(path) for path in paths]) if len(paths) else ""
    return [str(path)[len(shared) :].lstrip("/") for path in paths]


def _by_person(a, b):
    """(pids [P], sums f[side, figure, numerator or denominator, P]) of two Queries of the same queries."""
    if not _same(a, b):
        raise DataError("differences are paired by query: the two sides were tested on other queries")
    pids, person = np.unique(a.pid, return_inverse=True)
    sums = [[[np.bincount(person, v, len(pids)) for v in pair] for pair in _terms(q)] for q in (a, b)]
    return pids, np.array(sums)


def _terms(queries):
    """[(numerator, denominator)] of every figure, f[Q] each."""
    valid = (queries.kind >= 0).astype(float)
    same_camera, wrong = (queries.kind == 1).astype(float), (queries.kind > 0).astype(float)
    right = (queries.kind == 0).astype(float)
    return [(np.nan_to_num(queries.ap), valid), (right, valid), (same_camera, valid), (same_camera, wrong)]


def _weights(counts, shared, replicates, seed):
    """(how often each person of each seed is drawn [i[B,P]], how often each seed i[B,S])."""
    rng, seeds = np.random.default_rng(seed), len(counts)

    def drawn(count):
        return rng.multinomial(count, np.full(count, 1 / count), replicates)

    people = [drawn(counts[0])] * seeds if shared else [drawn(count) for count in counts]
    return people, drawn(seeds)


def _of_figure(sides, figure):
    """(ours, theirs): for every seed the sums f[numerator or denominator, P] of a figure."""
    return [[sums[side, figure] for _, sums in sides] for side in (0, 1)]


def _ratio(sums, weights):
    """Percent f[...,B] of sums f[2,P] under weights [B,P]; 0 without anything below the line."""
    above, below = sums @ weights.T
    return 100 * np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _difference(ours, theirs, people, seeds, count):
    once = [np.ones((1, x.shape[1])) for x in people]
    point = np.array([_ratio(a, w) - _ratio(b, w) for a, b, w in zip(ours, theirs, once, strict=True)])[:, 0]
    gaps = np.array([_ratio(a, w) - _ratio(b, w) for a, b, w in zip(ours, theirs, people, strict=True)])
    drawn = (seeds.T * gaps).sum(0) / len(people)
    low, high = np.quantile(drawn, (0.025, 0.975))
    mean = float(point.mean())
    return Difference(mean, float(low), float(high), int((point > 0).sum()), len(people), count)


# ---- on disk
def arrays(nets):
    """{name: array} to store, of {net: Queries} with the same queries."""
    first = next(iter(nets.values()))
    stored = {"path": first.path, "pid": first.pid}
    for net, queries in nets.items():
        stored |= {f"{net}/ap": queries.ap, f"{net}/kind": queries.kind.astype(np.int8)}
    return stored


def read(path, net):
    """Queries of a net from a file of `arrays`; None when there is none or it does not have the net."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = ("path", "pid", f"{net}/ap", f"{net}/kind")
            queries = Queries(*(stored[name] for name in names))
    except Exception:  # damaged bytes make zipfile and numpy fail in many ways
        return None
    right = all(isinstance(x, np.ndarray) and x.shape == queries.path.shape and x.ndim == 1 for x in queries)
    return queries if right else None
