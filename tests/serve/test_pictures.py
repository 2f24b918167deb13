"""Pictures of any sort: files, bytes, PIL images, arrays; turned, grey, BGR; what is none."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from reid_jax.errors import ConfigError, DataError, PictureError
from reid_jax.serve import pictures


def picture(height=12, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(array, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG", exif=exif)
    return out.getvalue()


def test_all_sorts_are_read_alike(tmp_path):
    array, read = picture(), pictures.Reader(6, 4)
    path = tmp_path / "a.png"
    path.write_bytes(png(array))
    want = np.asarray(Image.fromarray(array).resize((4, 6), Image.Resampling.BICUBIC))
    image = Image.open(path)
    for given in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), image, image, array):
        np.testing.assert_array_equal(read(given), want)
    np.testing.assert_array_equal(read(array[:, :, ::-1], "bgr"), want)
    np.testing.assert_array_equal(
        read(array[:, :, 0])[..., 1], read(np.repeat(array[:, :, :1], 3, 2))[..., 1]
    )
    np.testing.assert_array_equal(pictures.Reader(12, 8)(array), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_heeded_for_files_and_images(orientation):
    data = png(picture(), orientation)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    read = pictures.Reader(*want.shape[:2])
    np.testing.assert_array_equal(read(data), want)
    np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), want)
    np.testing.assert_array_equal(read.original(data), want)


def test_what_counts_as_several():
    one, some = picture(), np.stack([picture(seed=i) for i in range(3)])
    assert [len(list(pictures.each(x))) for x in ("a", b"a", one, some, [], iter([one, some]))] == [
        1,
        1,
        1,
        3,
        0,
        4,
    ]
    with pytest.raises(DataError, match="something of type int is no picture; give a path"):
        list(pictures.each(3))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (np.zeros((4, 4, 3)), DataError, "float64.*range is unknown.*uint8"),
        (np.zeros((4, 4, 4), np.uint8), DataError, r"shape \(4, 4, 4\).*alpha"),
        (np.zeros(4, np.uint8), DataError, r"shape \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), PictureError, "no pixels"),
        (b"nothing", PictureError, r"cannot be read as an image \(no format that Pillow knows\)"),
        (png(picture())[:60], PictureError, "cannot be read as an image"),
        ("/none/there.jpg", PictureError, "/none/there.jpg does not exist"),
        ("/", PictureError, "/ is a folder; give the pictures that lie in it"),
        (3, DataError, "type int is no picture"),
    ],
)
def test_what_is_no_picture(given, error, text):
    with pytest.raises(error, match=text):
        pictures.Reader(6, 4)(given)


def test_a_claim_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(PictureError, match="exceeds limit"):
        pictures.Reader(6, 4)(png(picture()))


def test_channels():
    assert pictures.check_channels("bgr") == "bgr"
    with pytest.raises(ConfigError, match="channels is 'grb'; it must be one of 'rgb', 'bgr'"):
        pictures.check_channels("grb")
