"""Single-shot retrieval (CUHK03, VIPeR, CAVIAR, MLR sets): one random gallery image of each identity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import cross_modal, ranking, scoring

PROTOCOLS = ("market", "all-pairs", "single-shot", "single-gallery", *cross_modal.CAMERAS)
DRAWS = ("query", "trial")
SINGLE = {"single-shot": "query", "single-gallery": "trial"}  # protocols that draw a gallery, and how
PERSONS = tuple(cross_modal.CAMERAS)  # protocols that draw galleries by cameras and count persons
TRIALS = {"single-shot": 100, "single-gallery": 10}  # by custom


@dataclasses.dataclass(frozen=True)
class SingleShot:
    """Result of `single_shot`: means over trials and over the queries with a match, fractions."""

    cmc: np.ndarray  # f64[max_rank], cmc[r - 1]: share of queries with their match among the first r
    cmc_std: np.ndarray  # f64[max_rank], its standard deviation over trials (population)
    mAP: float  # mean of 1 / rank of the one match
    ap: np.ndarray  # f64[Q], mean over a query's trials, NaN without a match in any
    valid: np.ndarray  # bool[Q], the query had a match in a trial
    trials: int

    def figures(self):
        """Figures in percent: rank1, rank5, rank10, rank20 (as far as max_rank goes) and mAP."""
        ranks = {f"rank{r}": 100 * float(self.cmc[r - 1]) for r in (1, 5, 10, 20) if r <= len(self.cmc)}
        return {**ranks, "mAP": 100 * self.mAP}


def single_shot(
    q_feat,
    g_feat,
    q_pid,
    g_pid,
    q_cam,
    g_cam,
    *,
    distance="cosine",
    trials=100,
    seed=0,
    draw="query",
    max_rank=50,
    camera_filter=True,
    q_mask=None,
    g_mask=None,
    block=256,
) -> SingleShot:
    """Ranks a gallery of one random image of each identity, `trials` times.

    Arguments as `reid_jax.eval.ranking.rank`; gallery images of pid 0 are persons of their own (distractors,
    always there) unless a query has pid 0.
    draw: "query" draws anew for every query, from the entries kept for it (DI-REID, CUHK03 in torchreid);
    "trial" draws one gallery for all queries of a trial (VIPeR, GRID): a query whose match was drawn from
    its own camera is left out of that trial.
    Results depend on seed, trials and the data alone, not on `block`.
    Raises DataError as `rank`, ConfigError for a wrong distance, draw or trials.
    """
    scoring.check_distance(distance)
    choice("draw", draw, DRAWS)
    if trials < 1:
        raise ConfigError(f"single-shot retrieval needs at least one trial, got trials={trials}")
    scores, labels = ranking.problem(
        q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, distance, camera_filter, q_mask, g_mask
    )
    order, first, count, person = _persons(labels)
    ranks = np.full((trials, len(labels.q_pid)), -1, np.int32)
    # Beside a score row, a query needs about four numbers for every person.
    parts, size = ranking.blocks(
        labels, len(labels.g_pid), block, 4 * (1 + 4 * len(first) / len(labels.g_pid))
    )
    rows = scoring.buffer(size, len(labels.g_pid), scores.dtype)
    keys = jax.random.split(jax.random.key(seed), trials)
    for queries in parts:
        rows = scores.fill(rows, queries)
        number = np.pad(queries, (0, size - len(queries)), mode="edge").astype(np.int32)
        rows, before = _trials(
            rows, keys, number, person[number], labels.match(queries, size), labels.matches[number],
            order, first, count, each_query=draw == "query",
        )  # fmt: skip
        ranks[:, queries] = np.asarray(before)[:, : len(queries)]
    return _summary(ranks, max_rank)


def _persons(labels):
    """The gallery's persons: kept rows in their order i32[N], first and count i32[K]; each query's i32[Q].

    A query's person is -1 when the gallery does not hold it.
    """
    pid = labels.g_pid[labels.order]
    if 0 in labels.q_pid[labels.q_mask]:
        new = np.append(True, pid[1:] != pid[:-1])
    else:
        new = np.append(True, (pid[1:] != pid[:-1]) | (pid[1:] == 0))
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(pid)))
    person = np.where(labels.run > 0, np.searchsorted(first, labels.low, side="right") - 1, -1)
    return labels.order, first.astype(np.int32), count.astype(np.int32), person.astype(np.int32)


def _trials_of_block(rows, keys, number, person, match, matches, order, first, count, *, each_query):
    """Entries before the match in every trial i32[trials,S], -1 without one, and the rows.

    rows f32[S,W] scores, number i[S] of the queries, person i32[S], match i32[S,P], matches i[S];
    order, first, count: see `_persons`.
    """
    column = jnp.arange(len(first), dtype=jnp.int32)

    def each(key):
        """One image of every person i32[S,K] and the match i32[S] among them, drawn for each query."""
        keys = jax.vmap(lambda n: jax.random.split(jax.random.fold_in(key, n)))(number)
        place = jax.vmap(lambda k: jax.random.randint(k, count.shape, 0, count, jnp.int32))(keys[:, 0])
        which = jax.vmap(lambda k, n: jax.random.randint(k, (), 0, n, jnp.int32))(
            keys[:, 1], jnp.maximum(matches, 1)
        )
        return order[first + place], jnp.take_along_axis(match, which[:, None], axis=1)

    def shared(key):
        """The same drawn once for all queries."""
        drawn = order[first + jax.random.randint(key, count.shape, 0, count, jnp.int32)]
        drawn = jnp.broadcast_to(drawn, (len(rows), len(first)))
        return drawn, jnp.take_along_axis(drawn, jnp.maximum(person, 0)[:, None], axis=1)

    def trial(key):
        drawn, hit = each(key) if each_query else shared(key)
        score = jnp.take_along_axis(rows, drawn, axis=1)
        hit_score = jnp.take_along_axis(rows, jnp.maximum(hit, 0), axis=1)
        nearer = scoring.before(score, drawn, hit_score, hit) & (column != person[:, None])
        valid = (matches > 0) & (hit_score[:, 0] > -jnp.inf)
        return jnp.where(valid, jnp.sum(nearer, axis=1, dtype=jnp.int32), -1)

    return rows, lax.map(trial, keys)


_trials = jax.jit(_trials_of_block, donate_argnums=0, static_argnames="each_query")


def _summary(ranks, max_rank):
    """SingleShot from ranks i32[trials,Q], -1 without a match."""
    matched = ranks >= 0
    used = matched.any(axis=1)  # trials; a drawn gallery may leave no query a match
    if not used.any():
        raise DataError(
            "no query has a match in any trial: every drawn image of a query's identity is of the query's "
            "own camera; use more trials, draw='query', or check the cameras of query and gallery"
        )
    ranks, matched = ranks[used], matched[used]
    trial = np.nonzero(matched)[0]
    hits = np.zeros((len(ranks), max_rank + 1))
    np.add.at(hits, (trial, np.minimum(ranks[matched], max_rank)), 1)
    cmc = hits[:, :max_rank].cumsum(axis=1) / matched.sum(axis=1, keepdims=True)
    precision = np.where(matched, 1 / (ranks + 1.0 + ~matched), 0)
    seen, valid = matched.sum(axis=0), matched.any(axis=0)
    return SingleShot(
        cmc=cmc.mean(axis=0),
        cmc_std=cmc.std(axis=0),
        mAP=float((precision.sum(axis=1) / matched.sum(axis=1)).mean()),
        ap=np.where(valid, precision.sum(axis=0) / np.maximum(seen, 1), np.nan),
        valid=valid,
        trials=len(ranks),
    )
