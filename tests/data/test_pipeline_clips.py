"""The pipeline on tracklets: training clips, broken frames, test clips in bounded chunks."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import video_trees as trees
from batches import assert_equal, data_config, opened, take

from reid_jax.data import augment, clips, images, pipeline
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import ConfigError, DataError

LENGTHS = ((5, 40), (1, 2), (9, 33, 12, 4))  # frames of each identity's tracklets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder, records = tmp_path_factory.mktemp("tracklets"), []
    for pid, lengths in enumerate(LENGTHS):
        for i, length in enumerate(lengths):
            frames = [
                trees.picture(folder / f"{pid}_{i}" / f"{f:03d}.png", [pid, i, f], (4, 8))
                for f in range(length)
            ]
            records.append(Record(frames[0], pid, i % 3, tuple(frames)))
    return Dataset("tiny", str(folder), tuple(records), (), (), ("c1", "c2", "c3"), kind="video")


def config(**fields):
    small = dict(height=16, width=8, ids=3, instances=2, frames=4, pad_crop=2, threads=2, prefetch=2)
    return data_config(**{**small, **fields})


def frame_numbers(record, clip):
    """Which frames of a record a clip u8[T,H,W,3] shows (every picture is another)."""
    pictures = [images.read(f, 16, 8) for f in record.frames]
    return [next(i for i, p in enumerate(pictures) if (p == shown).all()) for shown in clip]


@pytest.mark.parametrize("clip", ["strided", "rrs"])
def test_batch_contents(dataset, clip):
    data = config(clip=clip, stride=3)
    seen = set()
    for b in take(dataset, data, 6):
        shapes = {k: (v.shape, v.dtype.name) for k, v in b.items()}
        assert shapes == {
            "image": ((6, 4, 16, 8, 3), "uint8"),
            "pid": ((6,), "int32"),
            "camid": ((6,), "int32"),
            "index": ((6,), "int32"),
            "flip": ((6, 2), "bool"),
            "crop": ((6, 2, 2), "int32"),
            "erase": ((6, 2, 4), "int32"),
        }
        for i, row in enumerate(b["index"]):
            record = dataset.train[row]
            assert (record.pid, record.camid) == (b["pid"][i], b["camid"][i])
            found = frame_numbers(record, b["image"][i])
            assert found == sorted(found)
            steps = set(np.diff(found).tolist())
            if clip == "strided" and len(record) >= 12:
                assert steps == {3}
            elif len(record) >= 4:
                assert 0 not in steps
            if clip == "rrs" and len(record) >= 4:
                low, high = clips.rrs_chunks(len(record), 4).T
                assert (low <= found).all() and (found < high).all()
            seen.add((int(row), tuple(found)))
    assert len(seen) > 14  # clips of a tracklet differ from draw to draw


@pytest.mark.parametrize(
    "fields", [{"threads": 1}, {"threads": 4, "prefetch": 5}, {"cache_mib": 1}, {"workers": 2}]
)
def test_readers_change_nothing(dataset, fields):
    assert_equal(take(dataset, config(), 5), take(dataset, config(**fields), 5))


@pytest.mark.parametrize("step", [1, 4])
def test_resume_and_shards(dataset, step):
    whole = take(dataset, config(), 6)
    assert_equal(whole[step:], take(dataset, config(), 6 - step, first_step=step))
    parts = [take(dataset, config(), 6, shard=(i, 3)) for i in range(3)]
    joined = [{k: np.concatenate([p[k] for p in b]) for k in b[0]} for b in zip(*parts, strict=True)]
    assert_equal(whole, joined)
    other = take(dataset, config(), 6, seed=1)
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, other, strict=True))


def test_kind_must_fit(dataset):
    with pytest.raises(ConfigError, match="tiny holds tracklets: set config.data.frames"):
        opened(dataset, config(frames=0))
    still = dataclasses.replace(dataset, kind="image")
    with pytest.raises(ConfigError, match="data.frames is 4, but tiny holds images"):
        opened(still, config())


# ---- broken frames --------------------------------------------------------------------------------------
def broken(path, kind):
    if kind == "cut":
        whole = open(trees.picture(path, 1, (64, 128)), "rb").read()
        open(path, "wb").write(whole[: len(whole) // 2])
    elif kind == "empty":
        open(path, "wb").close()
    elif kind == "text":
        trees.write(path, "no picture")
    return str(path)


def damage(dataset, tmp_path, kind, row, places):
    """The data set with other files at some frames of a tracklet."""
    frames = list(dataset.train[row].frames)
    for i in places:
        frames[i] = broken(tmp_path / f"{kind}{i}.jpg", kind)
    train = list(dataset.train)
    train[row] = dataclasses.replace(train[row], path=frames[0], frames=tuple(frames))
    return dataclasses.replace(dataset, train=tuple(train))


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "absent"])
def test_broken_frame(dataset, tmp_path, kind, caplog):
    """It stops the run with its name; skipped, the next frame of the tracklet stands in, warned of once."""
    caplog.set_level(logging.WARNING, "reid_jax")
    bad = damage(dataset, tmp_path, kind, 3, [1])  # identity 1, two frames
    with pytest.raises(DataError, match=f"{kind}1.jpg"):
        take(bad, config(), 9)
    whole, got = take(dataset, config(), 9), take(bad, config(on_broken="skip"), 9)
    replaced = 0
    for a, b in zip(whole, got, strict=True):
        for name in a:
            if name != "image":
                np.testing.assert_array_equal(a[name], b[name])
        for i, row in enumerate(a["index"]):
            want = frame_numbers(dataset.train[row], a["image"][i])
            if row == 3:
                replaced += want.count(1)
                want = [0] * 4
            assert frame_numbers(dataset.train[row], b["image"][i]) == want
    assert replaced
    assert len([r for r in caplog.records if f"{kind}1.jpg" in r.getMessage()]) == 1


def test_tracklet_without_a_readable_frame(dataset, tmp_path):
    bad = damage(dataset, tmp_path, "empty", 3, [0, 1])
    with pytest.raises(DataError, match="no image of this tracklet can be read; the first failure: .*empty"):
        take(bad, config(on_broken="skip"), 9)


def test_testing_never_skips(dataset, tmp_path):
    bad = damage(dataset, tmp_path, "cut", 3, [1])
    with pytest.raises(DataError, match="cut1.jpg"):
        list(pipeline.eval_clips(bad.train, config(on_broken="skip"), 8))


# ---- testing --------------------------------------------------------------------------------------------
def shown(records, batches):
    """{record: [numbers of the frames shown]} of test batches; padding must be black and marked."""
    found = {i: [] for i in range(len(records))}
    for b in batches:
        assert (b["mask"] == (b["index"] >= 0)).all() and not b["frames"][~b["mask"]].any()
        assert (b["image"][~b["frames"]] == 0).all()
        for row, clip, real in zip(b["index"], b["image"], b["frames"], strict=True):
            if row >= 0:
                found[int(row)].append(frame_numbers(records[row], clip[real]))
    return found


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("batch_size, multiple", [(8, 1), (16, 2), (1, 8)])
def test_all_frames_in_chunks(dataset, pad, batch_size, multiple):
    data = config(chunk=8)
    with pipeline.eval_clips(dataset.train, data, batch_size, pad=pad, multiple=multiple) as batches:
        batches = list(batches)
    sizes = {b["image"].shape[0] for b in batches}
    assert len(sizes) == 1 and sizes.pop() % multiple == 0
    lengths = {b["image"].shape[1] for b in batches}
    assert lengths == {8} if pad else lengths == {1, 2, 4, 5, 8}
    if not pad:
        assert all(b["frames"][b["mask"]].all() for b in batches)
    for row, parts in shown(dataset.train, batches).items():
        want = [
            list(range(s, min(s + 8, len(dataset.train[row])))) for s in range(0, len(dataset.train[row]), 8)
        ]
        assert sorted(parts) == want


@pytest.mark.parametrize("how", ["begin", "rrs"])
def test_one_clip_each(dataset, how):
    found = shown(dataset.train, pipeline.eval_clips(dataset.train, config(test_clip=how), 12))
    pick = clips.begin_crop if how == "begin" else clips.rrs_test
    assert found == {i: [pick(len(r), 4).tolist()] for i, r in enumerate(dataset.train)}


def test_images_count_as_tracklets_of_one_frame(dataset):
    records = [Record(r.path, r.pid, r.camid) for r in dataset.train]
    (batch,) = pipeline.eval_clips(records, config(), 8)
    assert batch["image"].shape == (8, 1, 16, 8, 3) and batch["frames"].all()
    for record, clip in zip(records, batch["image"], strict=True):
        np.testing.assert_array_equal(clip[0], images.read(record.path, 16, 8))


def test_long_tracklets_stay_in_small_batches(dataset):
    """920 frames (MARS' longest) never lie in memory together."""
    long = Record(dataset.train[1].path, 0, 0, (dataset.train[1].frames * 23)[:920])
    with pipeline.eval_clips([long], config(), 64) as batches:
        found = [(b["image"].shape, int(b["frames"].sum())) for b in batches]
    assert {shape for shape, _ in found} == {(2, 32, 16, 8, 3)}
    assert sum(n for _, n in found) == 920 and len(found) == 15


def test_eval_errors(dataset):
    with pytest.raises(ConfigError, match="eval.batch_size"):
        pipeline.eval_clips(dataset.train, config(), 0)
    with pytest.raises(ConfigError, match="data.test_clip"):
        pipeline.eval_clips(dataset.train, config(test_clip="none"), 8)


# ---- augmentation ---------------------------------------------------------------------------------------
def test_frames_of_a_clip_are_augmented_alike(dataset):
    """A view of clips equals the view of their frames one by one, all with the clip's draw."""
    data = config(erase=0.7)
    (b,) = take(dataset, data, 1)
    fixed = dict(pad=2, mean=data.mean, std=data.std, fill=data.erase_fill, dtype=jnp.float32)
    view = jax.jit(lambda *a: augment.view(*a, **fixed))
    draws = [b[name][:, 1] for name in ("flip", "crop", "erase")]
    assert draws[0].any() and (draws[1] != 2).any() and draws[2].any()
    found = view(b["image"], *draws)
    assert found.shape == (6, 4, 16, 8, 3)
    for t in range(4):
        np.testing.assert_array_equal(found[:, t], view(b["image"][:, t], *draws))
