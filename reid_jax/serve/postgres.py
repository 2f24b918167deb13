"""The database of a gallery on a PostgreSQL server with pgvector; `remote` has the Gallery on it.

Entries, what is known of the gallery and the audit stand in the schema `reid_jax` of one database. Several
writers may work at a time; the audit's chain is written by one after the other.
"""

import contextlib
import json
import threading

import numpy as np

from reid_jax.errors import ConfigError, DataError
from reid_jax.serve import database, stamps
from reid_jax.serve import gallery as gallery_module

try:
    import psycopg
    from pgvector.psycopg import register_vector
except ImportError as error:
    raise ConfigError(
        f"a gallery on a server needs psycopg and pgvector ({error}): pip install 'reid_jax[postgres]'"
    ) from error

SCHEMA = "reid_jax"
_TABLES = f"""
CREATE SCHEMA {SCHEMA};
SET search_path TO {SCHEMA}, public;
CREATE TABLE meta(key text PRIMARY KEY, value text NOT NULL);
CREATE TABLE audit(id bigserial PRIMARY KEY, chain int NOT NULL, time bigint NOT NULL, actor text NOT NULL,
  action text NOT NULL, detail text NOT NULL, hash text NOT NULL);
CREATE TABLE entry(id bigserial PRIMARY KEY, person text, camera text, time bigint, tracklet text,
  source text, sha256 text, box text, added bigint NOT NULL, vector TYPE NOT NULL);
CREATE INDEX entry_person ON entry(person) WHERE person IS NOT NULL;
"""
SHOWN = "id, person, camera, time, tracklet"
_TYPES = ("int8", "text", "text", "int8", "text", "text", "text", "text", "int8")  # of an entry's columns


def connected(place, wait=10.0):
    """An open psycopg connection; DataError where the server cannot be reached."""
    try:
        return psycopg.connect(place, autocommit=True, connect_timeout=max(2, int(wait)))
    except psycopg.Error as error:
        raise DataError(
            f"{gallery_module.shown(place)} cannot be reached: {str(error).strip()}; is the server up, and "
            "may this user come in?"
        ) from error


def exists(place):
    """Whether a database has a gallery."""
    with contextlib.closing(connected(place)) as connection:
        table = connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.meta",)).fetchone()[0]
    return table is not None


def create(place, *, dim, model, precision="float16", source=""):
    """Makes the tables of an empty gallery in one transaction; arguments as of file.create."""
    try:
        with contextlib.closing(connected(place)) as connection, connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            half = connection.execute("SELECT to_regtype('halfvec')").fetchone()[0] is not None
            name = "halfvec" if half and precision == "float16" else "vector"
            precision = "float16" if name == "halfvec" else "float32"
            connection.execute(_TABLES.replace("TYPE", f"{name}({int(dim)})"))
            meta = {"dim": dim, "model": model, "precision": precision, "source": source, "audit": "{}"}
            meta |= {"created": stamps.now(), "generation": 0, "rewritten": 0}
            for key, value in meta.items():
                connection.execute("INSERT INTO meta VALUES(%s, %s)", (key, str(value)))
    except psycopg.errors.DuplicateSchema as error:
        raise FileExistsError(place) from error  # another process was quicker
    except psycopg.Error as error:
        raise DataError(
            f"{gallery_module.shown(place)}: no gallery can be made: {str(error).strip()}"
        ) from error


def drop(place):
    """Deletes a gallery, for good."""
    with contextlib.closing(connected(place)) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


class _Connection:
    """psycopg's connection for the few statements that are shared with SQLite."""

    def __init__(self, raw):
        self.raw = raw

    def execute(self, text, values=()):
        """A cursor with the statement's rows."""
        text = text.replace(
            "SELECT value FROM json_each(?)", "SELECT v::int8 FROM json_array_elements_text(?) v"
        )
        values = [
            psycopg.types.json.Json(json.loads(v)) if "json_array" in text and _is_list(v) else v
            for v in values
        ]
        return self.raw.execute(text.replace("?", "%s"), values)


def _is_list(value):
    return isinstance(value, str) and value.startswith("[")


class Server(database.Database):
    """An open connection with the methods of Database."""

    def __init__(self, place, mode="a", wait=10.0):
        self.path, self.mode, self.wait = gallery_module.shown(place), mode, wait
        self.lock = threading.RLock()
        self._connection = connected(place, wait)
        with self._told():
            if self._connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.meta",)).fetchone()[0] is None:
                raise DataError(f"there is no gallery {self.path}; build it: reid_jax gallery build")
            self._connection.execute(f"SET search_path TO {SCHEMA}, public")
            self._connection.execute(f"SET lock_timeout TO {int(1000 * wait)}")
            if mode == "r":
                self._connection.execute("SET default_transaction_read_only TO on")
            register_vector(self._connection)
            self.meta = self._read_meta()
            self.dim, self.type = int(self.meta["dim"]), np.dtype(self.meta["precision"])

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except psycopg.Error as error:
            raise DataError(f"{self.path}: {self._said(error)}") from error

    def _said(self, error):
        text = str(error).strip().split("\n")[0]
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return f"another process is writing and did not end within {self.wait:g} s; try later"
        if isinstance(error, psycopg.errors.InsufficientPrivilege | psycopg.errors.ReadOnlySqlTransaction):
            return f"this user may not do that ({text}); use a writer's role"
        if isinstance(error, psycopg.errors.DiskFull):
            return f"the server's disk is full ({text}); what was confirmed before is stored"
        return f"{text}; what was confirmed before is stored"

    @contextlib.contextmanager
    def _transaction(self, begin):
        with self.connection().raw.transaction():
            yield self.connection()

    def connection(self):
        if self._connection is None or self._connection.closed:
            raise DataError(f"the gallery {self.path} was closed, or the server has ended the connection")
        return _Connection(self._connection)

    def truncate_log(self, wait=None):
        return True  # the server's own affair

    def changed(self, connection, rewritten):
        connection.execute("UPDATE meta SET value = (value::int8 + 1)::text WHERE key = 'generation'")

    def set_meta(self, connection, key, value):
        connection.execute(
            "INSERT INTO meta VALUES(?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def head_text(self, connection):
        """As Database; another writer's audit waits until this transaction has ended."""
        lock = "" if self.mode == "r" else " FOR UPDATE"
        return connection.execute(f"SELECT value FROM meta WHERE key = 'audit'{lock}").fetchone()[0]

    def next_id(self, connection):
        query = "SELECT GREATEST((SELECT MAX(id) FROM entry), (SELECT last_value FROM pg_sequences "
        query += f"WHERE schemaname = '{SCHEMA}' AND sequencename = 'entry_id_seq'), 0)"
        return connection.execute(query).fetchone()[0] + 1  # readers may not ask the sequence

    def snapshot(self, connection):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def chunks(self, connection):
        names = ", ".join(("id", *database.COLUMNS, "vector"))
        with connection.raw.cursor("chunks") as cursor:
            cursor.execute(f"SELECT {names} FROM entry ORDER BY id")
            while rows := cursor.fetchmany(1024):
                yield [(*row[:-1], as_array(row[-1]).astype(self.type).tobytes()) for row in rows]

    def put(self, connection, rows):
        self._copy(connection, ((*row[:-1], np.frombuffer(row[-1], self.type)) for row in rows))

    def set_last(self, connection, last):
        connection.execute("SELECT setval('entry_id_seq', ?, ?)", (max(last, 1), last > 0))

    def insert(self, connection, vectors, columns):
        query = "SELECT nextval('entry_id_seq') FROM generate_series(1, ?)"
        ids = [row[0] for row in connection.execute(query, (len(vectors),))]
        rows = zip(ids, *(columns[n] for n in database.COLUMNS), vectors.astype(self.type), strict=True)
        self._copy(connection, rows)
        self.changed(connection, rewritten=False)
        return ids

    def _copy(self, connection, rows):
        """Rows (id, *COLUMNS, vector) into the table."""
        names = ", ".join(("id", *database.COLUMNS, "vector"))
        kind = "halfvec" if self.type == np.float16 else "vector"
        with connection.raw.cursor().copy(f"COPY entry ({names}) FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types([*_TYPES, kind])
            for row in rows:
                copy.write_row(row)

    def relabel(self, connection, key, name):
        return connection.execute("UPDATE entry SET person = ? WHERE id = ?", (name, key)).rowcount

    def vacuum(self):
        with self.lock, self._told():
            self._connection.execute("VACUUM FULL entry")

    def size(self):
        with self.lock, self._told():
            return self._connection.execute("SELECT pg_total_relation_size('entry')").fetchone()[0]

    def problems(self):
        with self.reading() as connection:
            return self._audit_problems(connection)


def as_array(value):
    """f32[D] of what pgvector gives."""
    return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value, np.float32)
