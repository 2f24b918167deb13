"""The entries of a gallery in memory: ids, codes of names, times and the float32 matrix of features."""

import copy

import numpy as np

from reid_jax.errors import DataError
from reid_jax.serve.database import LOADED
from reid_jax.serve.stamps import checksum

NO_TIME = np.iinfo(np.int64).min
CODED = ("person", "camera", "tracklet")  # names, each stored once
_CHUNK = 4096  # rows fetched at a time


class Rows:
    """Entries by ascending id. Codes are -1 where a name is unknown; time is in microseconds, UTC."""

    def __init__(self, dim):
        self.dim, self.count = dim, 0
        self.names = {field: {} for field in CODED}  # {name: code}
        self._store = {"id": np.empty(0, np.int64), "time": np.empty(0, np.int64)}
        self._store |= {field: np.empty(0, np.int32) for field in CODED}
        self._store["vector"] = np.empty((0, dim), np.float32)

    def __len__(self):
        return self.count

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._store:
            raise AttributeError(name)
        return self._store[name][: self.count]

    @classmethod
    def read(cls, database, connection, known=None):
        """All entries of a file, or those behind `known` (Rows) appended to it."""
        rows = known.copied() if known is not None else cls(database.dim)
        last = int(rows.id[-1]) if len(rows) else 0
        where = "FROM entry WHERE id > ?"
        rows._reserve(connection.execute(f"SELECT COUNT(*) {where}", (last,)).fetchone()[0])
        cursor = connection.execute(f"SELECT {', '.join(LOADED)} {where} ORDER BY id", (last,))
        while chunk := cursor.fetchmany(_CHUNK):
            rows._append(chunk, database)
        return rows

    def copied(self):
        """Rows that may grow while these stay as they are; their memory is shared."""
        rows = copy.copy(self)
        rows._store = dict(self._store)
        return rows

    def _reserve(self, more):
        """Room for so many rows more; at least a quarter, so that appending costs no more than the rows."""
        room = len(self._store["id"])
        if self.count + more > room:
            size = self.count + more if not self.count else max(self.count + more, room + room // 4)
            for name, old in self._store.items():
                self._store[name] = new = np.empty((size, *old.shape[1:]), old.dtype)
                new[: self.count] = old[: self.count]

    def _append(self, chunk, database):
        wrong = [row[0] for row in chunk if checksum(*row[:-1]) != row[-1]]
        size = database.dim * database.type.itemsize
        wrong += [row[0] for row in chunk if len(row[5]) != size]
        if wrong:
            raise DataError(
                f"{database.path} is damaged: entry {wrong[0]} does not fit its checksum; restore a backup, "
                f"or remove it (reid_jax gallery remove {database.path} --id {wrong[0]}) and add its picture"
            )
        ids, person, camera, time, tracklet, vectors, _ = zip(*chunk, strict=True)
        place = slice(self.count, self.count + len(chunk))
        self._store["id"][place] = ids
        self._store["time"][place] = [NO_TIME if t is None else t for t in time]
        for field, values in zip(CODED, (person, camera, tracklet), strict=True):
            codes = self.names[field]
            self._store[field][place] = [-1 if v is None else codes.setdefault(v, len(codes)) for v in values]
        block = np.frombuffer(b"".join(vectors), database.type).reshape(len(chunk), database.dim)
        self._store["vector"][place] = block
        self.count += len(chunk)

    def name(self, field, row):
        """The name of a row, or None."""
        code = int(getattr(self, field)[row])
        if code < 0:
            return None
        if len(getattr(self, f"_{field}_names", ())) != len(self.names[field]):
            setattr(self, f"_{field}_names", list(self.names[field]))
        return getattr(self, f"_{field}_names")[code]

    def counts(self, field):
        """{name: number of entries}, by name."""
        codes = getattr(self, field)
        numbers = np.bincount(codes[codes >= 0], minlength=len(self.names[field]))
        return {n: int(numbers[c]) for n, c in sorted(self.names[field].items()) if numbers[c]}

    def passing(self, *, camera=None, not_camera=None, person=None, since=None, until=None, without=()):
        """bool[N] of the rows that pass all filters; None where there are none.

        camera, not_camera, person: lists of names, or None; since, until: microseconds, both included; rows
        without a time pass neither. without: ids left out. DataError: a name that no entry has.
        """
        masks = []
        if camera:
            masks.append(np.isin(self.camera, self._codes("camera", camera)))
        if not_camera:
            masks.append(~np.isin(self.camera, self._codes("camera", not_camera)))
        if person:
            masks.append(np.isin(self.person, self._codes("person", person)))
        if since is not None:
            masks.append(self.time >= since)
        if until is not None:
            masks.append((self.time <= until) & (self.time != NO_TIME))
        if len(without):
            masks.append(~np.isin(self.id, list(without)))
        return np.logical_and.reduce(masks) if masks else None

    def _codes(self, field, wanted):
        known = self.names[field]
        if unknown := [n for n in wanted if n not in known]:
            shown = ", ".join(sorted(known)[:20]) or "none"
            more = f" and {len(known) - 20} more" if len(known) > 20 else ""
            raise DataError(f"no entry has the {field} {unknown[0]!r}; there are: {shown}{more}")
        return [known[n] for n in wanted]
