"""Triples and degraded training images: partners, determinism, degradation at the original size."""

import dataclasses

import numpy as np
import pytest
from batches import assert_equal, data_config, take
from PIL import Image

from reid_jax.config import namespace
from reid_jax.data import degrade, streams
from reid_jax.data.records import Dataset, Record
from reid_jax.data.triples import TripleSampler
from reid_jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """12 pictures of 20 x 10 pixels by 3 cameras."""
    folder, records, rng = tmp_path_factory.mktemp("pictures"), [], np.random.default_rng(0)
    for n in range(12):
        path = str(folder / f"{n}.png")
        Image.fromarray(rng.integers(0, 256, (20, 10, 3), np.uint8)).save(path)
        records.append(Record(path, n // 4, n % 3))
    return Dataset("tiny", str(folder), tuple(records), (), (), ("c1", "c2", "c3"))


def config(**fields):
    small = dict(height=16, width=8, ids=4, instances=1, threads=2, prefetch=2)
    return data_config(**{**small, **fields})


def test_partners_are_of_another_camera():
    camids = np.repeat([0, 1, 2], [3, 50, 7])
    sampler = TripleSampler(camids, config())
    seen = np.zeros((60, 60), int)
    for position in range(0, 60_000, 60):
        first, third = sampler.partners(np.arange(60, dtype=np.int32), position)
        assert np.array_equal(first, np.arange(60))
        np.add.at(seen, (first, third), 1)
    assert not seen[camids[:, None] == camids[None]].any()
    # every other-camera image equally often: 1000 draws over 10, 53 or 57 images
    for row, others in ((55, 53), (0, 57), (10, 10)):
        expected = 1000 / others
        found = seen[row][camids != camids[row]]
        assert len(found) == others and abs(found - expected).max() < 6 * np.sqrt(expected)


def test_good_and_poor_images():
    """The good image comes first whichever was drawn."""
    camids = np.tile([0, 1, 2], 10)
    sampler = TripleSampler(camids, config(pairs="semi", poor_cameras=(2,)))
    rows = np.arange(30, dtype=np.int32)
    first, third = sampler.partners(rows, 0)
    assert (camids[first] != 2).all() and (camids[third] == 2).all()
    assert np.array_equal(np.where(camids == 2, third, first), rows)


def test_broken_pictures_are_passed_over(dataset, tmp_path, caplog):
    """Of x_i and x_k, each with the columns of the picture that is shown; else the error says how."""
    path = tmp_path / "cut.png"
    path.write_bytes(open(dataset.train[5].path, "rb").read()[:90])
    cut = dataclasses.replace(dataset.train[5], path=str(path))
    broken = dataclasses.replace(dataset, train=(*dataset.train[:5], cut, *dataset.train[6:]))
    with pytest.raises(DataError, match="cut.png.*on_broken=skip"):
        take(broken, config(), 6, build=streams.triples)
    whole = take(dataset, config(), 6, build=streams.triples)
    passed = take(broken, config(on_broken="skip"), 6, build=streams.triples)
    met = 0
    for a, b in zip(whole, passed, strict=True):
        for end in ("", "_k"):
            expected = np.where(a[f"index{end}"] == 5, 6, a[f"index{end}"])
            met += int((a[f"index{end}"] == 5).sum())
            np.testing.assert_array_equal(b[f"index{end}"], expected)
            for name in ("pid", "camid"):
                column = [getattr(dataset.train[n], name) for n in expected]
                np.testing.assert_array_equal(b[f"{name}{end}"], column)
        same = (a["index"] != 5) & (a["index_k"] != 5)
        np.testing.assert_array_equal(a["image"][same], b["image"][same])
    assert met


def test_no_partners():
    with pytest.raises(DataError, match="several cameras"):
        TripleSampler(np.zeros(9, int), config())
    with pytest.raises(DataError, match="good and poor"):
        TripleSampler(np.array([1, 2, 1]), config(pairs="semi", ids=1))
    with pytest.raises(DataError, match="lower config.data.ids"):
        TripleSampler(np.array([0, 1, 2]), config())


def test_batches(dataset):
    data = config()
    batches = take(dataset, data, 5, build=streams.triples)
    seen = np.concatenate([b["index"] for b in batches[:3]])
    assert np.array_equal(np.sort(seen), np.arange(12))  # an epoch
    for b in batches:
        assert b["image"].shape == (4, 3, 16, 8, 3) and b["image"].dtype == np.uint8
        for end in ("", "_k"):
            records = [dataset.train[i] for i in b[f"index{end}"]]
            assert b[f"pid{end}"].tolist() == [r.pid for r in records]
            assert b[f"camid{end}"].tolist() == [r.camid for r in records]
        for i, k, image in zip(b["index"], b["index_k"], b["image"], strict=True):
            for row, picture in ((i, image[0]), (k, image[2])):
                with Image.open(dataset.train[row].path) as original:
                    assert np.array_equal(picture, original.resize((8, 16), Image.Resampling.BICUBIC))
    assert_equal(batches[2:], take(dataset, data, 3, build=streams.triples, first_step=2))
    halves = [take(dataset, data, 5, build=streams.triples, shard=(h, 2)) for h in (0, 1)]
    joined = [{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*halves, strict=True)]
    assert_equal(batches, joined)
    assert not np.array_equal(
        batches[0]["image"], take(dataset, data, 1, 1, build=streams.triples)[0]["image"]
    )


def test_the_degradation_is_that_of_the_original_picture(dataset):
    """Down-sampled by exactly 2 at 20 x 10, then brought to 16 x 8."""
    data = config()
    data.degrade = namespace({**vars(data.degrade), "ratio": (2.0, 2.0)})
    (batch,) = take(dataset, data, 1, build=streams.triples)
    for row, image in zip(batch["index"], batch["image"], strict=True):
        with Image.open(dataset.train[row].path) as original:
            small = original.resize((5, 10), Image.Resampling.BILINEAR)
            assert np.array_equal(image[1], small.resize((8, 16), Image.Resampling.BICUBIC))


def test_degraded_training_images(dataset):
    """share 0.5 changes about half of the pictures, share 1 all, and nothing else of the batches."""
    plain = take(dataset, config(ids=2, instances=2), 30)
    changed = []
    for share in (0.5, 1.0):
        data = config(ids=2, instances=2)
        data.degrade = namespace({**vars(data.degrade), "share": share, "kind": "ill"})
        found = take(dataset, data, 30)
        images = [(a.pop("image"), b["image"]) for a, b in zip(found, plain, strict=True)]
        assert_equal(found, [{k: v for k, v in b.items() if k != "image"} for b in plain])
        differ = [(a != b).any((1, 2, 3)) for a, b in images]
        changed.append(np.mean(differ))
        darker = [a.mean((1, 2, 3)) < b.mean((1, 2, 3)) for a, b in images]
        assert np.array_equal(darker, differ)
    assert 0.35 < changed[0] < 0.65 and changed[1] == 1


def test_settings_out_of_range():
    section = vars(config().degrade)
    for field, value in (("ratio", (0.5, 2)), ("gain", (1, 0.5)), ("share", 2), ("kind", "rain")):
        with pytest.raises(ConfigError, match=f"data.degrade.{field}"):
            degrade.Settings.of(namespace({**section, field: value}))
