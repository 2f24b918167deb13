"""MATLAB files of version 5 (not 7.3), as far as data sets use them: numbers, text, cells and structs.

SciPy's reader is C code that damaged bytes can crash; this one checks every size before it reads. The format:
MAT-File Format, MathWorks (R2023b), chapter 1.
"""

import math
import struct
import zlib

import numpy as np

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
_COMPLEX = 0x800
_DEPTH, _MOST = 32, 2**31  # of cells in cells; bytes of an unpacked variable


class Struct(tuple):
    """Values of a struct in the order of its fields; `fields`: {name: value}."""

    fields = {}  # noqa: RUF012

    @classmethod
    def of(cls, names, values):
        """A Struct of names and values."""
        record = cls(values)
        record.fields = dict(zip(names, record, strict=True))
        return record


def load(path, wanted):
    """{name: array} of the variables `wanted` that a file has.

    Numbers keep the type they are stored in, text becomes str[rows], cells an object array, structs an object
    array of `Struct`; shapes are MATLAB's. Raises OSError, or ValueError
    when the file is damaged or of another kind.
    """
    with open(path, "rb") as f:
        data = memoryview(f.read())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None:
        raise ValueError("it is no MATLAB file of version 5")
    arrays = {}
    for kind, body in elements(data[128:], order):
        if kind not in (_MATRIX, _COMPRESSED):
            raise ValueError(f"an element of type {kind} stands where a variable should")
        start = unpacked(body, 2**12) if kind == _COMPRESSED else body
        if name_of(start, order) in wanted:
            body = unpacked(body, _MOST) if kind == _COMPRESSED else body
            name, value = matrix(elements(body, order), order)
            arrays[name] = value
    return arrays


def unpacked(body, most):
    """The first `most` bytes of the matrix in a compressed element, without its tag."""
    try:
        raw = zlib.decompressobj().decompress(body, most)
    except zlib.error as e:
        raise ValueError(f"its compressed part is damaged: {e}") from e
    return memoryview(raw)[8:]


def name_of(start, order):
    """Name of the variable that begins with these bytes."""
    parts = elements(start, order)
    for _ in ("flags", "dimensions"):
        take(parts)
    return bytes(take(parts)[1]).decode("latin-1")


def elements(data, order):
    """(type, bytes) of the elements that follow each other in `data`; ValueError where it is cut off."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("it is cut off")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # four bytes at most, in place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        end = start + size
        if end > len(data) or start == at + 4 and size > 4:
            raise ValueError("it is cut off")
        yield kind, data[start:end]
        at = end if kind == _COMPRESSED else end + -end % 8 if start != at + 4 else at + 8


def take(parts, kind=None):
    """The next element; ValueError when there is none, or one of another type."""
    item = next(parts, None)
    if item is None or kind not in (None, item[0]):
        raise ValueError(f"it has {item and item[0]} where an element of type {kind or 'any'} should be")
    return item


def integers(parts, kind, order):
    """Python integers of the next element."""
    _, raw = take(parts, kind)
    return np.frombuffer(raw, order + _STORED[kind]).tolist() if len(raw) % 4 == 0 else []


def matrix(parts, order, depth=0):
    """(name, array) of a matrix's elements."""
    flags, dims = integers(parts, 6, order), integers(parts, 5, order)
    name = bytes(take(parts)[1]).decode("latin-1")
    if not flags or len(dims) < 2 or min(dims) < 0 or depth > _DEPTH:
        raise ValueError(f"the variable {name!r} is damaged")
    kind, count = flags[0] & 0xFF, math.prod(dims)
    if kind in _NUMBERS and not flags[0] & _COMPLEX:
        return name, numbers(parts, order, dims)
    if kind == _CHAR and len(dims) == 2:
        return name, text(parts, order, dims)
    if kind not in (_CELL, _STRUCT):
        raise ValueError(f"the variable {name!r} is of a kind ({flags[0]:#x}) that is not read")
    names = field_names(parts, name, order) if kind == _STRUCT else [""]
    items = []
    for _ in range(count):  # until the elements end, when fewer are there than claimed
        inside = [nested(parts, order, depth) for _ in names]
        items.append(inside[0] if kind == _CELL else Struct.of(names, inside))
    values = np.empty(count, object)
    for i, value in enumerate(items):
        values[i] = value
    return name, values.reshape(dims, order="F")


def field_names(parts, name, order):
    """Names of the fields of the struct `name`."""
    (length,) = integers(parts, 5, order) or [0]
    raw = bytes(take(parts)[1])
    padded = [raw[i : i + length] for i in range(0, len(raw) - length + 1, length)] if length > 0 else []
    if not padded:
        raise ValueError(f"the struct {name!r} has no fields")
    return [part.split(b"\0")[0].decode("latin-1") for part in padded]


def nested(parts, order, depth):
    """The array in a cell or field."""
    _, body = take(parts, _MATRIX)
    return matrix(elements(body, order), order, depth + 1)[1] if len(body) else np.empty((0, 0))


def numbers(parts, order, dims):
    """An array of numbers as they are stored."""
    kind, raw = take(parts)
    if kind not in _STORED:
        raise ValueError(f"it has numbers of type {kind}")
    stored = np.dtype(order + _STORED[kind])
    if len(raw) != math.prod(dims) * stored.itemsize:
        raise ValueError(f"it has {len(raw)} bytes for an array of the shape {dims}")
    return np.frombuffer(raw, stored).astype(stored.newbyteorder("=")).reshape(dims, order="F")


def text(parts, order, dims):
    """str[rows] of a matrix of characters."""
    kind, raw = take(parts)
    if kind not in _TEXT:
        raise ValueError(f"it has text of type {kind}")
    wide = {"<": "-le", ">": "-be"}[order] if _TEXT[kind] in ("utf-16", "utf-32") else ""
    letters = bytes(raw).decode(_TEXT[kind] + wide)
    if len(letters) != math.prod(dims):
        raise ValueError(f"it has {len(letters)} characters for a text of the shape {dims}")
    return np.array([letters[i :: dims[0]] for i in range(dims[0])], str)
