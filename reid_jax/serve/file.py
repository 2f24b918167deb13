"""The file of a gallery on the disk: how it is made, whole or not at all, and deleted; who writes to it."""

import contextlib
import errno
import os
import sqlite3
import tempfile
from pathlib import Path

from reid_jax.errors import DataError
from reid_jax.serve.stamps import now

SCHEMA = 1
APPLICATION = 0x52654944  # in SQLite's header: the file is a gallery
PRECISIONS = ("float16", "float32")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems that have none, FAT say
_TABLES = """
CREATE TABLE entry(id INTEGER PRIMARY KEY AUTOINCREMENT, person TEXT, camera TEXT, time INTEGER,
  tracklet TEXT, source TEXT, sha256 TEXT, box TEXT, added INTEGER NOT NULL, vector BLOB NOT NULL,
  checksum INTEGER NOT NULL);
CREATE INDEX entry_person ON entry(person) WHERE person IS NOT NULL;
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE audit(id INTEGER PRIMARY KEY AUTOINCREMENT, chain INTEGER NOT NULL, time INTEGER NOT NULL,
  actor TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL, hash TEXT NOT NULL);
"""


def create(path, *, dim, model, precision="float16", source=""):
    """Writes an empty gallery file, mode 0600; the file appears whole or not at all.

    dim, model: of its features (the model's hash); source: where the model was loaded from.
    DataError: it exists, or cannot be written.
    """
    if precision not in PRECISIONS:
        raise DataError(f"precision is {precision!r}; it may be {' or '.join(PRECISIONS)}")
    folder = os.path.dirname(os.path.abspath(path))
    meta = {"dim": dim, "model": model, "precision": precision, "source": source, "created": now()}
    try:
        if not os.path.isdir(folder):
            os.makedirs(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}); choose another folder") from error
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".gallery-")  # mkstemp: mode 0600
        os.close(handle)
        try:
            _fill(temporary, meta | {"generation": 0, "rewritten": 0})
            name_it(temporary, path)
        finally:
            drop(temporary)
        _sync(folder)
    except FileExistsError as error:
        raise DataError(f"{path} exists; add to it, or choose another name") from error
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"the gallery {path} cannot be written ({error}): is the disk full? Free space, or choose "
            "another folder"
        ) from error


def _fill(path, meta):
    connection = sqlite3.connect(path, isolation_level=None)
    with contextlib.closing(connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA application_id={APPLICATION}")
        connection.execute(f"PRAGMA user_version={SCHEMA}")
        connection.executescript(_TABLES)
        connection.executemany("INSERT INTO meta VALUES(?, ?)", [(k, str(v)) for k, v in meta.items()])


def name_it(temporary, path):
    """Gives a finished file its name; FileExistsError where there is one of that name."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.replace(temporary, path)


def drop(path):
    """Deletes a database and its log, if they are there."""
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + end)


def _sync(folder):
    """The folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def writer_of(path):
    """The process that holds SQLite's lock for writing (byte 120 of the -shm file), or None; Linux only."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = os.stat(path + "-shm").st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[3] == "WRITE" and words[5].endswith(f":{inode}") and words[6] == "120":
                return int(words[4])
    return None
