"""PyTorch's two kinds of files around a pickle: a zip archive, and pickles with storages behind them.

`open_file` gives one with `.root`, what its pickle says (see `pickles`); `array` gives a tensor's numbers.
"""

import io
import math
import mmap
import os
import struct
import zipfile
from typing import Any

import numpy as np

from reid_jax.errors import WeightsError
from reid_jax.models.weights.pickles import PICKLE_BYTES, Machine

_MAGIC = 0x1950A86A20F9469CFC6C  # of the files before torch 1.6


class Zip:
    """A file of torch 1.6 and later: ARCHIVE/data.pkl, ARCHIVE/data/KEY, ARCHIVE/byteorder."""

    def __init__(self, path):
        self.archive, self.size = zipfile.ZipFile(path), os.path.getsize(path)
        names = self.archive.namelist()
        if sum(i.file_size for i in self.archive.infolist()) > self.size:
            raise WeightsError("is a zip archive that claims to hold more than its own size")
        pickled = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise WeightsError("is a zip archive, but not of PyTorch (no data.pkl in it)")
        self.folder = pickled[0].removesuffix("data.pkl")
        if f"{self.folder}constants.pkl" in names:
            raise WeightsError("is a TorchScript program, not weights; save its state_dict() instead")
        order = f"{self.folder}byteorder"
        self.big_endian = order in names and self._member(order) == b"big"
        self.root = Machine().run(io.BytesIO(self._member(pickled[0], PICKLE_BYTES)))
        self.read = {}

    def _member(self, name, limit=None):
        info = self.archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise WeightsError(f"holds {name} compressed, as PyTorch never does")
        if limit and info.file_size > limit:
            raise WeightsError(
                f"holds {name} of {info.file_size} bytes, too large for a description of tensors"
            )
        return self.archive.read(info)

    def numbers(self, place):
        """The storage as a flat array."""
        if place.key not in self.read:
            self.read[place.key] = self._member(f"{self.folder}data/{place.key}")
        data = self.read[place.key]
        return _flat(data, place, self.big_endian)

    def close(self):
        self.archive.close()


class Stream:
    """A file of torch before 1.6: pickles one after the other, then the storages."""

    big_endian = False  # numbers are little-endian whatever machine wrote them

    def __init__(self, path):
        with open(path, "rb") as file:
            self.file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._pickle()[0] != _MAGIC:
            raise WeightsError("is no PyTorch file (its magic number is missing)")
        self._pickle(), self._pickle()  # protocol version; the writing machine
        self.root, self.storages = self._pickle()
        self.places = self._find(self._pickle()[0])

    def _pickle(self):
        machine = Machine()
        return machine.run(self.file), machine.storages

    def _find(self, keys):
        """{key: (first byte, bytes)} of all storages."""
        places, at = {}, self.file.tell()
        for key in map(str, keys):
            (numel,) = struct.unpack("<q", self.file[at : at + 8])
            size = numel * self.storages[key].dtype.itemsize
            if not 0 <= size <= len(self.file) - at - 8:
                raise WeightsError("is cut off or damaged: its storages do not fit into it")
            places[key] = (at + 8, size)
            at += 8 + size
        return places

    def numbers(self, place):
        """The storage as a flat array."""
        at, size = self.places[place.key]
        return _flat(self.file[at : at + size], place, False)

    def close(self):
        self.file.close()


def _flat(data, place, big_endian):
    size = place.dtype.itemsize
    first, count = place.start * size, place.numel * size
    if len(data) < first + count:
        raise WeightsError(f"holds {len(data)} bytes of a storage of {place.numel} {place.dtype} numbers")
    bits = np.frombuffer(data, f"{'>' if big_endian else '<'}u{size}", place.numel, first)
    return bits.astype(f"=u{size}", copy=False).view(place.dtype)


def array(source, t):
    """The numpy array of a Tensor."""
    flat = source.numbers(t.storage).view(t.dtype)
    strides = [s * t.dtype.itemsize for s in t.strides]
    if not math.prod(t.shape):
        return np.zeros(t.shape, t.dtype)
    return np.lib.stride_tricks.as_strided(flat[t.offset :], t.shape, strides, writeable=False)


def walk(root):
    """(path, value) of all in nested dicts and lists, in order, each container once; paths end at 8 names."""
    waiting, seen = [((), root)], set()
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if type(value) in (dict, list, tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inside = [((*path, k) if len(path) < 8 else path, v) for k, v in items]
            waiting.extend(reversed(inside))


def open_file(path) -> Any:
    """Zip or Stream with `.root`, the file's object."""
    return Zip(path) if zipfile.is_zipfile(path) else Stream(path)
