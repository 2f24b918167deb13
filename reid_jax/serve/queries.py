"""What a gallery is asked: filters, the first hits of a query, their order; a mixin of `serve.gallery`."""

import dataclasses
import datetime
import hashlib
import json

import numpy as np

from reid_jax.errors import ConfigError, DataError, PictureError
from reid_jax.serve import ann as index_file
from reid_jax.serve import arguments, search

RERANKED = 200  # first hits that re-ranking orders anew
GROUPS = ("person", "tracklet")


@dataclasses.dataclass(frozen=True)
class Hit:
    """One entry that a search gives."""

    id: int
    score: float  # cosine similarity
    unknown: bool  # below the similarity of the wanted false positive rate
    person: str | None
    camera: str | None
    time: datetime.datetime | None  # UTC
    tracklet: str | None
    source: str | None


class Queries:
    """Mixin of the Gallery: search, and what it needs of rows, file and model."""

    def search(
        self, query, k=10, *, camera=None, not_camera=None, person=None, since=None, until=None, fpir=None,
        rerank=False, expand=0, group=None,
    ):  # fmt: skip
        """The k entries most like the query, best first: a list of Hit; equal scores by id.

        query: a picture, several of one person (their unit mean), features f32[D] or f32[K,D], or the id of
        an entry, which is left out. camera, not_camera, person: names or lists of them. since, until: as
        `time` of add. fpir: marks hits as unknown below the similarity of this false positive identification
        rate. rerank: the first 200 ordered by k-reciprocal neighbours. expand: the query is averaged with
        its first so many hits, and searched again. group: "person" or "tracklet", the best hit of each.
        """
        filters = self._filters(camera, not_camera, person, since, until)
        arguments.at_least_one("k", k)
        if group is not None:
            arguments.choice("group", group, GROUPS)
        bar = self.threshold(fpir) if fpir is not None else -np.inf
        rows = self._filled()
        feature, without, mark = self._query(query)
        passing = rows.passing(**filters, without=without)
        order, score = self._ordered(feature, rows, passing, k, rerank, expand, group)
        hits = self._hits(rows, order, score, bar)
        if self.log_searches:
            self._write_search(filters, {"k": k, "fpir": fpir, "hits": len(hits), "query": mark})
        return hits

    def nearest(self, features, k=10, **filters):
        """Ids i64[Q,k'] and scores f32[Q,k'] of features f32[Q,D], all at once; filters as of `search`."""
        arguments.at_least_one("k", k)
        rows = self._filled()
        passing = rows.passing(**self._filters(**filters))
        hits = self._nearest(self._checked(features), rows, passing, k)
        if not hits:
            return np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
        return rows.id[np.stack([i for i, _ in hits])], np.stack([s for _, s in hits])

    def _filled(self):
        rows = self.rows()
        if not len(rows):
            raise DataError(f"the gallery {self.path} is empty; add pictures first")
        return rows

    def _filters(self, camera=None, not_camera=None, person=None, since=None, until=None):
        named = {"camera": camera, "not_camera": not_camera, "person": person}
        filters = {
            n: arguments.names(n, arguments.several(v)) if v is not None else None for n, v in named.items()
        }
        return filters | {
            "since": arguments.moment(since, "since"),
            "until": arguments.moment(until, "until"),
        }

    def _query(self, query):
        """(unit feature f32[D], ids to leave out, SHA-256 of what was asked)."""
        if isinstance(query, int | np.integer) and not isinstance(query, bool):
            return self.feature(query), [int(query)], hashlib.sha256(b"entry %d" % query).hexdigest()
        if arguments.is_features(query):
            features = self._checked(np.atleast_2d(query))
            mark = hashlib.sha256(features.tobytes()).hexdigest()
        else:
            pictures = arguments.listed(query)
            if not pictures:
                raise DataError("there is no picture to search for")
            features, marks = self._embedded(pictures, "stop"), [arguments.digest(p) or "" for p in pictures]
            mark = marks[0] if len(marks) == 1 else hashlib.sha256("".join(marks).encode()).hexdigest()
        mean = search.unit(features.mean(axis=0))
        if not np.isfinite(mean).all() or not mean.any():
            raise DataError("the pictures of the query have no common direction; search for one of them")
        return mean, (), mark

    def feature(self, key):
        """The feature f32[D] of an entry; DataError where there is none of this id."""
        rows = self.rows()
        place = int(np.searchsorted(rows.id, key))
        if place == len(rows) or rows.id[place] != key:
            raise DataError(f"the gallery has no entry {key}")
        return search.unit(rows.vector[place])

    def _nearest(self, features, rows, passing, k):
        """As search.nearest, by the index where that is worth it."""
        if self.ann == "auto":
            index = self._current_index(rows)
            if index is not None and index_file.worth_it(len(rows), passing):
                hits = index.nearest(features, rows.vector, k, passing)
                if all(len(order) == k for order, _ in hits):  # a graph may not reach enough that pass
                    return hits
        return search.nearest(features, rows.vector, k, passing)

    def _ordered(self, feature, rows, passing, k, rerank, expand, group):
        """(rows, scores) of the hits, in order."""
        need = max(k, RERANKED if rerank else 0)
        if expand:
            arguments.at_least_one("expand", expand)
            ((near, _),) = self._nearest(feature[None], rows, passing, expand)
            feature = search.unit(feature + rows.vector[near].sum(axis=0))
        while True:
            ((order, score),) = self._nearest(feature[None], rows, passing, need)
            enough = len(order) < need  # all that pass
            if rerank:
                order, score = _reranked(feature, rows.vector, order, score)
            if group:
                keep = _first_of_each(getattr(rows, group)[order])
                order, score, total = order[keep], score[keep], len(order)
                if len(order) < k and not enough:
                    need = 4 * total
                    continue
            return order[:k], score[:k]

    def _hits(self, rows, order, score, bar):
        sources = self._sources(rows.id[order])
        return [
            Hit(
                int(rows.id[i]), float(s), bool(s < bar), rows.name("person", i), rows.name("camera", i),
                arguments.utc(rows.time[i]), rows.name("tracklet", i), sources.get(int(rows.id[i])),
            )
            for i, s in zip(order, score, strict=True)
        ]  # fmt: skip

    def _sources(self, ids):
        with self.file.reading() as connection:
            query = "SELECT id, source FROM entry WHERE id IN (SELECT value FROM json_each(?))"
            return dict(connection.execute(query, (json.dumps([int(i) for i in ids]),)))

    def _write_search(self, filters, detail):
        """A row of the audit; of a person's filter that it was there, not the name."""
        shown = {n: v for n, v in filters.items() if v and n != "person"}
        if filters["person"]:
            shown["person"] = len(filters["person"])
        writer = self.file if self.file.mode == "a" else self._opened("a", self.file.wait)
        with writer.writing() as connection:
            writer.write_audit(connection, self.actor, "search", {**detail, "filters": shown})
        if writer is not self.file:
            writer.truncate_log(wait=0)  # this one's reader is open still, and may not do it
            writer.close()

    def source(self, key):
        """(source, box) of an entry, each None where unknown; DataError where there is no such entry."""
        (number,) = arguments.whole_ids(key)
        with self.file.reading() as connection:
            row = connection.execute("SELECT source, box FROM entry WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise DataError(f"the gallery has no entry {key}")
        return row[0], json.loads(row[1]) if row[1] else None

    # ---- of arguments
    def _embedded(self, pictures, on_broken, numbers=None, told=None):
        """Unit rows f32[N,D] of pictures; numbers: their places among those to be added, None: of a query."""
        if self.embedder is None:
            raise ConfigError("the gallery was opened without a model; Gallery(path, reid_jax.load(...))")
        if not pictures:
            return np.empty((0, self.dim), np.float32)
        options = {"on_broken": "nan"} if on_broken == "skip" else {}
        try:
            given = _telling(pictures, told) if told else pictures
            features = np.asarray(self.embedder(given, **options), np.float32)
        except PictureError as error:
            if error.index is None:
                raise
            number = error.index if numbers is None else numbers[error.index]
            way = "" if numbers is None else "; on_broken='skip' (--on-broken skip) leaves it out"
            raise PictureError(f"picture {number}: {error.why}{way}", number, error.why) from error
        if features.shape != (len(pictures), self.dim):
            raise DataError(f"the model gave features {features.shape} for {len(pictures)} pictures")
        return features

    def _checked(self, features):
        """Unit rows f32[N,D] of given features; DataError where they are none of this gallery."""
        features = np.asarray(features)
        if features.ndim != 2 or features.dtype.kind != "f" or features.shape[1] != self.dim:
            raise DataError(
                f"features have shape {features.shape} and type {features.dtype}; "
                f"floats [N,{self.dim}] are needed"
            )
        square = np.einsum("nd,nd->n", features, features, dtype=np.float64)
        bad = np.flatnonzero(~(np.isfinite(square) & (square > 0)))
        if len(bad):
            raise DataError(f"feature {bad[0]} is zero or not finite")
        return search.unit(features)


def _telling(pictures, told):
    """The pictures, each told of when the next is asked for."""
    for picture in pictures:
        yield picture
        told(1)


def _first_of_each(codes):
    """Places of the first entry of each group, in order; entries of no group each stand for themselves."""
    single = np.where(codes < 0, -1 - np.arange(len(codes)), codes)
    return np.sort(np.unique(single, return_index=True)[1])


def _reranked(feature, matrix, order, score):
    """The first hits ordered by their k-reciprocal distance (Zhong et al., CVPR 2017); the others follow."""
    first = order[:RERANKED]
    if len(first) < 3:
        return order, score
    from reid_jax.eval import rerank

    k1 = min(20, len(first) - 1)
    distance = rerank.from_features(feature[None], matrix[first], k1=k1, k2=min(6, k1))[0]
    place = np.append(np.argsort(distance, kind="stable"), np.arange(len(first), len(order)))
    return order[place], score[place]
