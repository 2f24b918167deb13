"""Optional decoders: near PIL's pictures, PIL's errors, the way out when a package is missing."""

import io
import pickle
import sys

import numpy as np
import pytest
from batches import opened
from PIL import Image

from reid_jax.config import defaults, namespace
from reid_jax.data import decode, images, pipeline
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import ConfigError, DataError

FAST = ("cv2", "simplejpeg")


@pytest.fixture(autouse=True, scope="module")
def packages():
    pytest.importorskip("cv2")
    pytest.importorskip("simplejpeg")


def picture(size=(64, 128), seed=0):
    """Smooth random colours, as in a small photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encode(image, suffix="JPEG", **options):
    out = io.BytesIO()
    image.save(out, suffix, **options)
    return out.getvalue()


def difference(contents, name, height=256, width=128):
    """Largest difference from PIL's picture, 0 to 255."""
    found, expected = (decode.find(n)(contents, height, width) for n in (name, "pil"))
    assert found.shape == expected.shape == (height, width, 3) and found.dtype == np.uint8
    return int(np.abs(found.astype(int) - expected).max())


@pytest.mark.parametrize("name", FAST)
def test_largest_difference_when_enlarging(name):
    """4 of 255 on smooth pictures; 28 on noise, where the sharper bicubic kernel shows most."""
    assert max(difference(encode(picture(seed=s), quality=90), name) for s in range(5)) <= 4
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8))
    assert 5 < difference(encode(noise, "PNG"), name) <= 30


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("size", [(128, 256), (300, 400), (200, 100), (60, 300)])
def test_same_pixels_when_nothing_is_enlarged_only(name, size):
    """Without resizing and when shrinking, in one direction or both, only the decoder could differ."""
    assert difference(encode(picture(size), quality=90), name) <= 1


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("mode, suffix", [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG")])
def test_modes_and_formats(name, mode, suffix):
    assert difference(encode(picture().convert(mode), suffix), name, 128, 64) <= 1


@pytest.mark.parametrize("name", FAST)
def test_pictures_are_not_turned(name):
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: 90 degrees
    assert difference(encode(picture(), exif=turned), name, 128, 64) <= 1


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kind", ["half", "empty", "text", "png"])
def test_broken_files_fail_as_with_pil(tmp_path, name, kind):
    whole = encode(picture(), "PNG" if kind == "png" else "JPEG")
    path = tmp_path / "broken.jpg"
    path.write_bytes({"empty": b"", "text": b"no picture"}.get(kind, whole[: len(whole) // 2]))
    for decoder in ("pil", name):
        with pytest.raises(DataError, match="broken.jpg cannot be read"):
            images.read(str(path), 32, 16, decode.find(decoder))


def test_decoders_are_really_used(monkeypatch):
    monkeypatch.setattr(decode, "with_pil", lambda *a: pytest.fail("PIL was asked"))
    for name in FAST:
        decode.find(name)(encode(picture()), 256, 128)
    with monkeypatch.context() as m:
        m.setattr(sys.modules["cv2"], "imdecode", lambda *a: pytest.fail("OpenCV was asked"))
        decode.find("simplejpeg")(encode(picture()), 256, 128)


def test_unknown_and_missing(monkeypatch):
    with pytest.raises(ConfigError, match="data.decoder.*'pil', 'cv2', 'simplejpeg'"):
        decode.find("turbo")
    decode.load.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ConfigError, match=r"simplejpeg.*reid_jax\[decode\]"):
        decode.find("simplejpeg")
    monkeypatch.undo()
    decode.load.cache_clear()


@pytest.mark.parametrize("name", FAST)
def test_pipeline(tmp_path, name):
    """Batches and test images come from the chosen decoder, in threads and in processes."""
    records = []
    for i in range(8):
        path = str(tmp_path / f"{i}.jpg")
        picture(seed=i).save(path, quality=90)
        records.append(Record(path, i // 2, i % 2))
    data = namespace(defaults()["data"])
    data.height, data.width, data.ids, data.instances, data.decoder = 256, 128, 2, 2, name
    dataset = Dataset("tiny", str(tmp_path), tuple(records), (), (), ("c1", "c2"))
    expected = [images.read(r.path, 256, 128, decode.find(name)) for r in records]
    assert not np.array_equal(expected[0], images.read(records[0].path, 256, 128))
    for workers in (0, 1):
        data.workers = workers
        with opened(dataset, data) as batches:
            batch = next(batches)
        np.testing.assert_array_equal(batch["image"], [expected[i] for i in batch["index"]])
    with pipeline.eval_batches(records, data, 8) as batches:
        np.testing.assert_array_equal(next(batches)["image"], expected)
    pool = images.Images([r.path for r in records], [0] * 8, 256, 128, decoder=name)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pool)).get(3)[0], expected[3])
