"""A gallery: features of pictures of people with camera, time and name, in one file, searched exactly.

    g = Gallery("people.sqlite", embedder)
    g.add(paths, camera="door", source=paths)
    for hit in g.search("query.jpg", k=20, not_camera=["door"], fpir=0.1): ...

The embedder has `dim`, `hash`, `card` and turns a list of pictures into unit rows f32[N,D].
"""

import contextlib
import json
import logging
import os
import re

import numpy as np

from reid_jax import places
from reid_jax.errors import ConfigError, DataError
from reid_jax.serve import ann as index_file
from reid_jax.serve import arguments, database, file, stamps
from reid_jax.serve.queries import Queries
from reid_jax.serve.rows import NO_TIME, Rows
from reid_jax.serve.thresholds import Thresholds

log = logging.getLogger("reid_jax")
BATCH = 1024  # entries of a transaction
NOT_REACHED = (
    "Not reached by this: copies and backups of the gallery, exported features and tables, and the pictures "
    "themselves."
)


class Gallery(Queries, Thresholds):
    """Entries of people in one file; see the module.

    path: the file, made where it is absent and mode is "a"; embedder: needed to make one and for pictures;
    mode: "a" or "r" (read only); precision: of a new file's vectors, "float16" or "float32"; wait: seconds
    to wait for another writer; ann: "off" (exact search) or "auto" (an approximate index where it is worth
    it and found to be right, see serve/ann.py); actor: who stands in the audit (default: the user);
    log_searches: whether searches stand there too.
    DataError: damaged, locked, another model's; ConfigError: unusable arguments.
    """

    def __init__(
        self, path, embedder=None, *, mode="a", precision="float16", wait=10.0, ann="off", actor=None,
        log_searches=False, source="",
    ):  # fmt: skip
        arguments.choice("mode", mode, ("r", "a"))
        arguments.choice("ann", ann, ("off", "auto"))
        path = path if is_address(path) else places.local(path, "the gallery")
        self.path, self.embedder, self._place = shown(path), embedder, path
        self.actor, self.log_searches, self.ann = actor or arguments.user(), log_searches, ann
        if mode == "a" and not exists(path):
            if embedder is None:
                raise DataError(
                    f"there is no gallery {self.path}; making one needs the model of its features"
                )
            with contextlib.suppress(FileExistsError):
                self._made(dim=embedder.dim, model=embedder.hash, precision=precision, source=source)
        self.file = self._opened(mode, wait)
        self._rows, self._state, self._index = None, None, None
        if mode == "a":
            self._drop_stale_index()
        if embedder is not None and (embedder.hash, embedder.dim) != (self.model, self.dim):
            self.file.close()
            raise DataError(
                f"{self.path} holds features [{self.dim}] of model {self.model[:12]}, this model is "
                f"{embedder.hash[:12]} [{embedder.dim}]: they cannot be compared; load that model, or build "
                "the gallery again"
            )

    def __new__(cls, path, *_, **__):
        """A Gallery of a file, or of a PostgreSQL server for an address, postgresql://..."""
        if cls is Gallery and is_address(path):
            from reid_jax.serve.remote import ServerGallery

            cls = ServerGallery
        return super().__new__(cls)

    def _made(self, **about):
        file.create(self._place, **about)

    def _opened(self, mode, wait):
        return database.Database(self._place, mode, wait)

    @property
    def dim(self):
        """Numbers of a feature."""
        return self.file.dim

    @property
    def model(self):
        """Hash of the model of all features."""
        return self.file.meta["model"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self):
        return len(self.rows())

    def close(self):
        """Closes the file."""
        self.file.close()

    def rows(self):
        """All entries (Rows) as they are in the file now; read again only where the file has changed."""
        with self.file.lock:
            generation, rewritten = self.file.generation()
            if self._state is None or generation != self._state:
                append = self._state is not None and rewritten <= self._state
                with self.file.reading() as connection:
                    generation, again = self.file.generation()
                    append = append and again == rewritten
                    known, self._state = self._rows if append else None, None
                    self._rows = Rows.read(self.file, connection, known)
                self._state = generation
            return self._rows

    # ---- changes
    def add(
        self, pictures, *, camera=None, time=None, person=None, tracklet=None, source=None, box=None,
        on_broken="stop", known="add", told=None,
    ):  # fmt: skip
        """Adds pictures; returns their ids (None where one was left out).

        pictures: what the embedder takes, one or a list. The others: one value for all, or a list as long.
        time: datetime or ISO text with a zone, or seconds since 1970. source: where the picture lies; paths
        by default. on_broken: "stop", or "skip" pictures that cannot be read. known: "add", or "skip"
        pictures of a source and content that are there. told: called with the number of pictures that were
        dealt with, again and again, for a progress bar. Every BATCH entries are one transaction.
        """
        arguments.choice("on_broken", on_broken, ("stop", "skip"))
        arguments.choice("known", known, ("add", "skip"))
        pictures = arguments.listed(pictures)
        if source is None:
            source = [os.fspath(p) if isinstance(p, str | os.PathLike) else None for p in pictures]
        columns = arguments.columns(
            len(pictures), person=person, camera=camera, time=time, tracklet=tracklet, source=source, box=box
        )
        there, ids = self._contents() if known == "skip" else set(), []
        for start in range(0, len(pictures), BATCH):
            part = slice(start, start + BATCH)
            fields = {name: values[part] for name, values in columns.items()}
            ids += self._add_batch(pictures[part], fields, there, on_broken, start, told)
        self.file.truncate_log(wait=0)
        return ids

    def _add_batch(self, pictures, columns, there, on_broken, start, told):
        """Ids of one transaction's pictures."""
        marks = [arguments.digest(p) for p in pictures]
        places = [
            i for i, mark in enumerate(marks) if mark is None or (mark, columns["source"][i]) not in there
        ]
        if told:
            told(len(pictures) - len(places))
        vectors = self._embedded([pictures[i] for i in places], on_broken, [start + i for i in places], told)
        whole = np.isfinite(vectors).all(axis=1)
        if on_broken == "stop" and not whole.all():
            raise DataError(f"the feature of picture {start + places[int(np.argmin(whole))]} is not finite")
        places = [i for i, keep in zip(places, whole, strict=True) if keep]
        columns = {name: [values[i] for i in places] for name, values in columns.items()}
        columns["sha256"] = [marks[i] for i in places]
        added = self._insert(vectors[whole], columns)
        ids = dict(zip(places, added, strict=True))
        return [ids.get(i) for i in range(len(pictures))]

    def add_features(self, features, **fields):
        """Adds features f32[N,D] of the gallery's model, brought to unit length; fields as of `add`.

        Returns their ids. DataError for features that are not finite, or zero.
        """
        features = self._checked(features)
        columns = arguments.columns(len(features), **{n: fields.pop(n, None) for n in arguments.FIELDS})
        if fields:
            raise ConfigError(
                f"entries have no field {', '.join(fields)}; there are {', '.join(arguments.FIELDS)}"
            )
        columns["sha256"] = [None] * len(features)
        ids = []
        for start in range(0, len(features), BATCH):
            part = slice(start, start + BATCH)
            ids += self._insert(features[part], {n: values[part] for n, values in columns.items()})
        return ids

    def _insert(self, vectors, columns):
        if not len(vectors):
            return []
        with self.file.writing() as connection:
            columns = columns | {"added": [stamps.now()] * len(vectors)}
            ids = self.file.insert(connection, vectors, columns)
            self.file.write_audit(connection, self.actor, "add", {"entries": len(ids), "first": ids[0]})
        return ids

    def _contents(self):
        """{(SHA-256, source)} of all entries."""
        with self.file.reading() as connection:
            return set(connection.execute("SELECT sha256, source FROM entry WHERE sha256 IS NOT NULL"))

    def label(self, ids, person):
        """Gives entries a person's name (None: takes it away); returns how many there were."""
        ids = arguments.whole_ids(ids)
        (name,) = arguments.names("person", [person])
        with self.file.writing() as connection:
            count = sum(self.file.relabel(connection, key, name) for key in ids)
            self._forget(connection, count, "label", {"entries": count})
        return count

    def remove(self, *, person=None, ids=None, camera=None, source=None):
        """Deletes the entries that have all that is given, for good; returns how many there were.

        Overwritten in the file, gone from its log and the index. NOT_REACHED says what cannot be.
        """
        wanted = {"person": person, "camera": camera, "source": source}
        where, values = [], []
        for name, value in wanted.items():
            if value is not None:
                where.append(f"{name} = ?")
                values += arguments.names(name, [value])
        if ids is not None:
            where.append("id IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(arguments.whole_ids(ids)))
        if not where:
            raise ConfigError("remove needs a person, ids, a camera or a source")
        by = [n for n, v in (*wanted.items(), ("ids", ids)) if v is not None]
        return self._delete(" AND ".join(where), values, "remove", {"by": by})

    def purge(self, *, older_than_days):
        """Deletes entries whose time, or else that of adding them, is longer ago; returns how many."""
        number = isinstance(older_than_days, int | float) and not isinstance(older_than_days, bool)
        if not number or not older_than_days >= 0:
            raise ConfigError(f"older_than_days is {older_than_days!r}; it must be a number from 0 on")
        before = stamps.now() - int(min(older_than_days, 1e8) * 86_400_000_000)
        detail = {"older_than_days": older_than_days}
        return self._delete("COALESCE(time, added) < ?", [max(before, NO_TIME)], "purge", detail)

    def _delete(self, where, values, action, detail):
        self._drop_index()  # first: were this process killed now, no vector would be left there
        with self.file.writing() as connection:
            count = connection.execute(f"DELETE FROM entry WHERE {where}", values).rowcount
            self._forget(connection, count, action, {**detail, "entries": count})
        self._drop_index()  # one that was written meanwhile
        if not self.file.truncate_log():
            log.warning(
                "%s: a reader holds the log, in which what was deleted stays until it ends and the gallery "
                "is opened again", self.path,
            )  # fmt: skip
        return count

    def _forget(self, connection, count, action, detail):
        """Counts a change that did more than append, and writes it down."""
        if count:
            self.file.changed(connection, rewritten=True)
        self.file.write_audit(connection, self.actor, action, detail)

    def compact(self):
        """Writes the file anew without free pages; returns (bytes before, bytes after)."""
        before = self.file.size()
        with self.file.writing() as connection:
            self.file.write_audit(connection, self.actor, "compact", {"bytes": before})
        self.file.vacuum()
        return before, self.file.size()

    # ---- the approximate index
    def _drop_index(self):
        index_file.drop(self._place)
        self._index = None

    def _drop_stale_index(self):
        index_file.drop_stale(self._place, self.file.generation()[1])

    def build_index(self):
        """Builds the approximate index of the entries and keeps it beside the file; returns its recall."""
        rows = self._filled()
        self._index = index_file.build(self._place, rows.vector, self.model, self._state, self._generation)
        return self._index.recall

    def _generation(self):
        return self.file.generation()[0]

    def _current_index(self, rows):
        """The index of these rows, or None: then one is built in the background."""
        if len(rows) < index_file.LEAST_ROWS:
            return None
        if self._index is None or self._index.generation != self._state:
            self._index = index_file.load_or_start(
                self._place, rows.vector, self.model, self._state, self._generation
            )
        return self._index if self._index is not None and self._index.usable else None

    # ---- about the file
    def info(self):
        """What is known of the gallery, in a dict."""
        rows, meta = self.rows(), self.file.meta
        named, first, last = self._extent(rows)
        return {
            "path": self.path,
            "entries": len(rows),
            "persons": len(rows.counts("person")),
            "named entries": named,
            "cameras": rows.counts("camera"),
            "from": arguments.utc(first),
            "until": arguments.utc(last),
            "dim": self.dim,
            "precision": meta["precision"],
            "model": self.model,
            "source": meta.get("source", ""),
            "generation": self._state,
            "bytes": self.file.size(),
            "thresholds": self.thresholds().get("fpir", []),
            "index": self._about_index(),
        }

    def _extent(self, rows):
        """(number of named entries, first time, last time)"""
        times = rows.time[rows.time != NO_TIME]
        first, last = (times.min(), times.max()) if len(times) else (NO_TIME, NO_TIME)
        return int((rows.person >= 0).sum()), first, last

    def _about_index(self):
        return index_file.about(self._place, self.model, self._state)

    def history(self, last=None):
        """Rows of the audit, oldest first: dicts of time, actor, action, detail and chain."""
        with self.file.reading() as connection:
            query = "SELECT time, actor, action, detail, chain FROM audit ORDER BY id DESC LIMIT ?"
            arguments.at_least_one("last", most := (1 << 62) if last is None else last)
            rows = connection.execute(query, (most,)).fetchall()
        keys = ("time", "actor", "action", "detail", "chain")
        return [
            dict(zip(keys, (arguments.utc(t), a, n, json.loads(d), c), strict=True))
            for t, a, n, d, c in rows[::-1]
        ]

    def verify(self):
        """What is wrong with the file, in sentences: pages, checksums, the audit's chain; [] when whole."""
        return self.file.problems()


def is_address(place):
    """Whether a gallery lies on a server."""
    return isinstance(place, str) and place.startswith(("postgresql://", "postgres://"))


def shown(place):
    """A gallery's place without its password."""
    place = os.fspath(place)
    return re.sub(r"(?<=://)([^:/@]*):[^@]*@", r"\1:***@", place) if is_address(place) else place


def exists(place):
    """Whether there is a gallery, or another file of its name."""
    if is_address(place):
        from reid_jax.serve import postgres

        return postgres.exists(place)
    return os.path.exists(place)
