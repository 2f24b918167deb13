"""Killed writers, full disks, damaged files, two writers: what was confirmed stays, and nothing else."""

import contextlib
import os
import shutil
import sqlite3
import threading
import time

import gallery_writer
import numpy as np
import pytest
from gallery_stub import Stub
from gallery_writer import SIZE, batch

from reid_jax.errors import DataError
from reid_jax.serve import file
from reid_jax.serve.gallery import Gallery


def killed(path, first, seconds):
    """What a writer of batches from `first` on has confirmed until it was killed: {number: what was done}."""
    with gallery_writer.start("write", path, first) as writer:
        lines = [writer.stdout.readline()]
        time.sleep(seconds)
        writer.kill()
        lines += writer.stdout.readlines()
    return {int(number): what for what, number in map(str.split, lines)}


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment(tmp_path, kills):
    path, confirmed, rng = str(tmp_path / "g.sqlite"), {}, np.random.default_rng(0)
    for _ in range(kills):
        first = max(confirmed, default=-1) + 2  # the one between may be there though it was not told of
        told = killed(path, first, rng.uniform(0, 0.05))
        last = max(told)
        gallery = Gallery(path, Stub())
        assert gallery.verify() == []
        sizes = gallery.rows().counts("person")
        assert set(sizes.values()) <= {SIZE}  # a batch is whole or absent
        if last % 3 == 2 and f"batch{last}" not in sizes:
            told[last] = "removed"  # and not yet told
        confirmed |= told
        for number, what in confirmed.items():
            assert (f"batch{number}" in sizes) == (what == "added"), number
        assert sizes.keys() - {f"batch{n}" for n in confirmed} <= {f"batch{n + 1}" for n in confirmed}
        for number in list(confirmed)[:3]:
            if f"batch{number}" in sizes:
                place = np.flatnonzero(
                    gallery.rows().person == gallery.rows().names["person"][f"batch{number}"]
                )
                want = batch(number) / np.linalg.norm(batch(number), axis=1, keepdims=True)
                np.testing.assert_allclose(gallery.rows().vector[place], want, rtol=1e-6)
        gallery.close()


def test_disk_full(tmp_path):
    path = str(tmp_path / "g.sqlite")
    with gallery_writer.start("fill", path, 200_000) as writer:
        number, said = writer.stdout.read().split(" ", 1)
    assert "is the disk full?" in said and int(number) > 3
    with Gallery(path, Stub()) as gallery:
        assert gallery.verify() == [] and len(gallery) == SIZE * int(number)
        gallery.add_features(batch(999))  # room again
        assert len(gallery) == SIZE * (int(number) + 1)
        gallery.file.connection().execute("PRAGMA max_page_count=1")  # raised to the pages there are
        with pytest.raises(DataError, match="full"):
            for n in range(100):
                gallery.add_features(batch(n))
        assert gallery.verify() == [] and len(gallery) % SIZE == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a gallery of 200 entries."""
    path = tmp_path_factory.mktemp("whole") / "g"
    with Gallery(path, Stub()) as gallery:
        gallery.add_features(np.concatenate([batch(n) for n in range(5)]), person="anna", camera="door")
    return path.read_bytes()


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path, whole, count):
    """Cut, overwritten, flipped: either all entries are right, or a DataError says so."""
    rng, path = np.random.default_rng(0), tmp_path / "g"
    want, told = None, 0
    path.write_bytes(whole)
    with Gallery(path, mode="r") as gallery:
        want = gallery.rows()
    for trial in range(count):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        if trial % 3 == 0:
            data = data[:at]
        elif trial % 3 == 1:
            data[at : at + 64] = rng.bytes(64)
        else:
            data[at] ^= 1 << int(rng.integers(8))
        for name in os.listdir(tmp_path):
            os.remove(tmp_path / name)
        path.write_bytes(data)
        try:
            with Gallery(path, Stub(), mode="ra"[trial % 2]) as gallery:
                rows = gallery.rows()
                for field in ("id", "person", "camera", "time", "vector"):
                    np.testing.assert_array_equal(getattr(rows, field), getattr(want, field))
                gallery.search(rows.vector[0])
                gallery.verify()
        except DataError as error:
            told += 1
            assert str(path) in str(error)
    assert told > count // 4


def test_what_is_no_gallery(tmp_path):
    for contents in (b"", b"no database", bytes(5000)):
        (tmp_path / "g").write_bytes(contents)
        for mode in "ra":
            with pytest.raises(DataError, match="damaged|no gallery"):
                Gallery(tmp_path / "g", Stub(), mode=mode)
    with contextlib.closing(sqlite3.connect(tmp_path / "other")) as connection:
        connection.execute("CREATE TABLE entry(id)")
    with pytest.raises(DataError, match="is no gallery"):
        Gallery(tmp_path / "other", Stub())
    with pytest.raises(DataError, match="cannot be opened|no gallery"):
        Gallery(tmp_path, Stub())


def test_a_second_writer_waits_then_says_why(tmp_path):
    path = str(tmp_path / "g")
    Gallery(path, Stub()).close()
    writer = gallery_writer.start("hold", path)
    assert writer.stdout.readline() == "held\n"
    gallery = Gallery(path, Stub(), wait=0.2)
    assert len(gallery) == 0  # readers do not wait
    with pytest.raises(DataError, match=rf"written by (process {writer.pid}|another process).* within 0.2 s"):
        gallery.add_features(batch(0))
    patient = Gallery(path, Stub(), wait=30)
    threading.Timer(0.3, writer.communicate, ["let go\n"]).start()
    assert len(patient.add_features(batch(0))) == SIZE
    assert writer.wait() == 0


def test_a_new_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match="No space left"):
        Gallery(tmp_path / "g", Stub())
    assert not os.listdir(tmp_path)
    # a file system that has no links (FAT, say)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    Gallery(tmp_path / "g", Stub()).close()
    assert os.listdir(tmp_path) == ["g"] and os.stat(tmp_path / "g").st_mode & 0o777 == 0o600
    with pytest.raises(DataError, match="exists"):
        file.create(tmp_path / "g", dim=3, model="m")
    monkeypatch.undo()
    shutil.rmtree(tmp_path)
    Gallery(tmp_path / "deep" / "g", Stub()).close()
    assert os.listdir(tmp_path / "deep") == ["g"]
