"""Streams: what a batch holds, its views, blocks of rows, domains over hosts, second streams."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from batches import assert_equal, data_config, opened, take
from PIL import Image

from reid_jax.data import images, streams
from reid_jax.data.records import Dataset, Record
from reid_jax.data.rows import Rows, hide, rows_of
from reid_jax.data.transforms import Draws
from reid_jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """40 pictures of 8 identities by 3 cameras, identities 0..4 in domain 0, 5..7 in domain 1."""
    folder, records, rng = tmp_path_factory.mktemp("pictures"), [], np.random.default_rng(0)
    for n in range(40):
        path = str(folder / f"{n}.png")
        Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8)).save(path)
        labels = {"points": rng.random((2, 3)), "mask": n}
        records.append(Record(path, n // 5, n % 3, (), int(n >= 25), labels))
    return Dataset("tiny", str(folder), tuple(records), (), (), ("c1", "c2", "c3"), domain_names=("a", "b"))


def config(**fields):
    small = dict(height=16, width=8, ids=2, instances=2, pad_crop=2, threads=2, prefetch=2)
    return data_config(**{**small, **fields})


BUILDS = {
    "pk": {},
    "uniform": {},
    "gallery": {"views": ("strong", "weak", "strong")},
    "every_camera": {},
    "shuffled": {"views": ("weak",)},
    "cameras": {},
    "domains": {},
    "triples": {},
}


@pytest.mark.parametrize("name", BUILDS)
def test_example_looks_as_the_batches(dataset, name):
    data, build = config(), getattr(streams, name)
    stream = build(rows_of(dataset)[0], data, 3, **BUILDS[name])
    batches = take(dataset, data, 3, seed=3, build=build, **BUILDS[name])
    example = stream.example(data, stream.size)
    for b in batches:
        assert {k: (v.shape, v.dtype) for k, v in b.items()} == {
            k: (v.shape, v.dtype) for k, v in example.items()
        }
    assert stream.example(data)["image"].shape[0] == 2


@pytest.mark.parametrize("name", BUILDS)
def test_hosts_and_resumption(dataset, name):
    options = {"build": getattr(streams, name), **BUILDS[name]}
    whole = take(dataset, config(), 5, **options)
    assert_equal(whole[3:], take(dataset, config(threads=1), 2, first_step=3, **options))
    if name != "cameras":  # 3 cameras with 2 images each
        halves = [take(dataset, config(), 5, shard=(i, 2), **options) for i in (0, 1)]
        joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves, strict=True)]
        assert_equal(whole, joined)


def test_columns_are_those_of_the_rows(dataset):
    rows = rows_of(dataset)[0]
    assert (rows.num_pids, rows.num_cams, rows.num_domains, rows.ids_of_domains) == (8, 3, 2, (5, 3))
    for b in take(dataset, config(), 4):
        for i, row in enumerate(b["index"]):
            record = dataset.train[row]
            assert (b["pid"][i], b["camid"][i], b["domain"][i]) == (record.pid, record.camid, record.domain)
            np.testing.assert_array_equal(b["points"][i], np.float32(record.labels["points"]))
            assert b["mask"][i] == record.labels["mask"]
        assert b["points"].dtype == np.float32 and b["mask"].dtype == np.int32
    alone = dataclasses.replace(dataset, train=dataset.train[:25])
    assert "domain" not in take(alone, config(), 1)[0]


def test_views(dataset):
    """Weak views are not erased; a third view leaves the first two as they are; all differ."""
    data = config(erase=1.0)
    two, three, mixed = (
        take(dataset, data, 6, views=v)
        for v in (("strong",) * 2, ("strong",) * 3, ("weak", "strong", "strong", "weak"))
    )
    for a, b, c in zip(two, three, mixed, strict=True):
        for name in ("flip", "crop", "erase"):
            np.testing.assert_array_equal(a[name], b[name][:, :2])
        np.testing.assert_array_equal(b["crop"], c["crop"][:, :3])
        np.testing.assert_array_equal(b["erase"][:, 1:], c["erase"][:, 1:3])
        assert not c["erase"][:, [0, 3]].any() and b["erase"][..., 2:].all()
    crops = np.concatenate([b["crop"] for b in mixed])
    assert all((crops[:, i] != crops[:, j]).any() for i, j in itertools.combinations(range(4), 2))
    with pytest.raises(ValueError, match="views are"):
        opened(dataset, data, views=("strong", "hard"))


def test_the_first_views_are_drawn_as_ever():
    """The numbers of a position, from numpy's counter-based generator by hand."""
    draws = Draws(16, 8, 0.5, 2, 0.5, (0.02, 0.4), 0.3, seed=9, views=("strong", "weak", "strong"))
    key = np.random.SeedSequence((9, 0x617567)).generate_state(2, np.uint64)
    numbers = np.random.Generator(np.random.Philox(key=key)).random((20, 2, 208))
    np.testing.assert_array_equal(draws.uniforms(7, 5)[:, :2], numbers[7:12])
    np.testing.assert_array_equal(draws(7, 5)["flip"][:, :2], numbers[7:12, :, 0] < 0.5)
    assert not np.isin(draws.uniforms(7, 5)[:, 2], numbers).any()


def test_pseudo_labels_and_groups(dataset):
    labels = np.arange(40, dtype=np.int32) % 4 - 1
    rows = rows_of(dataset)[0]
    for name in ("pk", "uniform", "gallery", "shuffled"):
        stream = getattr(streams, name)(rows, config(), 0, labels)
        chosen = np.concatenate([stream.sampler.epoch(e).ravel() for e in range(4)])
        assert (labels[chosen] >= 0).all() and stream.alike == "camid"
        np.testing.assert_array_equal(stream.columns["pid"], labels)
    groups = np.where(np.arange(40) < 20, labels * 3 + rows.camid, -1)  # cluster and camera
    for name in ("pk", "uniform"):
        stream = getattr(streams, name)(rows, config(), 0, labels, groups)
        pairs = groups[stream.sampler.epoch(0)].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all() and (labels[stream.sampler.epoch(0)] >= 0).all()
        assert stream.sampler.epoch(0).max() < 20
    by_camera = streams.gallery(rows, config(instances=3), 0).sampler.epoch(0).reshape(-1, 3)
    assert (rows.camid[by_camera[:, 1:]] != rows.camid[by_camera[:, :1]]).all()
    free = streams.gallery(rows, config(instances=3, cross_camera=False), 0).sampler.epoch(0).reshape(-1, 3)
    assert (rows.camid[free[:, 1:]] == rows.camid[free[:, :1]]).any()


def test_a_block_of_rows(dataset):
    """Hidden rows: index, cameras and domains count from 0 in the block; pictures are the block's."""
    moved = [dataclasses.replace(r, camid=r.camid + 3 * r.domain) for r in dataset.train]
    hidden = hide(dataclasses.replace(dataset, train=tuple(moved)), 25, seed=4)
    labelled, unlabelled = rows_of(hidden)
    assert (labelled.start, labelled.num_pids, unlabelled.start, unlabelled.num_pids) == (0, 5, 25, 0)
    assert (unlabelled.num_cams, unlabelled.num_domains, len(unlabelled.pid)) == (3, 1, 15)
    stream = streams.shuffled(unlabelled, config(), 1)
    with stream.open(hidden, config()) as batches:
        seen = list(itertools.islice(batches, stream.steps_per_epoch))
    rows = np.concatenate([b["index"] for b in seen])
    assert len(set(rows.tolist())) == len(rows) == 12 and rows.max() < 15
    for b in seen:
        assert (b["pid"] == -1).all() and "domain" not in b
        for row, camid, image in zip(b["index"], b["camid"], b["image"], strict=True):
            record = hidden.train[25 + row]
            assert camid == record.camid - 3
            np.testing.assert_array_equal(image, images.read(record.path, 16, 8))
    with pytest.raises(DataError, match="0 training identities do not fill"):
        streams.pk(unlabelled, config(), 0)


def test_domains(dataset):
    data = config(ids=2, instances=2, epoch_steps=5)
    for within in ("pk", "gallery"):
        stream = streams.domains(rows_of(dataset)[0], data, 0, within=within)
        assert (stream.size, stream.steps_per_epoch) == (8, 5)
        for b in take(dataset, data, 12, build=streams.domains, within=within):
            assert b["domain"].tolist() == [0, 0, 1, 1] * 2
            assert (np.diff(b["pid"].reshape(4, 2)) == 0).all()
    assert stream.share((1, 2)) == slice(4, 8)
    with pytest.raises(ConfigError, match="every domain, config.data.ids, is 2, which 4 hosts or devices"):
        stream.share((0, 4))
    with pytest.raises(DataError, match="domain 1 of the training set: 3 training identities.*4"):
        streams.domains(rows_of(dataset)[0], config(ids=4), 0)
    with pytest.raises(ConfigError, match="data.epoch_steps is -1"):
        streams.domains(rows_of(dataset)[0], config(epoch_steps=-1), 0)
    one = dataclasses.replace(dataset, train=dataset.train[:25])
    with pytest.raises(DataError, match="come from one domain.*data.domains=camera"):
        streams.domains(rows_of(one)[0], data, 0)


def test_paired_identities(dataset):
    """Cameras as domains: every identity of a batch comes from each camera."""
    train = tuple(dataclasses.replace(r, domain=r.camid) for r in dataset.train)
    cameras = dataclasses.replace(dataset, train=train)
    data = config(ids=2, instances=1, pair_ids=True, epoch_steps=7)
    stream = streams.domains(rows_of(cameras)[0], data, 0)
    assert (stream.size, stream.steps_per_epoch, stream.share((1, 2))) == (6, 7, slice(3, 6))
    for b in take(cameras, data, 9, build=streams.domains):
        assert b["domain"].tolist() == [0, 1, 2] * 2
        assert (b["pid"].reshape(2, 3) == b["pid"].reshape(2, 3)[:, :1]).all() and b["pid"][0] != b["pid"][3]


def test_a_broken_image_is_replaced_within_its_domain(dataset, tmp_path):
    (tmp_path / "empty.png").touch()
    train = [dataclasses.replace(r, domain=r.camid) for r in dataset.train]
    train[6] = dataclasses.replace(train[6], path=str(tmp_path / "empty.png"))  # identity 1, camera 0
    bad = dataclasses.replace(dataset, train=tuple(train))
    data = config(on_broken="skip", instances=1)
    for b in take(bad, data, 20, build=streams.domains):
        assert b["domain"].tolist() == [0, 1, 2] * 2 and 6 not in b["index"]


def test_sizes_of_second_streams():
    data = config(ids=4, instances=3, source_ids=2, meta_instances=5)
    assert streams.sizes(data, "source") == {"ids": 2, "instances": 3}
    assert streams.sizes(data, "meta") == {"ids": 4, "instances": 5}
    pid = np.repeat(np.arange(6), 10).astype(np.int32)
    rows = Rows(0, pid, pid * 0, pid * 0)
    assert streams.pk(rows, data, 0, **streams.sizes(data, "source")).size == 6
    assert streams.shuffled(rows, data, 0, **streams.sizes(data, "meta")).size == 20


def test_streams_need_no_input_pipeline():
    blocked = ("grain", "tensorflow_datasets", "ml_collections", "absl", "tqdm", "orbax", "sklearn", "scipy")
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import reid_jax.data.streams, reid_jax.data.rows, reid_jax.data.triples\n"
    )
    here = Path(streams.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
