"""Features by reid_jax.load: as the run's own, in order, from any thread, in bounded memory."""

import io
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import reid_jax
from reid_jax import losses, models
from reid_jax.errors import ConfigError, DataError, PictureError, WeightsError
from reid_jax.eval import store
from reid_jax.models import heads
from reid_jax.serve import nets

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def e(trained):
    return reid_jax.load(trained / "run", batch=4, threads=2)


def test_the_package_imports_no_jax():
    code = "import sys, reid_jax; assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    code += "; assert {'load', 'Embedder', 'Gallery'} <= set(dir(reid_jax))"
    code += "; reid_jax.load; bad = {'jax', 'orbax', 'grain', 'sklearn'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}; assert not bad, bad"], cwd=ROOT)
    assert done.returncode == 0


def test_features_are_those_of_the_run(e, trained, files):
    stored = store.load(trained / "run" / "eval" / "final.npz")
    rows = {os.path.basename(p): f for p, f in zip(stored.path, stored.feature, strict=True) if "query" in p}
    want = np.array([rows[os.path.basename(p)] for p in files])
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    found = e(files)
    assert found.shape == (6, e.dim) and found.dtype == np.float32 and len(e.hash) == 64
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found, e(iter(files)))


def test_all_sorts_and_numbers_of_pictures(e, files, arrays):
    want = e(files)
    data = Path(files[0]).read_bytes()
    mixed = [data, Image.open(files[1]), arrays[2], np.stack(arrays[3:5]), Path(files[5])]
    np.testing.assert_allclose(e(mixed), want, atol=1e-6)
    np.testing.assert_allclose(e([a[:, :, ::-1] for a in arrays], channels="bgr"), want, atol=1e-6)
    np.testing.assert_allclose(e(files[0]), want[:1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(want, axis=1), 1, atol=1e-6)
    assert e([]).shape == (0, e.dim)


def test_three_programs_for_chunks_of_four(e, arrays):
    e.warm()
    for count in range(1, 7):
        e(arrays[:count])
    assert sorted(key[1][0] for key in e.net._made if key[0] == "features") == [1, 2, 4]


def test_broken_pictures(e, files, tmp_path):
    broken = tmp_path / "cut.jpg"
    broken.write_bytes(Path(files[0]).read_bytes()[:300])
    given = [*files[:5], str(broken), b""]
    with pytest.raises(PictureError, match=r"^picture 5: .*cut\.jpg cannot be read.*on_broken='nan'"):
        e(given)
    found = e(given, on_broken="nan")
    assert list(e.broken) == [5, 6] and "cut.jpg" in e.broken[5]
    assert np.isnan(found[5:]).all()
    np.testing.assert_allclose(found[:5], e(files[:5]), atol=1e-6)
    assert not e.broken
    with pytest.raises(DataError, match="picture 1: an array of float32.*uint8"):
        e([files[0], np.zeros((4, 4, 3), np.float32)], on_broken="nan")
    with pytest.raises(ConfigError, match="on_broken is 'skip'"):
        e([], on_broken="skip")


def test_threads_give_the_same_bits(e, arrays):
    want = [e(arrays[:n]) for n in range(1, 7)]
    found = {}

    def work(number):
        for _ in range(3):
            for n in range(1, 7):
                found[number, n] = e(arrays[:n])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(found) == 24
    for (_, n), features in found.items():
        np.testing.assert_array_equal(features, want[n - 1])


@pytest.mark.parametrize("count", [400, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_stream_without_end_stays_small(e, count):
    """Pictures are generated as they are needed, two chunks ahead at most, and let go of."""
    made, begin = 0, count // 4 if count < 1000 else 1000

    def endless():
        nonlocal made
        while True:
            made += 1
            yield np.zeros((64, 64, 3), np.uint8)

    stream, least, most = e.stream(endless()), None, 0
    tracemalloc.start()
    for first, features in stream:
        assert len(features) == 4 and made <= first + 12
        if first == begin:
            least = tracemalloc.get_traced_memory()[0]
        if first >= count:
            most = tracemalloc.get_traced_memory()[0]
            break
    tracemalloc.stop()
    assert most - least < 40_000, most - least  # three pictures


def test_tracklets_by_the_methods_rule(e, files):
    vectors = [e.net.run(e.net.vectors, e.reader(f)[None], np.ones(1, bool)) for f in files]
    want = np.asarray(e.net.run(e.net.pooled, np.float32(np.mean(vectors, 0))))[0]
    np.testing.assert_allclose(e.tracklet(files), want, atol=1e-6)
    np.testing.assert_allclose(e.tracklet(files[0]), e(files[0])[0], atol=1e-6)
    with pytest.raises(DataError, match="no frames"):
        e.tracklet([])


def test_crops(e, arrays):
    frame = np.zeros((50, 40, 3), np.uint8)
    frame[5:37, 10:26] = arrays[0]
    np.testing.assert_allclose(e.crops(frame, [[10, 5, 26, 37]]), e(arrays[0]), atol=1e-6)
    np.testing.assert_allclose(e.get_features([[10, 5, 26, 37]], frame[..., ::-1]), e(arrays[0]), atol=1e-6)


def test_only_the_leaves_of_the_feature_are_read(e):
    assert all(path.startswith("nets/net/") for path in e.net.used)
    assert not [path for path in e.net.used if "classifier" in path]
    assert len(e.net.used) < len(e.net._paths) / 2
    changed = {path: array.copy() for path, array in e.net.arrays.items()}
    changed[e.net.used[0]].flat[0] += 1
    assert nets.hash_of(changed) != e.hash == nets.hash_of(e.net.arrays)


def test_card(e, trained):
    card = e.card
    assert card["dim"] == e.dim and card["hash"] == e.hash and card["input"]["size"] == list(e.size)
    assert set(card["thresholds"]) >= {"fpir", "fmr"} and card["figures"]["protocol"] == "market"
    assert card["parameters"] > 100


def test_devices(e, trained):
    assert nets.find_device(None) == nets.find_device("cpu") == jax.local_devices()[0]
    assert nets.find_device("cpu:3") == nets.find_device(jax.local_devices()[3]) == jax.local_devices()[3]
    for wrong in ("cuda:9", "cpu:99", "cpu:x", "toaster"):
        with pytest.raises(ConfigError, match=f"device is '{wrong}'; this machine has cpu:0"):
            nets.find_device(wrong)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(backend="torch"), "backend is 'torch'; it must be one of 'auto', 'jax', 'onnx'"),
        (dict(backend="onnx"), "is a run; write its ONNX first: reid_jax export"),
        (dict(batch=0), "batch is 0"),
        (dict(threads="x"), "threads is 'x'"),
        (dict(net="teacher"), "'teacher'; this method and mode have auto, all, net"),
        (dict(net="all"), "one network at a time"),
        (dict(checkpoint="77"), "use best, latest or one of"),
        (dict(decoder="x"), "config.data.decoder is 'x'"),
    ],
)
def test_what_cannot_be_loaded(trained, options, text):
    with pytest.raises(ConfigError, match=text):
        reid_jax.load(trained / "run", **options)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="none is no folder; give the workdir of a run"):
        reid_jax.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="hf://x is no address of a model"):
        reid_jax.load("hf://x")
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(WeightsError, match="is no card of an export"):
        reid_jax.load(tmp_path)


def test_parts_as_a_library():
    net = heads.build({"backbone": "narrow", "narrow_widths": (4, 8)}, 5)
    assert net.top.num_classes == 5 and models.build is heads.build and models.Club
    with pytest.raises(ConfigError, match="no_such is no field"):
        heads.build({"no_such": 1}, 5)
    assert all(callable(getattr(losses, name)) for name in losses.__all__)


def test_twin_of_a_turned_picture(e, files):
    """A picture and its copy that is turned back by its tag have one feature."""
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image = Image.open(files[0])
    image.transpose(Image.Transpose.ROTATE_90).save(out, "PNG", exif=exif)
    np.testing.assert_allclose(e(out.getvalue()), e(image), atol=1e-6)
