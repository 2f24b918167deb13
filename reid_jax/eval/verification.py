"""Same person or not: the ROC of a threshold on the similarity, and how similar both sorts of pairs are.

All pairs of a query and a gallery image that the protocol keeps are counted by their similarity, in bins so
narrow that figures are those of the sorted pairs to a few digits. Scores come block by block as for the
ranking, so that memory grows with the number of images, not of pairs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import ranking, scoring

BINS = 1 << 18
RATES = (1e-2, 1e-3, 1e-4)  # false match rates that figures are given for


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Numbers of pairs by similarity (cosine similarity, or minus the Euclidean distance)."""

    low: float  # lower edge of the first bin
    high: float  # upper edge of the last
    same: np.ndarray  # i64[bins], pairs of one person
    other: np.ndarray  # i64[bins], pairs of two

    @property
    def edges(self):
        """f64[bins + 1]"""
        return np.linspace(self.low, self.high, len(self.same) + 1)

    def roc(self):
        """(fpr f64[K], tpr f64[K], threshold f64[K]): shares of pairs of two and of one person above it.

        Thresholds fall from infinity, where both are 0, to the least similar pair, where both are 1; without
        those between which nothing changes.
        """
        counts = np.stack([self.other, self.same])[:, ::-1]
        shares = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
        used = np.flatnonzero(counts.any(axis=0))
        fpr, tpr = (np.append(0.0, s[used]) for s in shares)
        return fpr, tpr, np.append(np.inf, self.edges[:-1][::-1][used])

    @functools.cached_property
    def auc(self):
        """Area under the ROC: the chance that a pair of one person is more similar than one of two."""
        below = np.cumsum(self.other) - self.other / 2  # in one bin: half of them
        return float((self.same * below).sum() / (float(self.same.sum()) * float(self.other.sum())))

    @functools.cached_property
    def eer(self):
        """Equal error rate: where fpr is the share of pairs of one person that are missed."""
        fpr, tpr, _ = self.roc()
        gap = fpr - (1 - tpr)
        i = int(np.argmax(gap >= 0))
        share = gap[i] / (gap[i] - gap[i - 1])
        return float(fpr[i] - share * (fpr[i] - fpr[i - 1]))

    def at(self, rate):
        """(threshold, tpr): the lowest threshold whose false match rate is at most `rate`, and what it finds.

        None where there are fewer than 1 / rate pairs of two persons, which cannot tell, and where more than
        that share of them is as similar as the most similar pair.
        """
        if self.other.sum() * rate < 1:
            return None
        fpr, tpr, threshold = self.roc()
        i = int(np.searchsorted(fpr, rate, side="right")) - 1
        return (float(threshold[i]), float(tpr[i])) if i else None

    def figures(self, rates=RATES):
        """{figure: number}: auc, eer and tpr@RATE in percent, threshold@RATE a similarity; see `at`."""
        figures = {"auc": 100 * self.auc, "eer": 100 * self.eer}
        for rate in rates:
            if (point := self.at(rate)) is not None:
                figures |= {f"tpr@{rate:g}": 100 * point[1], f"threshold@{rate:g}": point[0]}
        return figures

    def curve(self, points=200):
        """{"fpr", "tpr", "threshold"}: lists of at most so many points of the ROC, evenly over log(fpr)."""
        fpr, tpr, threshold = self.roc()
        first = 1 / float(self.other.sum())
        wanted = np.searchsorted(fpr, np.geomspace(first, 1, points) * (1 + 1e-12), side="right") - 1
        rows = np.unique(np.maximum(wanted, 1))
        return {"fpr": fpr[rows].tolist(), "tpr": tpr[rows].tolist(), "threshold": threshold[rows].tolist()}

    def shares(self, bins=80):
        """(edges f64[bins + 1], same f64[bins], other f64[bins]): both distributions, each of sum 1.

        Over the similarities that occur; bins may be fewer.
        """
        used = np.flatnonzero(self.same + self.other)
        width = -(-(used[-1] + 1 - used[0]) // bins)
        starts = np.arange(used[0], used[-1] + 1, width)
        edges = self.edges[np.minimum(np.append(starts, starts[-1] + width), len(self.same))]
        return edges, *(np.add.reduceat(x[: used[-1] + 1], starts) / x.sum() for x in (self.same, self.other))


def check_rates(rates):
    """Raises ConfigError unless these are false match rates between 0 and 1."""
    wrong = [r for r in rates if isinstance(r, str | bool) or not 0 < r < 1]
    if wrong:
        raise ConfigError(
            f"config.eval.false_match_rates has {wrong[0]!r}; rates lie between 0 and 1: (0.01, 0.001), say"
        )


def count(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, *, distance="cosine", camera_filter=True, block=256):
    """Pairs of all queries with the gallery; arguments as in ranking.rank.

    Left out are gallery entries with pid -1, of the query's identity and camera (camera_filter), and queries
    with pid -1. Raises DataError as ranking.rank does, and where there are no pairs of two persons.
    """
    scoring.check_distance(distance)
    sides = (q_feat, g_feat, q_pid, g_pid, q_cam, g_cam)
    scores, labels = ranking.problem(*sides, distance, camera_filter, _known(q_pid), None)
    return _counted(scores, labels, block)


def count_distances(distance, q_pid, g_pid, q_cam, g_cam, *, camera_filter=True, block=256):
    """The same by given distances f32[Q,G] (of re-ranking, say), as ranking.rank_distances takes them."""
    sides = (q_pid, g_pid, q_cam, g_cam)
    labels = ranking.Labels(*sides, *distance.shape, camera_filter, _known(q_pid), None)
    return _counted(scoring.DistanceScores(distance, labels), labels, block)


def _known(pid):
    return np.asarray(pid) != -1


def _counted(scores, labels, block):
    """Pairs of scores, block by block."""
    _, person = np.unique(np.append(labels.q_pid, labels.g_pid), return_inverse=True)
    q_person, g_person = np.split(person.astype(np.int32), [len(labels.q_pid)])
    queries, size = ranking.blocks(labels, len(labels.g_pid), block)
    rows = scoring.buffer(size, len(labels.g_pid), scores.dtype)
    g_person = jnp.asarray(np.pad(g_person, (0, rows.shape[1] - len(g_person)), constant_values=-1))
    low, high = scores.range()
    total = np.zeros((2, BINS), np.int64)
    for part in queries:
        rows = scores.fill(rows, part)
        mine = np.pad(q_person[part], (0, size - len(part)), constant_values=-2)
        rows, counts = _count(rows, scores.squares(part, size), mine, g_person, low, high)
        total += np.asarray(counts)
    if not total[0].any():
        raise DataError("there are no pairs of two persons: the gallery holds the query's person alone")
    return Pairs(low, high, same=total[1], other=total[0])


@functools.partial(jax.jit, donate_argnums=0)
def _count(rows, q_square, q_person, g_person, low, high):
    """(rows, i32[2,BINS]): numbers of pairs of two persons and of one in score rows f[S,W], by similarity.

    q_square: f[S], or None for cosine; q_person i32[S]: -2 for rows that repeat a query.
    """
    similarity = rows if q_square is None else -jnp.sqrt(jnp.maximum(q_square[:, None] - rows, 0))
    place = jnp.clip((similarity - low) * (BINS / (high - low)), 0, BINS - 1).astype(jnp.int32)
    same = q_person[:, None] == g_person
    valid = (rows > -jnp.inf) & (q_person[:, None] >= 0)
    place = jnp.where(valid, place + BINS * same, 2 * BINS)  # the last place is dropped
    return rows, jnp.zeros(2 * BINS, jnp.int32).at[place.ravel()].add(1, mode="drop").reshape(2, BINS)
