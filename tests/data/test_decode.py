"""Optional decoders: near PIL's pictures, PIL's errors, the way out when a package is missing."""

import dataclasses
import io
import pickle
import sys

import numpy as np
import pytest
from batches import opened
from PIL import Image

from reid_jax.config import defaults, namespace
from reid_jax.data import decode, images, pipeline, streams
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


UNTURNED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation: PIL's transposition that it undoes


def tagged(number, suffix="JPEG", mode="RGB"):
    """(an upright picture, the file of it on its side or so, with the tag that says it)."""
    upright, tag = picture().convert(mode), Image.Exif()
    tag[0x0112] = number
    quality = {} if suffix in ("PNG", "TIFF") else {"quality": 98}
    stored = upright.transpose(UNTURNED[number]) if number in UNTURNED else upright
    return upright, encode(stored, suffix, exif=tag, **quality)


@pytest.mark.parametrize("name", decode.DECODERS)
@pytest.mark.parametrize("suffix", ["JPEG", "MPO", "PNG", "TIFF", "WEBP", "AVIF"])
def test_pictures_are_turned_as_their_tag_says(name, suffix):
    for number in range(1, 9):
        upright, contents = tagged(number, suffix)
        want, size = np.asarray(upright).astype(int), upright.size[::-1]
        assert decode.orientation(contents) == number
        found = decode.find(name)(contents, *size)
        assert np.abs(found - want).mean() < 4, number
        assert np.abs(decode.original(contents) - want).mean() < 4
        as_stored = decode.Pixels(exif=False)
        left = decode.original(contents, as_stored)
        assert left.shape[:2] == (size if number < 5 else size[::-1])
        np.testing.assert_array_equal(left, decode.find(name, as_stored)(contents, *left.shape[:2]))
        assert np.abs(left - want).mean() < 4 if number == 1 else not np.array_equal(left, want), number


def test_tags_that_are_damaged_or_elsewhere():
    """A whole picture stays one; XMP's tag counts where EXIF has none."""
    upright, contents = tagged(6)
    start = contents.index(b"Exif")
    for end in range(start, start + 29, 3):  # of 32 bytes
        broken = contents[:end] + b"\xff\x00\xff" + contents[end + 3 :]
        assert all(decode.find(n)(broken, 64, 32).shape == (64, 32, 3) for n in decode.DECODERS)
    xmp = encode(upright.transpose(UNTURNED[8]), quality=98, xmp=b'<x tiff:Orientation="8"/>')
    for name in decode.DECODERS:
        assert np.abs(decode.find(name)(xmp, 128, 64) - np.asarray(upright).astype(int)).mean() < 4


def test_a_tag_does_not_slow_upright_pictures(monkeypatch):
    monkeypatch.setattr(decode, "with_pil", lambda *a: pytest.fail("PIL was asked"))
    for name in FAST:
        decode.find(name)(tagged(1)[1], 256, 128)


# ---- deep pictures


def levels(size=(16, 32), seed=0):
    """u8[h,w] in blocks of 8 x 8, from 0 to 255."""
    blocks = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8))
    blocks.flat[:2] = 0, 255
    return np.kron(blocks, np.ones((8, 8), int)).astype(np.uint8)


def assert_shown(contents, want, pixels=decode.AS_SEEN, off=1):
    for name in decode.DECODERS:
        found = decode.find(name, pixels)(contents, *want.shape).astype(int)
        assert np.abs(found - want[..., None]).max() <= off, name
    np.testing.assert_array_equal(decode.original(contents, pixels), found)


@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "JPEG2000", "PPM", "IM"])
@pytest.mark.parametrize("factor", [257, 64, 16, 4, 1])
def test_16_bits(suffix, factor):
    """Cameras of 10, 12 and 14 bits store their values as they are; a PGM says how deep its are."""
    if suffix != "PPM" or factor in (257, 1):
        want = levels()
        assert_shown(encode(Image.fromarray(want.astype(np.uint16) * factor), suffix), want, off=2)


@pytest.mark.parametrize("suffix", ["TIFF", "IM"])
@pytest.mark.parametrize("factor", [1, 257, 2**16, 2**23])
def test_32_bits(suffix, factor):
    want = levels()
    assert_shown(encode(Image.fromarray(want.astype(np.int32) * factor), suffix), want)


def test_tiff_without_a_sign_or_with_white_as_zero():
    want = levels()
    contents = encode(Image.fromarray((want.astype(np.uint32) << 24).view(np.int32)), "TIFF")
    sign = b"\x53\x01\x03\0\x01\0\0\0\x02"  # tag 339, SampleFormat, one short: 2
    assert sign in contents
    assert_shown(contents.replace(sign, sign[:-1] + b"\x01"), want)
    black = b"\x06\x01\x03\0\x01\0\0\0\x01"  # tag 262, PhotometricInterpretation
    contents = encode(Image.fromarray(want.astype(np.uint16) * 257), "TIFF")
    assert black in contents
    assert_shown(contents.replace(black, black[:-1] + b"\0"), 255 - want)


@pytest.mark.parametrize("suffix", ["TIFF", "IM", "PPM"])
@pytest.mark.parametrize("factor", [1 / 255, 1, 257, 2.0**16])
def test_floats(suffix, factor):
    want = levels()
    values = (want.astype(float) * factor).astype(np.float32)
    assert_shown(encode(Image.fromarray(values), suffix), want)
    if suffix == "TIFF":
        values[0, :4], want[0, :4] = (np.nan, -np.inf, np.inf, 1.05 * values.max()), (0, 0, 255, 255)
        assert_shown(encode(Image.fromarray(values), suffix), want)


def test_values_below_zero_keep_their_contrast():
    signed = levels().astype(np.float32) / 127.5 - 1
    assert_shown(encode(Image.fromarray(signed), "TIFF"), levels())
    assert_shown(encode(Image.fromarray((signed * 32767).astype(np.int32)), "TIFF"), levels(), off=2)
    flat = np.zeros((32, 16), np.float32)
    assert_shown(encode(Image.fromarray(flat), "TIFF"), flat)
    assert_shown(encode(Image.fromarray(np.full((32, 16), np.nan, np.float32)), "TIFF"), flat)


def test_one_scale_for_all():
    """A thermal camera of 14 bits sees people in a small part of its range."""
    want = levels()
    contents = encode(Image.fromarray(7000 + 8 * want.astype(np.uint16)), "PNG")
    assert np.ptp(decode.original(contents)) < 40
    assert_shown(contents, want, decode.Pixels(grey=(7000, 7000 + 8 * 255)))


@pytest.mark.parametrize("grey", [(1,), (5, 5), (9, 1), (0, float("nan")), (1, 2, 3), ("a", "b")])
def test_ranges_that_are_none(grey):
    data = namespace(defaults()["data"])
    data.grey = grey
    with pytest.raises(ConfigError, match="config.data.grey is"):
        decode.of(data)


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


@pytest.mark.parametrize("exif", [True, False])
def test_all_that_reads_pictures_turns_them(tmp_path, exif):
    """Batches, test images, clips, degraded pictures and triples, as config.data.exif says."""
    records = []
    for i in range(8):
        path = tmp_path / f"{i}.jpg"
        path.write_bytes(tagged(1 + i)[1])
        records.append(Record(str(path), i // 2, i % 2, (str(path),)))
    data = namespace(defaults()["data"])
    data.height, data.width, data.ids, data.instances, data.exif = 128, 64, 2, 2, exif
    pixels = decode.Pixels.of(data)
    expected = [images.read(r.path, 128, 64, decode.find("pil", pixels)) for r in records]
    dataset = Dataset("tiny", str(tmp_path), tuple(records), (), (), ("c1", "c2"))

    def seen(**fields):
        return namespace({**vars(data), "degrade": vars(data.degrade)} | fields)

    video = dataclasses.replace(dataset, kind="video")
    clips = [next(opened(video, seen(frames=1))), next(iter(pipeline.eval_clips(records, data, 8)))]
    whole = seen(degrade={**vars(data.degrade), "kind": "noise", "deviation": (0, 0), "share": 1.0})
    batches = [next(opened(dataset, d)) for d in (data, whole)] + [
        next(iter(pipeline.eval_batches(records, data, 8)))
    ]
    triples = next(opened(dataset, whole, build=streams.triples))
    for batch in batches + clips:
        shown = batch["image"][:, 0] if batch["image"].ndim == 5 else batch["image"]
        np.testing.assert_array_equal(shown, [expected[i] for i in batch["index"]])
    for k, rows in enumerate((triples["index"], triples["index"], triples["index_k"])):
        np.testing.assert_array_equal(triples["image"][:, k], [expected[i] for i in rows])
    upright = np.asarray(tagged(1)[0]).astype(int)
    assert [np.abs(e - upright).mean() < 4 for e in expected] == [exif or i == 0 for i in range(8)]


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
