"""Reading pictures, broken files, the cache."""

import logging
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from reid_jax.data import images
from reid_jax.errors import DataError


def jpeg(path, seed=0, size=(64, 128), mode="RGB"):
    small = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return str(path)


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.jpg"
    if kind == "truncated":
        whole = open(jpeg(path), "rb").read()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "folder":
        path.mkdir()
    elif kind == "png":
        whole = open(jpeg(tmp_path / "whole.png"), "rb").read()
        path.write_bytes(whole[: len(whole) // 2])
    return str(path)


BROKEN = ["truncated", "empty", "text", "folder", "png", "absent"]


@pytest.mark.parametrize("size", [(64, 128), (50, 100), (128, 256), (300, 410), (1, 1), (64, 127)])
@pytest.mark.parametrize("target", [(256, 128), (64, 32)])
def test_equals_pil(tmp_path, size, target):
    path = jpeg(tmp_path / "a.jpg", size=size)
    expected = Image.open(path).convert("RGB").resize((target[1], target[0]), Image.BICUBIC)
    found = images.read(path, *target)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize(
    "mode, suffix", [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("1", "png")]
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    assert images.read(jpeg(tmp_path / f"a.{suffix}", mode=mode), 32, 16).shape == (32, 16, 3)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(DataError, match=f"{kind}.jpg"):
        images.read(path, 32, 16)


@pytest.mark.parametrize("kind", BROKEN)
def test_skip_takes_the_next_of_the_identity(tmp_path, kind, caplog):
    caplog.set_level(logging.WARNING, "reid_jax")
    good = [jpeg(tmp_path / f"g{i}.jpg", i) for i in range(4)]
    paths, pids = [good[0], good[1], broken(tmp_path, kind), good[2], good[3]], [7, 7, 7, 8, 7]
    pool = images.Images(paths, pids, 32, 16, skip=True)
    for _ in range(2):
        out = np.zeros((3, 32, 16, 3), np.uint8)
        used = pool.fill(np.array([2, 3, 0], np.int32), out)
        assert used.tolist() == [4, 3, 0] and used.dtype == np.int32
        np.testing.assert_array_equal(out[0], images.read(good[3], 32, 16))
    (message,) = [r.getMessage() for r in caplog.records]
    assert f"{kind}.jpg" in message and "g3.jpg" in message
    with pytest.raises(DataError, match=f"{kind}.jpg"):
        images.Images(paths, pids, 32, 16).get(2)


def test_skip_wraps_around_and_gives_up(tmp_path):
    good, empty, text = jpeg(tmp_path / "g.jpg"), broken(tmp_path, "empty"), broken(tmp_path, "text")
    pool = images.Images([good, empty, text], [1, 1, 1], 32, 16, skip=True)
    assert pool.get(1)[1] == 0 and pool.get(2)[1] == 0
    pool = images.Images([good, empty, text], [1, 2, 2], 32, 16, skip=True)
    with pytest.raises(DataError, match=r"(?s)no image of this identity.*empty.jpg"):
        pool.get(1)


def test_cache_holds_what_fits(tmp_path, monkeypatch):
    paths = [jpeg(tmp_path / f"{i}.jpg", i) for i in range(5)]
    size = 32 * 16 * 3
    pool = images.Images(paths, [0] * 5, 32, 16, cache_bytes=3 * size + 7)
    reads, read = [], images.read
    monkeypatch.setattr(images, "read", lambda *a: reads.append(a[0]) or read(*a))
    rows, out = np.arange(5, dtype=np.int32), [np.empty((5, 32, 16, 3), np.uint8) for _ in range(2)]
    for o in out:
        pool.fill(rows, o)
    assert reads == paths + paths[3:]
    np.testing.assert_array_equal(*out)
    assert len(pickle.loads(pickle.dumps(pool))._cache) == 0


def test_cache_from_many_threads(tmp_path):
    paths = [jpeg(tmp_path / f"{i}.jpg", i) for i in range(6)]
    expected = np.stack([images.read(p, 32, 16) for p in paths])
    pool = images.Images(paths, [0] * 6, 32, 16, cache_bytes=4 * 32 * 16 * 3)
    results = []

    def work(seed):
        rows = np.random.default_rng(seed).integers(0, 6, 60).astype(np.int32)
        out = np.empty((60, 32, 16, 3), np.uint8)
        pool.fill(rows, out)
        results.append(np.array_equal(out, expected[rows]))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [True] * 6 and len(pool._cache) == 4
