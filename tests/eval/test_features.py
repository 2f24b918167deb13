"""Embedding in batches, stored feature sets and the camera probe."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import DataError
from reid_jax.eval import embed, probe, store


def batches(count, size):
    """Images whose value is their number, the last batch padded."""
    for start in range(0, count, size):
        value = np.arange(start, start + size)
        image = np.broadcast_to(value[:, None, None, None], (size, 2, 2, 3)).astype(np.uint8)
        yield {"image": image, "mask": value < count}


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (2, 5)])
def test_embed_keeps_order_and_drops_padding(count, size):
    got = embed.embed(lambda batch: jnp.asarray(batch["image"][:, 0, 0], jnp.bfloat16), batches(count, size))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.repeat(np.arange(count), 3).reshape(count, 3))


def test_embed_dispatches_ahead():
    """The next batch is dispatched before the last result is read, and only one is waiting."""
    events = []

    class Result:
        def __init__(self, batch):
            self.image = batch["image"]
            events.append(("dispatch", int(self.image[0, 0, 0, 0])))

        def __array__(self, dtype=None, copy=None):
            events.append(("read", int(self.image[0, 0, 0, 0])))
            return self.image[:, 0, 0].astype(dtype)

    embed.embed(Result, batches(6, 2))
    assert [e[0] for e in events] == ["dispatch", "dispatch", "read", "dispatch", "read", "read"]


def test_embed_without_images():
    with pytest.raises(DataError, match="no images"):
        embed.embed(lambda batch: batch["image"], [])


def feature_set(n=5):
    return store.FeatureSet(
        feature=np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32),
        pid=np.arange(n, dtype=np.int32) - 1,
        camid=np.zeros(n, np.int32),
        path=np.array([f"gallery/{i:04d}ä.jpg" for i in range(n)]),
        split=np.array(["query"] * 2 + ["gallery"] * (n - 2)),
    )


def test_store_round_trip(tmp_path):
    path, features = tmp_path / "eval" / "final.npz", feature_set()
    store.save(path, features)
    store.save(path, features)  # over an existing file
    loaded = store.load(path)
    for name in ("feature", "pid", "camid", "path", "split"):
        a, b = getattr(loaded, name), getattr(features, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert len(loaded.of("query")) == 2 and len(loaded.of("gallery")) == 3
    assert os.listdir(path.parent) == ["final.npz"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "final.npz"
    store.save(path, feature_set())
    before = path.read_bytes()

    def full(*args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match="final.npz: No space left"):
        store.save(path, feature_set(9))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["final.npz"]


@pytest.mark.parametrize(
    "kind", ["truncated", "flipped", "text", "empty", "npy", "pickle", "fields", "lengths"]
)
def test_unreadable_files(tmp_path, kind):
    path = tmp_path / "final.npz"
    store.save(path, feature_set())
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped":
        path.write_bytes(whole.replace(feature_set().feature.tobytes()[:8], b"\x00" * 8))
    elif kind in ("text", "empty"):
        path.write_bytes(b"hello" if kind == "text" else b"")
    elif kind == "npy":
        with open(path, "wb") as f:
            np.save(f, np.zeros(3))
    else:
        arrays = {k: getattr(feature_set(), k) for k in ("feature", "pid", "camid", "path", "split")}
        if kind == "pickle":
            arrays["path"] = arrays["path"].astype(object)
        elif kind == "fields":
            del arrays["camid"]
        else:
            arrays["pid"] = arrays["pid"][:3]
        np.savez(path, **arrays)
    with pytest.raises(DataError, match="final.npz"):
        store.load(path)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="no stored features"):
        store.load(tmp_path / "final.npz")


def test_save_refuses_what_does_not_fit(tmp_path):
    features = feature_set()
    with pytest.raises(DataError, match="array pid"):
        store.save(
            tmp_path / "x.npz", store.FeatureSet(features.feature, features.pid[:2], *[features.camid] * 3)
        )


def probe_problem(strength):
    """Features of 40 identities seen by 4 cameras, with camera offsets of a given strength."""
    rng = np.random.default_rng(0)
    pids, camids = np.repeat(np.arange(1, 41), 16), np.tile(np.repeat(np.arange(4), 4), 40)
    features = rng.standard_normal((len(pids), 12)) + 3 * rng.standard_normal((41, 12))[pids]
    return features + strength * rng.standard_normal((4, 12))[camids], camids, pids


def test_probe_finds_cameras_only_where_they_are():
    weak, present, absent = probe_problem(1.0), probe_problem(6.0), probe_problem(0.0)
    assert probe.camera_probe(*present) > 90
    assert abs(probe.camera_probe(*absent) - 25) < 8
    assert probe.chance(*absent[1:]) == 25
    accuracy = [probe.camera_probe(*weak, seed=s) for s in (1, 2, 2)]
    assert 30 < accuracy[0] < 95
    assert accuracy[0] != accuracy[1] == accuracy[2]


def test_chance_is_the_commonest_camera_of_the_training_half():
    """Every identity has two images in camera 3 and one in camera 0."""
    assert probe.chance([3, 0, 3] * 4, np.repeat([1, 2, 3, 4], 3)) == pytest.approx(200 / 3)


def test_probe_does_not_score_learned_identities():
    """Features that name the identity, one camera each: memorising gains nothing on new identities."""
    pids = np.repeat(np.arange(60), 5)
    camids = np.random.default_rng(0).integers(0, 4, 60)[pids]
    assert probe.camera_probe(np.eye(60)[pids], camids, pids) < 45


def test_probe_needs_identities_and_cameras():
    with pytest.raises(DataError, match="two identities"):
        probe.camera_probe(np.ones((4, 2)), [0, 1, 0, 1], [1, 1, 1, 1])
    with pytest.raises(DataError, match="two cameras"):
        probe.camera_probe(np.ones((4, 2)), [0, 0, 0, 0], [1, 1, 2, 2])
    with pytest.raises(DataError, match="3 identities but 4 cameras"):
        probe.camera_probe(np.ones((4, 2)), [0, 0, 0, 0], [1, 1, 2])
