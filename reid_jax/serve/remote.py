"""A Gallery on a PostgreSQL server (see `postgres`): filters and order are the server's work.

Nothing is held in memory but what the last searches have seen.
"""

import numpy as np

from reid_jax.errors import DataError
from reid_jax.serve import ann, search
from reid_jax.serve import gallery as gallery_module
from reid_jax.serve.postgres import SHOWN, Server, as_array, create
from reid_jax.serve.rows import NO_TIME, Rows


class Remote:
    """The entries of a server with the interface of Rows; the place of an entry is its id."""

    def __init__(self, file):
        self.file, self.seen = file, {}  # {id: (person, camera, time, tracklet)} of the last searches
        self.id = _Column(lambda ids: ids)
        self.time = _Column(lambda key: NO_TIME if self.seen[int(key)][2] is None else self.seen[int(key)][2])
        self.vector = _Column(self._vectors)
        for place, field in ((0, "person"), (1, "camera"), (3, "tracklet")):
            setattr(self, field, _Column(lambda ids, place=place: self._codes(ids, place)))

    def __len__(self):
        with self.file.reading() as connection:
            return connection.execute("SELECT COUNT(*) FROM entry").fetchone()[0]

    def name(self, field, key):
        """The name of an entry, or None."""
        return self.seen[int(key)][{"person": 0, "camera": 1, "tracklet": 3}[field]]

    def counts(self, field):
        """{name: number of entries}, by name."""
        with self.file.reading() as connection:
            query = f"SELECT {field}, COUNT(*) FROM entry WHERE {field} IS NOT NULL GROUP BY {field}"
            return dict(sorted(connection.execute(query)))

    def passing(self, *, camera=None, not_camera=None, person=None, since=None, until=None, without=()):
        """(condition, its values) for SQL; see Rows.passing."""
        parts, values = [], []
        named = (("camera", camera, ""), ("camera", not_camera, "NOT "), ("person", person, ""))
        for field, names, sign in named:
            if names:
                self._check(field, names)
                parts.append(f"{sign}COALESCE({field} = ANY(%s), false)")
                values.append(names)
        for sign, moment in ((">=", since), ("<=", until)):
            if moment is not None:
                parts.append(f"time {sign} %s")
                values.append(moment)
        if len(without):
            parts.append("id <> ALL(%s)")
            values.append(list(without))
        return " AND ".join(parts) or "true", values

    def _check(self, field, names):
        known = self.counts(field)
        if unknown := [n for n in names if n not in known]:
            shown = ", ".join(list(known)[:20]) or "none"
            raise DataError(f"no entry has the {field} {unknown[0]!r}; there are: {shown}")

    def _vectors(self, ids):
        """f32[n,D] of entries i64[n], in their order."""
        with self.file.reading() as connection:
            query = "SELECT id, vector FROM entry WHERE id = ANY(?)"
            rows = dict(connection.execute(query, ([int(i) for i in ids],)))
        return np.stack([as_array(rows[int(i)]) for i in ids])

    def _codes(self, ids, place):
        codes = {}
        names = [self.seen[int(i)][place] for i in ids]
        return np.array([-1 if n is None else codes.setdefault(n, len(codes)) for n in names], np.int64)


class _Column:
    """Something that is asked for by entries' ids."""

    def __init__(self, give):
        self.give = give

    def __getitem__(self, ids):
        return self.give(ids)


class ServerGallery(gallery_module.Gallery):
    """A Gallery on a server; see the module and Gallery."""

    def _made(self, **about):
        create(self._place, **about)

    def _opened(self, mode, wait):
        return Server(self._place, mode, wait)

    def rows(self):
        """The entries (Remote)."""
        self._state = self.file.generation()[0]
        return Remote(self.file)

    def feature(self, key):
        with self.file.reading() as connection:
            row = connection.execute("SELECT vector FROM entry WHERE id = ?", (int(key),)).fetchone()
        if row is None:
            raise DataError(f"the gallery has no entry {key}")
        return search.unit(as_array(row[0]))

    def _nearest(self, features, rows, passing, k):
        approximate = self.ann == "auto" and self._worth_it(rows, passing)
        with self.file.reading() as connection:
            return [self._nearest_one(connection, f, rows, passing, k, approximate) for f in features]

    def _nearest_one(self, connection, feature, rows, passing, k, approximate):
        """(ids, scores) of one feature."""
        where, values = passing
        kind = "halfvec" if self.file.type == np.float16 else "vector"
        inside, query = "entry", f"%s::{kind}"
        if approximate:
            wanted = min(1000, ann.CANDIDATES * k)
            connection.raw.execute(f"SET LOCAL hnsw.ef_search = {max(64, wanted)}")
            inside = f"(SELECT * FROM entry WHERE {where} ORDER BY vector <#> {query} LIMIT {wanted}) near"
            values = [*values, feature]
        else:
            connection.raw.execute("SET LOCAL enable_indexscan = off")  # the order is exact
        text = f"SELECT {SHOWN}, -(vector <#> {query}) FROM {inside}"
        text += ("" if approximate else f" WHERE {where}") + f" ORDER BY vector <#> {query}, id LIMIT %s"
        hits = connection.raw.execute(text, [feature, *values, feature, k], binary=True).fetchall()
        if approximate and len(hits) < k:
            return self._nearest_one(connection, feature, rows, passing, k, False)
        rows.seen |= {row[0]: row[1:5] for row in hits}
        ids = np.array([row[0] for row in hits], np.int64)
        return ids, np.clip(np.array([row[5] for row in hits], np.float32), -1, 1)

    def _worth_it(self, rows, passing):
        """Whether there is an index that is right, and enough entries pass."""
        if float(self.file.get_meta("recall") or 0) < ann.LEAST_RECALL:
            return False
        with self.file.reading() as connection:
            query = f"SELECT COUNT(*) FROM entry WHERE {passing[0]}"
            kept = connection.raw.execute(query, passing[1]).fetchone()[0]
        return kept >= max(ann.LEAST_ROWS, ann.LEAST_SHARE * len(rows))

    def build_index(self):
        """Builds an HNSW index on the server; below LEAST_RECALL it is dropped again. Returns its recall."""
        kind = "halfvec" if self.file.type == np.float16 else "vector"
        rows = self._filled()
        with self.file.writing() as connection:
            connection.execute("DROP INDEX IF EXISTS entry_hnsw")
            connection.execute(f"CREATE INDEX entry_hnsw ON entry USING hnsw (vector {kind}_ip_ops)")
            picked = connection.execute("SELECT vector FROM entry ORDER BY hashint8(id) LIMIT 200").fetchall()
            features, everything = [as_array(row[0]) for row in picked], ("true", [])
            shares = []
            for feature in features:
                near, _ = self._nearest_one(connection, feature, rows, everything, 10, True)
                connection.raw.execute("SET LOCAL enable_indexscan = on")
                shares.append((near, feature))
            exact = [self._nearest_one(connection, f, rows, everything, 10, False)[0] for f in features]
            recall = float(
                np.mean([len(set(a) & set(b)) / len(b) for (a, _), b in zip(shares, exact, strict=True)])
            )
            if recall < ann.LEAST_RECALL:
                connection.execute("DROP INDEX entry_hnsw")
            self.file.set_meta(connection, "recall", str(recall))
        return recall

    def _drop_index(self):
        """Nothing: the server's index follows its table."""

    _drop_stale_index = _drop_index

    def _about_index(self):
        recall = self.file.get_meta("recall")
        return f"recall {float(recall):.4f}" if recall else "none"

    def _labelled(self):
        rows = Rows(self.dim)
        with self.file.reading() as connection:
            query = f"SELECT {SHOWN}, vector FROM entry WHERE person <> '' AND camera <> '' ORDER BY id"
            entries = connection.execute(query).fetchall()
        if not entries:
            raise DataError(f"{self.path} has no entries with person and camera; name some first")
        rows.count = len(entries)
        rows._store["vector"] = np.stack([as_array(row[5]) for row in entries])
        for place, field in ((1, "person"), (2, "camera")):
            codes = rows.names[field]
            rows._store[field] = np.array(
                [codes.setdefault(row[place], len(codes)) for row in entries], np.int32
            )
        return rows

    def _extent(self, rows):
        with self.file.reading() as connection:
            query = "SELECT COUNT(person), MIN(time), MAX(time) FROM entry"
            named, first, last = connection.execute(query).fetchone()
        return named, NO_TIME if first is None else first, NO_TIME if last is None else last
