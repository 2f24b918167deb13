"""The pipeline: batches are a function of (seed, step), whoever reads them."""

import dataclasses
import gc
import itertools
import logging
import os
import threading
import time
import types

import numpy as np
import pytest
from absl import flags
from batches import assert_equal, data_config, opened, take
from PIL import Image

from reid_jax.data import images, pipeline, streams
from reid_jax.data.records import Dataset, Record
from reid_jax.data.rows import rows_of
from reid_jax.errors import ConfigError, DataError

COUNTS = (4, 1, 6, 9, 5)  # images of each identity


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder, records, rng = tmp_path_factory.mktemp("pictures"), [], np.random.default_rng(0)
    for pid, count in enumerate(COUNTS):
        for i in range(count):
            path = str(folder / f"{pid}_{i}.png")
            Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8)).save(path)
            records.append(Record(path, pid, i % 3))
    return Dataset("tiny", str(folder), tuple(records), (), (), ("c1", "c2", "c3"))


def config(**fields):
    small = dict(height=16, width=8, ids=3, instances=2, pad_crop=2, threads=2, prefetch=2)
    return data_config(**{**small, **fields})


def test_batch_contents(dataset):
    data = config()
    per_epoch = streams.pk(rows_of(dataset)[0], data, 0).steps_per_epoch
    assert per_epoch == 4  # groups 2, 1, 3, 4, 2
    for b in take(dataset, data, 2 * per_epoch + 1):
        shapes = {k: (v.shape, v.dtype.name) for k, v in b.items()}
        assert shapes == {
            "image": ((6, 16, 8, 3), "uint8"),
            "pid": ((6,), "int32"),
            "camid": ((6,), "int32"),
            "index": ((6,), "int32"),
            "flip": ((6, 2), "bool"),
            "crop": ((6, 2, 2), "int32"),
            "erase": ((6, 2, 4), "int32"),
        }
        pids = b["pid"].reshape(3, 2)
        assert (pids[:, 0] == pids[:, 1]).all() and len(set(pids[:, 0])) == 3
        for i, row in enumerate(b["index"]):
            record = dataset.train[row]
            assert (record.pid, record.camid) == (b["pid"][i], b["camid"][i])
            np.testing.assert_array_equal(b["image"][i], images.read(record.path, 16, 8))


@pytest.mark.parametrize("fields", [{"threads": 1}, {"threads": 4, "prefetch": 5}, {"cache_mib": 1}])
def test_threads_and_cache_change_nothing(dataset, fields):
    assert_equal(take(dataset, config(), 9), take(dataset, config(**fields), 9))


def test_processes_change_nothing(dataset):
    assert_equal(take(dataset, config(), 9)[3:], take(dataset, config(workers=2), 6, first_step=3))


@pytest.mark.parametrize("step", [1, 3, 8])
def test_resume_at_any_step(dataset, step):
    assert_equal(take(dataset, config(), 10)[step:], take(dataset, config(), 10 - step, first_step=step))


def test_seeds_differ(dataset):
    a, b = take(dataset, config(), 3), take(dataset, config(), 3, seed=1)
    assert any(not np.array_equal(x["index"], y["index"]) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_shards_concatenate(dataset, count):
    whole = take(dataset, config(), 5)
    parts = [take(dataset, config(), 5, shard=(i, count)) for i in range(count)]
    batches = zip(*parts, strict=True)
    assert_equal(whole, [{k: np.concatenate([p[k] for p in b]) for k in b[0]} for b in batches])


def test_field_errors(dataset):
    for fields, kwargs, match in (
        ({}, {"shard": (0, 4)}, r"data.ids \* config.data.instances is 6, which 4 hosts"),
        ({}, {"shard": (2, 2)}, "shard 2 of 2"),
        ({"workers": 1, "cache_mib": 5}, {}, "cache_mib"),
        ({"workers": -1}, {}, "data.workers"),
        ({"threads": 0}, {}, "data.threads"),
        ({"prefetch": 0}, {}, "data.prefetch"),
        ({"on_broken": "ignore"}, {}, "data.on_broken"),
        ({"flip": 2}, {}, "data.flip"),
    ):
        with pytest.raises(ConfigError, match=match):
            opened(dataset, config(**fields), **kwargs)
    with pytest.raises(DataError, match="data.ids"):
        opened(dataset, config(ids=6))


def test_processes_need_parsed_flags(dataset, monkeypatch):
    monkeypatch.setattr(pipeline, "flags", types.SimpleNamespace(FLAGS=flags.FlagValues()))
    with pytest.raises(ConfigError, match="absl.app.run"):
        opened(dataset, config(workers=1))


def with_broken(dataset, tmp_path):
    """The data set with an empty file at row 6 (identity 2)."""
    path = str(tmp_path / "empty.png")
    open(path, "wb").close()
    train = list(dataset.train)
    train[6] = Record(path, train[6].pid, 2)
    return Dataset("tiny", dataset.root, tuple(train), (), (), dataset.camera_names)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_stops_with_its_name(dataset, tmp_path, workers):
    batches = opened(with_broken(dataset, tmp_path), config(workers=workers))
    with pytest.raises(DataError, match="empty.png"):
        list(itertools.islice(batches, 30))
    assert list(batches) == []  # closed


def test_broken_image_is_skipped(dataset, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "reid_jax")
    got = take(with_broken(dataset, tmp_path), config(on_broken="skip"), 12)
    for a, b in zip(take(dataset, config(), 12), got, strict=True):
        np.testing.assert_array_equal(b["index"], np.where(a["index"] == 6, 7, a["index"]))
        np.testing.assert_array_equal(a["pid"], b["pid"])
        np.testing.assert_array_equal(b["camid"], [dataset.train[i].camid for i in b["index"]])
    assert len([r for r in caplog.records if "empty.png" in r.getMessage()]) == 1


@pytest.mark.parametrize("size, shard", [(4, (0, 1)), (25, (0, 1)), (40, (0, 1)), (8, (1, 2))])
def test_eval_batches(dataset, size, shard):
    with pipeline.eval_batches(dataset.train, config(), size, shard) as batches:
        found = list(batches)
    assert len(found) == -(-25 // size)
    for k, b in enumerate(found):
        rows = np.split(np.arange(k * size, (k + 1) * size), shard[1])[shard[0]]
        np.testing.assert_array_equal(b["mask"], rows < 25)
        np.testing.assert_array_equal(b["index"], np.where(rows < 25, rows, -1))
        assert b["image"].shape == (len(rows), 16, 8, 3) and b["index"].dtype == np.int32
        for row, image in zip(rows, b["image"], strict=True):
            expected = images.read(dataset.train[row].path, 16, 8) if row < 25 else 0
            np.testing.assert_array_equal(image, np.broadcast_to(expected, image.shape))


def test_advice_is_to_do_what_is_not_done(dataset, tmp_path):
    """The error of a broken picture recommends on_broken=skip where it is of use and not set."""
    data, broken = config(), with_broken(dataset, tmp_path)
    with pytest.raises(DataError, match="empty.png.*on_broken=skip"):
        take(broken, data, 30)
    with pytest.raises(DataError) as error:
        list(pipeline.eval_batches(broken.train, config(on_broken="skip"), 5))
    assert "empty.png" in str(error.value) and "on_broken" not in str(error.value)
    alone = dataclasses.replace(broken, train=broken.train[6:7])
    with pytest.raises(DataError, match="no image of this identity can be read") as error:
        take(alone, config(on_broken="skip", ids=1), 1)
    assert "on_broken" not in str(error.value)


def test_features_of_training_pictures_skip_as_training_does(dataset, tmp_path):
    """Methods that make labels embed the training set first: of a broken picture as training sees it."""
    broken = with_broken(dataset, tmp_path)
    batches = list(pipeline.eval_batches(broken.train, config(on_broken="skip"), 25, trains=True))
    np.testing.assert_array_equal(batches[0]["image"][6], batches[0]["image"][7])
    unknown = [dataclasses.replace(r, pid=-1) for r in broken.train]
    batches = list(pipeline.eval_batches(unknown, config(on_broken="skip"), 25, trains=True))
    same = [n for n, r in enumerate(unknown) if r.camid == unknown[6].camid and n > 6]
    np.testing.assert_array_equal(batches[0]["image"][6], batches[0]["image"][same[0]])
    with pytest.raises(DataError, match="empty.png.*on_broken=skip"):
        list(pipeline.eval_batches(broken.train, config(), 25, trains=True))


def test_eval_never_skips(dataset, tmp_path):
    records = with_broken(dataset, tmp_path).train
    with pytest.raises(DataError, match="empty.png"):
        list(pipeline.eval_batches(records, config(on_broken="skip"), 5))
    with pytest.raises(ConfigError, match="batch_size"):
        pipeline.eval_batches(records, config(), 5, (0, 2))


def readers():
    return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}


@pytest.mark.parametrize("how", ["close", "drop"])
def test_threads_end(dataset, how):
    before = readers()
    batches = opened(dataset, config())
    next(batches)
    own = readers() - before
    assert own
    if how == "close":
        batches.close()
        batches.close()
    del batches
    gc.collect()
    end = time.monotonic() + 10
    while own & readers() and time.monotonic() < end:
        time.sleep(0.01)
    assert not own & readers()


def test_processes_end(dataset):
    import multiprocessing

    batches = opened(dataset, config(workers=1))
    next(batches)
    pids = [p.pid for p in multiprocessing.active_children()]
    assert pids
    del batches
    gc.collect()
    assert not multiprocessing.active_children()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
