"""A gallery open for reading and changing: entries, what is known of the file, and an audit, in SQLite.

Every change is one transaction, whole on the disk when the call returns (write-ahead log, synchronous=FULL).
What is deleted is overwritten (secure_delete). Ids are never given twice. The rows of the audit are chained:
the hash of each covers the one before, and the last hash and the count stand in `meta`.
"""

import contextlib
import json
import os
import sqlite3
import threading
from pathlib import Path

import numpy as np

from reid_jax.errors import DataError
from reid_jax.serve.file import APPLICATION, PRECISIONS, SCHEMA, writer_of
from reid_jax.serve.stamps import chained, checksum, now

_CHUNK = 1024  # rows at a time
COLUMNS = ("person", "camera", "time", "tracklet", "source", "sha256", "box", "added")
LOADED = ("id", "person", "camera", "time", "tracklet", "vector", "checksum")  # by readers
_SETTINGS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",
    "PRAGMA temp_store=MEMORY",  # no names or vectors in temporary files
    "PRAGMA cell_size_check=ON",
    "PRAGMA trusted_schema=OFF",
)


class Database:
    """An open gallery file; its methods may be called from any thread, one at a time.

    path: the file; mode: "r" (read) or "a" (read and change); wait: seconds for which a writer waits for
    another. DataError: no gallery, damaged, locked, or no room.
    """

    def __init__(self, path, mode="a", wait=10.0):
        self.path, self.mode, self.wait = os.path.abspath(path), mode, wait
        self.lock = threading.RLock()
        if not os.path.exists(self.path):
            raise DataError(f"there is no gallery {path}; build it: reid_jax gallery build {path} ...")
        self._connection = None
        with self._told():
            self._connection = self._connected()
            self._check()
        if mode == "a":
            self.truncate_log(wait=0)  # a deletion whose process was killed may have left its log

    def _connected(self):
        address = f"{Path(self.path).as_uri()}?mode={'ro' if self.mode == 'r' else 'rw'}"
        connection = sqlite3.connect(
            address, uri=True, timeout=self.wait, isolation_level=None, check_same_thread=False
        )
        for setting in _SETTINGS:
            connection.execute(setting)
        return connection

    def _check(self):
        """DataError unless the file is a gallery of this schema."""
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION:
            raise DataError(f"{self.path} is no gallery, or its first bytes are damaged; restore a backup")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA:
            raise DataError(f"{self.path} has schema {version}, this version of reid_jax reads {SCHEMA}")
        self.meta = self._read_meta()
        self.dim, self.type = int(self.meta["dim"]), np.dtype(self.meta["precision"])

    def _read_meta(self):
        meta = dict(self._connection.execute("SELECT key, value FROM meta"))
        if missing := {"dim", "model", "precision", "generation", "rewritten"} - meta.keys():
            raise DataError(
                f"{self.path} is damaged: it lacks {', '.join(sorted(missing))}; restore a backup"
            )
        if meta["precision"] not in PRECISIONS:
            raise DataError(f"{self.path} is damaged: vectors of type {meta['precision']}; restore a backup")
        return meta

    def close(self):
        """Closes the file; the last one to do so leaves no log beside it."""
        with self.lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    # ---- transactions
    @contextlib.contextmanager
    def _told(self):
        """SQLite's errors as DataErrors that name the file and the way out."""
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(self._said(error)) from error
        except (ValueError, KeyError, TypeError) as error:  # of meta, JSON or rows that are not as written
            raise DataError(f"{self.path} is damaged ({error}); restore a backup") from error

    def _said(self, error):
        text, name = str(error), getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            who = writer_of(self.path)
            by = f"process {who}" if who else "another process"
            return (
                f"{self.path} is being written by {by}, which did not end within {self.wait:g} s; try later"
            )
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return (
                f"{self.path} could not be written or read ({text}): is the disk full? The last batch "
                "was not stored, all that was confirmed before is; free space and repeat it"
            )
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return f"{self.path} cannot be opened or written ({text}); check the rights on it and its folder"
        if name.startswith("SQLITE_CORRUPT") or name.startswith("SQLITE_NOTADB"):
            return f"{self.path} is damaged ({text}); restore a backup, or build the gallery again"
        return f"{self.path}: {text}; reid_jax gallery verify looks for damage"

    def connection(self):
        """The open connection; DataError when it was closed."""
        if self._connection is None:
            raise DataError(f"the gallery {self.path} was closed")
        return self._connection

    @contextlib.contextmanager
    def reading(self):
        """The connection, with one state of the file for all that is read."""
        with self.lock, self._told(), self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self):
        """The connection in a transaction that is on the disk afterwards, or as if it had never begun."""
        if self.mode == "r":
            raise DataError(f"{self.path} was opened for reading; open it with mode='a' to change it")
        with self.lock, self._told(), self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin):
        connection = self.connection()
        connection.execute(begin)
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def truncate_log(self, wait=None):
        """Empties the write-ahead log into the file; whether that was possible (others may hold it).

        wait: seconds to wait for them; None: as for another writer.
        """
        with self.lock, self._told():
            connection = self.connection()
            connection.execute(f"PRAGMA busy_timeout={int(1000 * (self.wait if wait is None else wait))}")
            try:
                return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            finally:
                connection.execute(f"PRAGMA busy_timeout={int(1000 * self.wait)}")

    # ---- inside a transaction
    def generation(self):
        """(generation, rewritten): the number of changes, and of the last that did more than append."""
        with self.lock, self._told():
            rows = dict(
                self.connection().execute(
                    "SELECT key, value FROM meta WHERE key IN ('generation', 'rewritten')"
                )
            )
            return int(rows["generation"]), int(rows["rewritten"])

    def changed(self, connection, rewritten):
        """Counts a change of entries; rewritten: it did more than append."""
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
        if rewritten:
            connection.execute(
                "UPDATE meta SET value = (SELECT value FROM meta WHERE key = 'generation') "
                "WHERE key = 'rewritten'"
            )

    def set_meta(self, connection, key, value):
        """Stores one thing known of the file, as text."""
        connection.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

    def get_meta(self, key):
        """What is stored under a key; None where nothing is."""
        with self.lock, self._told():
            row = self.connection().execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def insert(self, connection, vectors, columns):
        """New entries: vectors f32[N,D], columns {name of COLUMNS: list of N}; returns their ids."""
        first = self.next_id(connection)
        ids = range(first, first + len(vectors))
        stored = np.ascontiguousarray(vectors, self.type)
        blobs = [row.tobytes() for row in stored]
        checked = zip(
            ids, *(columns[n] for n in ("person", "camera", "time", "tracklet")), blobs, strict=True
        )
        rows = zip(
            ids, *(columns[n] for n in COLUMNS), blobs, [checksum(*row) for row in checked], strict=True
        )
        connection.executemany(f"INSERT INTO entry VALUES({','.join('?' * (len(COLUMNS) + 3))})", rows)
        self.changed(connection, rewritten=False)
        return list(ids)

    # ---- whole galleries, for merging
    def snapshot(self, connection):
        """All that this transaction reads is of one moment; SQLite's always is."""

    def chunks(self, connection):
        """Yields lists of rows (id, *COLUMNS, vector's bytes) by id; DataError for a damaged one."""
        names = ("id", *COLUMNS, "vector", "checksum")
        cursor = connection.execute(f"SELECT {', '.join(names)} FROM entry ORDER BY id")
        while rows := cursor.fetchmany(_CHUNK):
            for row in rows:
                if checksum(*row[:5], row[-2]) != row[-1]:
                    raise DataError(
                        f"{self.path} is damaged: entry {row[0]} does not fit its checksum; remove it first"
                    )
            yield [row[:-1] for row in rows]

    def put(self, connection, rows):
        """Inserts rows as `chunks` gives them, vectors in this gallery's type."""
        marked = ((*row, checksum(*row[:5], row[-1])) for row in rows)
        connection.executemany(f"INSERT INTO entry VALUES({','.join('?' * (len(COLUMNS) + 3))})", marked)

    def set_last(self, connection, last):
        """The last id that was given, to an entry that may be gone."""
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'entry'")
        connection.execute("INSERT INTO sqlite_sequence VALUES('entry', ?)", (last,))

    # ---- single entries
    def relabel(self, connection, key, name):
        """Gives an entry a name or None; returns whether there is one of this id."""
        query = "SELECT camera, time, tracklet, vector FROM entry WHERE id = ?"
        row = connection.execute(query, (key,)).fetchone()
        if row is not None:
            change = "UPDATE entry SET person = ?, checksum = ? WHERE id = ?"
            connection.execute(change, (name, checksum(key, name, *row), key))
        return row is not None

    def vacuum(self):
        """Writes the file anew without free pages."""
        with self.lock, self._told():
            self.connection().execute("VACUUM")
        self.truncate_log()

    def size(self):
        """Bytes of the file and its log."""
        places = (self.path, self.path + "-wal")
        return sum(os.path.getsize(p) for p in places if os.path.exists(p))

    def next_id(self, connection):
        """The smallest id that no entry has or had."""
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
        return (row[0] if row else 0) + 1

    def write_audit(self, connection, actor, action, detail, chain=0, moment=None):
        """One more row of the chained audit; detail: what JSON can hold."""
        heads = json.loads(self.head_text(connection))
        count, last = heads.get(str(chain), [0, ""])
        row = (now() if moment is None else moment, actor, action, json.dumps(detail, sort_keys=True))
        mark = chained(last, row)
        connection.execute(
            "INSERT INTO audit(chain, time, actor, action, detail, hash) VALUES(?,?,?,?,?,?)",
            (chain, *row, mark),
        )
        heads[str(chain)] = [count + 1, mark]
        self.set_meta(connection, "audit", json.dumps(heads))

    def head_text(self, connection):
        """JSON of {chain: [number of rows, last hash]}."""
        row = connection.execute("SELECT value FROM meta WHERE key = 'audit'").fetchone()
        return row[0] if row else "{}"

    # ---- what verify looks at
    def problems(self):
        """What is wrong with the file, in sentences; [] when it is whole."""
        with self.reading() as connection:
            sentences = [r[0] for r in connection.execute("PRAGMA integrity_check(20)") if r[0] != "ok"]
            query = f"SELECT {', '.join(LOADED)} FROM entry ORDER BY id"
            for key, *fields, mark in connection.execute(query):
                if checksum(key, *fields) != mark:
                    sentences.append(f"entry {key} does not fit its checksum")
            return sentences + self._audit_problems(connection)

    def _audit_problems(self, connection):
        seen, sentences = {}, []
        query = "SELECT id, chain, time, actor, action, detail, hash FROM audit ORDER BY id"
        for key, chain, *row, mark in connection.execute(query):
            count, last = seen.get(chain, (0, ""))
            if chained(last, row) != mark:
                sentences.append(f"audit row {key} does not follow from the one before")
            seen[chain] = (count + 1, mark)
        heads = {int(c): tuple(h) for c, h in json.loads(self.head_text(connection)).items()}
        if heads != seen:
            sentences.append("the audit's last rows are missing or changed")
        return sentences
