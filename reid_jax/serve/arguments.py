"""What callers of a gallery give, checked: names, times, boxes, ids and pictures."""

import datetime
import getpass
import hashlib
import json
import os

import numpy as np

from reid_jax.errors import ConfigError
from reid_jax.serve.rows import NO_TIME

FIELDS = ("person", "camera", "time", "tracklet", "source", "box")


def columns(count, **fields):
    """{name: list of count}, each checked: names as text, times as microseconds, boxes as JSON."""
    found = {name: _spread(name, value, count) for name, value in fields.items()}
    for name in ("person", "camera", "tracklet", "source"):
        found[name] = names(name, found[name])
    found["time"] = [moment(t) for t in found["time"]]
    found["box"] = [None if b is None else json.dumps([float(x) for x in b]) for b in found["box"]]
    return found


def _spread(name, value, count):
    """One value for all, or a list of as many."""
    box = name == "box" and value is not None and np.ndim(value) == 1 and np.isscalar(value[0])
    if box or value is None or isinstance(value, str | os.PathLike | int | float | datetime.datetime):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ConfigError(f"{name} has {len(values)} values for {count} pictures")
    return values


def names(field, values):
    """Names as text; None stays. ConfigError for what is no name."""
    found, right = [], {None}  # most names come many times
    for value in values:
        if type(value) not in (str, type(None)) or value not in right:
            value = name(field, value)
            right.add(value)
        found.append(value)
    return found


def name(field, value):
    """One name as text: of text, a path or a whole number."""
    if isinstance(value, os.PathLike | int | np.integer) and not isinstance(value, bool):
        value = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if not (isinstance(value, str) and 0 < len(value) <= 4096):
        raise ConfigError(f"{field} is {value!r}; a name is text of 1 to 4096 characters")
    if "\0" in value or not _is_utf8(value):
        raise ConfigError(f"{field} is {value!r}, which is no text in UTF-8; rename it")
    return value


def _is_utf8(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def moment(value, field="time"):
    """Microseconds since 1970 of a datetime or ISO text with a zone, or seconds; None stays None."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            if value.tzinfo is None:
                raise ConfigError(
                    f"{field} is {value}, without a zone; add one, as in 2026-05-01T12:00:00+02:00 or ...Z"
                )
            value -= datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
            return value // datetime.timedelta(microseconds=1)
        found = round(float(value) * 1e6)
        if isinstance(value, bool) or not _FIRST <= found <= _LAST:
            raise ValueError
        return found
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{field} is {value!r}; a time is a datetime, text (2026-05-01T12:00:00Z) or seconds since 1970"
        ) from error


_FIRST, _LAST = (  # what a datetime can be, in microseconds
    moment(datetime.datetime.combine(d, datetime.time(), datetime.UTC))
    for d in (datetime.date.min, datetime.date.max)
)


def utc(microseconds):
    """The datetime of stored microseconds; None for NO_TIME."""
    if microseconds == NO_TIME:
        return None
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return start + datetime.timedelta(microseconds=int(microseconds))


def digest(picture):
    """SHA-256 of a picture's file, bytes or pixels; None where it cannot be read."""
    if isinstance(picture, str | os.PathLike):
        try:
            with open(picture, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
    if isinstance(picture, bytes | bytearray | memoryview):
        return hashlib.sha256(picture).hexdigest()
    pixels = np.asarray(picture)
    return hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).hexdigest()


def listed(pictures):
    """A list of pictures: of one, of an array [N,h,w,3], or of an iterable."""
    if isinstance(pictures, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(
        pictures, "getexif"
    ):
        return [pictures]
    if isinstance(pictures, np.ndarray):
        return [pictures] if pictures.ndim < 4 else list(pictures)
    return list(pictures)


def is_features(query):
    dtype = getattr(query, "dtype", None)
    return dtype is not None and np.dtype(dtype).kind == "f" and np.ndim(query) in (1, 2)


def several(value):
    return [value] if isinstance(value, str | int | os.PathLike) else list(value)


def whole_ids(ids):
    values = [ids] if isinstance(ids, int | np.integer) else list(ids)
    if any(isinstance(i, bool) or not isinstance(i, int | np.integer) or abs(i) >= 1 << 63 for i in values):
        raise ConfigError(f"ids are {values}; they must be whole numbers")
    return [int(i) for i in values]


def at_least_one(name, value):
    """ConfigError when a number is below 1 or not whole."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1 on")


def choice(name, value, choices):
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it may be {', '.join(choices)}")


def user():
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this number
        return f"user {os.getuid()}"
