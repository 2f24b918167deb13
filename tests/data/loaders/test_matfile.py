"""MATLAB files: what SciPy writes is read as SciPy reads it; what is damaged or another kind is refused."""

import io
import struct

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from reid_jax.data.loaders import matfile

RNG = np.random.default_rng(0)
CELLS = np.empty((2, 3), object)
for at in np.ndindex(CELLS.shape):
    CELLS[at] = RNG.integers(0, 9, (2, 1 + at[1]))
NAMES = np.empty((2, 1), object)
NAMES[:, 0] = ["0001_c1.jpg", "grün"]
VARIABLES = {
    **{f"n_{t}": RNG.integers(0, 100, (3, 4)).astype(t) for t in ("u1", "i2", "u2", "i4", "u4", "i8", "u8")},
    **{"f4": RNG.random((2, 5), np.float32), "f8": RNG.random((5, 1)), "cube": RNG.random((2, 3, 4))},
    **{"empty": np.empty((0, 3)), "one": 7, "flag": np.array([[True, False]])},
    **{"text": "person", "lines": np.array(["ab ", "cde"]), "cells": CELLS, "names": NAMES},
}


def same(a, b):
    if a.dtype == object:
        return a.shape == b.shape and all(same(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True))
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("compressed", [False, True])
def test_as_scipy_reads_it(compressed, tmp_path):
    path = tmp_path / "x.mat"
    savemat(path, VARIABLES, do_compression=compressed)
    found, expected = matfile.load(path, list(VARIABLES)), loadmat(path)
    assert set(found) == set(VARIABLES)
    for name, value in found.items():
        assert same(value, expected[name]), (name, value, expected[name])
    assert set(matfile.load(path, ("f8", "none"))) == {"f8"}


def test_structs_are_tuples_in_the_order_of_their_fields(tmp_path):
    savemat(tmp_path / "x.mat", {"s": {"first": np.arange(3), "second": "b"}})
    found = matfile.load(tmp_path / "x.mat", ("s",))["s"]
    first, second = found[0][0]
    assert found.shape == (1, 1) and first.tolist() == [[0, 1, 2]] and second.tolist() == ["b"]
    assert list(found[0][0].fields) == ["first", "second"] and found[0][0].fields["second"] is second


def test_the_other_byte_order(tmp_path):
    """A file written by hand: one 1 x 2 matrix of 16-bit numbers."""
    flags = struct.pack(">IIII", 6, 8, 10, 0)
    dims, name = struct.pack(">IIii", 5, 8, 1, 2), struct.pack(">HH4s", 1, 1, b"x")
    body = flags + dims + name + struct.pack(">HHhh", 4, 3, 258, -2)
    data = b" " * 124 + b"\x01\x00MI" + struct.pack(">II", 14, len(body)) + body
    (tmp_path / "x.mat").write_bytes(data)
    assert loadmat(io.BytesIO(data))["x"].tolist() == [[258, -2]]
    found = matfile.load(tmp_path / "x.mat", ("x",))["x"]
    assert found.tolist() == [[258, -2]] and found.dtype == np.int16


def test_what_is_not_read(tmp_path):
    path = tmp_path / "x.mat"
    savemat(path, {"c": np.array([1j]), "x": np.ones(2)})
    assert matfile.load(path, ("x",))["x"].tolist() == [[1, 1]]  # others may be of any kind
    with pytest.raises(ValueError, match="'c' is of a kind"):
        matfile.load(path, ("c",))
    for data in (b"", b"hello", b"MATLAB 7.3 MAT-file" + b" " * 200):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="no MATLAB file of version 5"):
            matfile.load(path, ("x",))


def test_a_small_file_cannot_claim_much(tmp_path):
    """Dimensions of 2^30 cells, or numbers, in a file of a few hundred bytes."""
    path, few = tmp_path / "x.mat", struct.pack("<II", 2, 3)
    for value in (CELLS, np.zeros((2, 3))):
        savemat(path, {"x": value})
        data = path.read_bytes()
        at = data.index(few)
        path.write_bytes(data[:at] + struct.pack("<II", 2**15, 2**15) + data[at + 8 :])
        with pytest.raises(ValueError, match="cut off|where an element|bytes for an array"):
            matfile.load(path, ("x",))
