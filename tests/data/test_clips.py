"""Clips: the recorded reference, the definitions as naive loops, and how evenly frames are drawn."""

from pathlib import Path

import numpy as np
import pytest
from batches import data_config

from reid_jax.data import clips, transforms
from reid_jax.data.tracklets import TrainClips, group, plan_clips
from reid_jax.errors import ConfigError

CASES = Path(__file__).parent.parent / "cases"


def recorded(name):
    return np.load(CASES / f"{name}.npz", allow_pickle=False)


def config(**fields):
    return data_config(**{"frames": 4, **fields})


def test_restricted_random_sampling_equals_the_recorded_case():
    case = recorded("dsanet__sampling")
    assert len(case["in/pairs"]) == 12
    for length, size in case["in/pairs"].tolist():
        found = {
            "chunks": clips.rrs_chunks(length, size),
            "train": clips.rrs(length, size, case[f"in/u_{length}_{size}"]),
            "test": clips.rrs_test(length, size),
            "interleaved": clips.interleaved(length, size),
            "consecutive": clips.consecutive(length, size),
        }
        for name, got in found.items():
            want = case[f"out/{name}_{length}_{size}"]
            np.testing.assert_array_equal(got, want, err_msg=f"{name} {length} {size}", strict=True)


def test_begin_crop_equals_the_recorded_case():
    case = recorded("efl__begin_crop")
    for length in case["in/lengths"].tolist():
        np.testing.assert_array_equal(clips.begin_crop(length, 4), case[f"out/index_{length}"])


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 24, 25, 101, 920])
def test_parts_are_numpys_near_equal_ones(length, size):
    if length >= size:
        want = [(p[0], p[-1] + 1) for p in np.array_split(np.arange(length), size)]
        np.testing.assert_array_equal(clips.rrs_chunks(length, size), want)
    for u in (np.zeros(size), np.full(size, 1 - 2**-53)):
        found = clips.rrs(length, size, u)
        assert found.min() >= 0 and found.max() < length and (np.diff(found) >= 0).all()


def test_strided_long_tracklets():
    """From the first start to the last, [0, length - 25] for four frames of stride 8, all as likely."""
    assert clips.strided(32, 4, 8, [0, 0.5, 0.5, 0.5]).tolist() == [0, 8, 16, 24]
    assert clips.strided(32, 4, 8, [1 - 2**-53, 0, 0, 0]).tolist() == [7, 15, 23, 31]
    starts = [clips.strided(34, 4, 8, [u, 0, 0, 0])[0] for u in (np.arange(1000) + 0.5) / 1000]
    np.testing.assert_array_equal(np.bincount(starts), [100] * 10)


def test_strided_middle_tracklets_draw_every_subset():
    rng, seen = np.random.default_rng(0), {}
    for u in rng.random((6000, 3)):
        frames = clips.strided(5, 3, 8, u)
        assert (np.diff(frames) > 0).all() and frames.dtype == np.int64
        seen[tuple(frames)] = seen.get(tuple(frames), 0) + 1
    assert len(seen) == 10  # 5 over 3
    expected = 600  # standard deviation 23
    assert all(abs(n - expected) < 120 for n in seen.values())
    assert clips.strided(4, 4, 8, rng.random(4)).tolist() == [0, 1, 2, 3]


def test_strided_short_tracklets_repeat():
    assert clips.strided(3, 4, 8, [0.99, 0.0, 0.34, 0.5]).tolist() == [0, 1, 1, 2]
    assert clips.strided(1, 4, 8, [0.99, 0.0, 0.34, 0.5]).tolist() == [0] * 4
    counts = np.bincount(
        np.concatenate([clips.strided(2, 4, 1, u) for u in np.random.default_rng(1).random((2000, 4))])
    )
    assert abs(counts[0] - 4000) < 250


@pytest.mark.parametrize("length", [1, 3, 4, 5, 31, 32, 33, 920])
def test_chunks_hold_every_frame_once(length):
    found = clips.chunks(length, 4)
    np.testing.assert_array_equal(found[found >= 0], np.arange(length))
    assert (found[:-1] >= 0).all() and found.shape == (-(-length // 4), 4)


def test_pieces():
    assert clips.pieces(tuple(range(10)), 3) == [(0, 1, 2), (3, 4, 5), (6, 7, 8, 9)]
    assert clips.pieces((0, 1), 3) == [(0, 1)]
    assert clips.pieces(tuple(range(6)), 3) == [(0, 1, 2), (3, 4, 5)]


@pytest.mark.parametrize("clip", ["strided", "rrs"])
@pytest.mark.parametrize("frames", [1, 4, 6])
def test_training_clips_depend_on_seed_and_position_alone(clip, frames):
    lengths = np.array([1, 3, 6, 40, 200, 31] * 4)
    draw = TrainClips(config(clip=clip, frames=frames), seed=3)
    whole = draw(100, lengths)
    assert whole.shape == (24, frames) and (whole >= 0).all() and (whole < lengths[:, None]).all()
    for i in (0, 5, 17):
        np.testing.assert_array_equal(draw(100 + i, lengths[i : i + 2]), whole[i : i + 2])
    assert (TrainClips(config(clip=clip, frames=frames), seed=4)(100, lengths) != whole).any()
    assert (draw(101, lengths) != whole).any()


def test_clip_numbers_are_not_the_augmentations():
    data = config(frames=8)
    a = transforms.clip_uniforms(3, 0, 4, 8)
    b = transforms.Draws.of(data, 3).uniforms(0, 4)
    assert not set(a.ravel()) & set(b.ravel()) and ((a >= 0) & (a < 1)).all()


@pytest.mark.parametrize("how", ["all", "begin", "rrs", "interleaved", "consecutive"])
def test_test_clips(how):
    lengths = np.array([3, 40, 1, 32, 33])
    owner, frames = plan_clips(lengths, config(test_clip=how, chunk=16))
    assert owner.dtype == np.int32 and (np.diff(owner) >= 0).all()
    for i, length in enumerate(lengths):
        own = frames[owner == i]
        real = own[own >= 0]
        assert real.max() < length
        if how == "all":
            np.testing.assert_array_equal(real, np.arange(length))
            assert frames.shape[1] == 16
        elif how in ("begin", "rrs"):
            want = clips.begin_crop(length, 4) if how == "begin" else clips.rrs_test(length, 4)
            np.testing.assert_array_equal(own, want[None])
        else:
            assert set(real) == set(range(length)) and (own >= 0).all()
    if how == "all":  # never wider than the longest tracklet
        assert plan_clips(np.array([3, 5]), config(chunk=32))[1].shape == (2, 5)


@pytest.mark.parametrize("pad", [True, False])
def test_groups(pad):
    _, frames = plan_clips(np.array([3, 40, 1, 32, 33, 7, 3, 3]), config(chunk=16))
    rows = group(frames, 2, pad)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(frames)))
    assert all(1 <= len(r) <= 2 for r in rows)
    if pad:
        assert np.concatenate(rows).tolist() == list(range(len(frames)))
    else:
        assert all(len(set((frames[r] >= 0).sum(1))) == 1 for r in rows)


def test_field_errors():
    for fields, match in (
        ({"clip": "random"}, "data.clip"),
        ({"frames": 0}, "data.frames"),
        ({"stride": 0}, "data.stride"),
    ):
        with pytest.raises(ConfigError, match=match):
            TrainClips(config(**fields), 0)
    for fields, match in (
        ({"test_clip": "some"}, "data.test_clip"),
        ({"chunk": 0}, "data.chunk"),
        ({"test_clip": "begin", "frames": 0}, "data.frames is 0; data.test_clip=begin"),
    ):
        with pytest.raises(ConfigError, match=match):
            plan_clips(np.array([3]), config(**fields))
