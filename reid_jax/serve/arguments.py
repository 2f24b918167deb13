"""What callers of a gallery give, checked: names, times, boxes, ids and pictures."""

import datetime
import getpass
import hashlib
import json
import os
import re

import numpy as np

from reid_jax.errors import ConfigError, DataError
from reid_jax.serve.rows import NO_TIME

FIELDS = ("person", "camera", "time", "tracklet", "source", "box")
_SINGLE = (str, os.PathLike, int, float, datetime.datetime)


def columns(count, **fields):
    """{name: list of count}, each checked: names as text, times as microseconds, boxes as JSON."""
    spread = {name: _spread(name, value, count) for name, value in fields.items()}
    for name in ("person", "camera", "tracklet", "source"):
        spread[name] = names(name, spread[name])
    spread["time"] = [moment(t) for t in spread["time"]]
    spread["box"] = [_box(b) for b in spread["box"]]
    return spread


def _spread(name, value, count):
    """One value for all, or a list of as many; tables have numbers that are none for what is not known."""
    if value is None or isinstance(value, (*_SINGLE, np.generic)) or (name == "box" and _is_box(value)):
        values = [value] * count
    else:
        values = _all(name, value)
        if len(values) != count:
            raise ConfigError(f"{name} has {len(values)} values for {count} pictures")
    return [None if isinstance(v, float | datetime.datetime) and v != v else v for v in values]


def _all(name, value):
    try:
        return list(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; give one for all, or a list") from None


def _is_box(value):
    return getattr(value, "__len__", int)() == 4 and not any(
        hasattr(x, "__len__") or x is None for x in value
    )


def _box(value):
    """JSON of x1, y1, x2, y2; None stays None."""
    if value is None:
        return None
    try:
        corners = [float(x) for x in value]
    except (TypeError, ValueError):
        corners = []
    if len(corners) != 4 or not np.isfinite(corners).all():
        raise ConfigError(f"box is {value!r}; it must be four numbers, x1, y1, x2, y2")
    return json.dumps(corners)


def names(field, values):
    """Names as text; None stays. ConfigError for what is no name."""
    texts, right = [], {None}  # most names come many times
    for value in values:
        if type(value) not in (str, type(None)) or value not in right:
            value = name(field, value)
            right.add(value)
        texts.append(value)
    return texts


def name(field, value):
    """One name as text, of text, a path or a whole number; what is no UTF-8 (of old files) is escaped."""
    if isinstance(value, os.PathLike | int | np.integer) and not isinstance(value, bool):
        value = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if not (isinstance(value, str) and 0 < len(value) <= 4096):
        raise ConfigError(f"{field} is {value!r}; a name is text of 1 to 4096 characters")
    if "\0" in value:
        raise ConfigError(f"{field} is {value!r}, which has a null byte in it; rename it")
    return value.encode("utf-8", "backslashreplace").decode()


def unescaped(source):
    """The path of a file whose name was escaped by `name`."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), source)


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
        micros = round(float(value) * 1e6)
        if isinstance(value, bool) or not _FIRST <= micros <= _LAST:
            raise ValueError
        return micros
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
    try:
        return list(pictures)
    except TypeError:
        raise DataError(f"{pictures!r} is no picture, and no list of pictures") from None


def is_features(query):
    dtype = getattr(query, "dtype", None)
    return dtype is not None and np.dtype(dtype).kind == "f" and np.ndim(query) in (1, 2)


def several(value):
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def whole_ids(ids):
    values = several(ids)
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
