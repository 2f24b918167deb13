"""From a file's bytes to a picture of the wanted size: PIL, or the faster packages of the `decode` extra.

A decoder takes (contents, height, width) and returns u8[height,width,3] RGB, what a person sees in a viewer:
turned as the EXIF tag says, deep grey values scaled to 8 bits. PIL is the reference: the others decode what
all packages read alike and leave the rest to it, so that they agree and a broken file fails alike with all.
"""

import functools
import importlib
import io
import math
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from reid_jax.errors import ConfigError
from reid_jax.fields import choice

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"  # first bytes of the formats
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of a picture: where PIL refuses; a small file can claim any size
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))  # read when cv2 is loaded
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TAGS = (b"Exif", b"exif", b"eXIf", b"adobe")  # what stands before it in a JPEG or PNG
DEPTHS = (8, 10, 12, 14, 16, 24, 31, 32)  # bits of cameras and files
_SLACK = 0.1  # share of the range by which resampled floats may lie outside of it
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of TIFF


KERNELS = ("bicubic", "bilinear")


class Pixels(NamedTuple):
    """What a file's pixels are made into: config.data.exif, .grey, .resize and .test_resize."""

    exif: bool = True  # turned as the orientation tag says
    grey: tuple = ()  # (black, white) of deep grey pictures; () = by the depth of each
    kernel: str = "bicubic"  # one of KERNELS, by which they are resized

    @classmethod
    def of(cls, data, train=False):
        """Of a config's `data` section; ConfigError when data.grey is no range, or for an unknown kernel."""
        choice("data.resize", data.resize, KERNELS)
        choice("data.test_resize", data.test_resize, ("", *KERNELS))
        grey = tuple(data.grey)
        numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in grey)
        if grey and not (numbers and len(grey) == 2 and grey[0] < grey[1]):
            raise ConfigError(
                f"config.data.grey is {grey}; it must be empty or two numbers, the value that becomes black "
                "and a larger one that becomes white"
            )
        return cls(bool(data.exif), grey, data.resize if train else data.test_resize or data.resize)


AS_SEEN = Pixels()


def find(name, pixels=AS_SEEN):
    """The decoder that config.data.decoder names; ConfigError when it is unknown or not installed."""
    decoder = DECODERS[choice("data.decoder", name, tuple(DECODERS))]
    for package in PACKAGES.get(name, ()):
        load(package)
    return functools.partial(decoder, pixels=pixels)


def of(data, train=False):
    """The decoder of a config's `data` section, for test pictures or those that train."""
    return find(data.decoder, Pixels.of(data, train))


@functools.cache
def load(package):
    """An optional package; ConfigError naming the extra when it is missing."""
    try:
        module = importlib.import_module(package)
    except ImportError as e:
        raise ConfigError(
            f"config.data.decoder needs the package {package} ({e}): pip install 'reid_jax[decode]', or set "
            "config.data.decoder=pil"
        ) from e
    if package == "cv2":
        module.setNumThreads(0)  # the pipeline's readers are threads already
    return module


# ---- decoders -------------------------------------------------------------------------------------------
def with_pil(contents, height, width, pixels=AS_SEEN):
    """Decodes with PIL and resizes with its filter: the reference."""
    return np.asarray(picture(contents, pixels).resize((width, height), filter_of(pixels.kernel)))


def filter_of(kernel):
    """PIL's filter of a name of KERNELS."""
    return Image.Resampling[kernel.upper()]


def original(contents, pixels=AS_SEEN):
    """Decodes with PIL, without resizing: u8[h,w,3]."""
    return np.asarray(picture(contents, pixels))


def with_cv2(contents, height, width, pixels=AS_SEEN):
    """Decodes with OpenCV; resizes by `resize`."""
    if not is_plain(contents) or (pixels.exif and orientation(contents) != 1):
        return with_pil(contents, height, width, pixels)
    cv2 = load("cv2")
    try:
        image = cv2.imdecode(
            np.frombuffer(contents, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        image = None
    if image is None:
        return with_pil(contents, height, width, pixels)
    return resize(image, height, width, pixels.kernel)


def with_simplejpeg(contents, height, width, pixels=AS_SEEN):
    """Decodes JPEG with simplejpeg and other formats with OpenCV; resizes by `resize`."""
    if not contents.startswith(JPEG):
        return with_cv2(contents, height, width, pixels)
    if not is_plain(contents) or (pixels.exif and orientation(contents) != 1):
        return with_pil(contents, height, width, pixels)
    simplejpeg = load("simplejpeg")
    try:
        rows, columns, *_ = simplejpeg.decode_jpeg_header(contents)
        if rows * columns > MOST_PIXELS:
            return with_pil(contents, height, width, pixels)  # which refuses it
        image = simplejpeg.decode_jpeg(contents, "RGB", strict=True)
    except ValueError:
        return with_pil(contents, height, width, pixels)
    return resize(image, height, width, pixels.kernel)


def resize(picture, height, width, kernel="bicubic"):
    """u8[h,w,3] -> u8[height,width,3] by a name of KERNELS.

    OpenCV enlarges ten times as fast as PIL, with a slightly sharper kernel (a = -0.75, not -0.5). It does
    not smooth before it shrinks, so a picture that gets smaller in either direction goes through PIL.
    """
    rows, columns = picture.shape[:2]
    if height < rows or width < columns:
        return np.asarray(Image.fromarray(picture).resize((width, height), filter_of(kernel)))
    cv2 = load("cv2")
    kernel = cv2.INTER_CUBIC if kernel == "bicubic" else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=kernel)


DECODERS = {"pil": with_pil, "cv2": with_cv2, "simplejpeg": with_simplejpeg}
PACKAGES = {"cv2": ("cv2",), "simplejpeg": ("cv2", "simplejpeg")}


# ---- what all packages read alike -----------------------------------------------------------------------
def is_plain(contents):
    """Whether a file is of 8 bits and three colours or grey, as JPEG or PNG, or a BMP of 24 bits."""
    if contents.startswith(JPEG):
        return frame_of_jpeg(contents) in ((8, 1), (8, 3))
    if contents.startswith(PNG):
        return contents[24:25] == b"\x08" and b"acTL" not in contents[:8192]  # an animation
    header = int.from_bytes(contents[14:18], "little"), contents[28:30], contents[30:34]
    return contents.startswith(b"BM") and header == (40, b"\x18\0", bytes(4))


def frame_of_jpeg(contents):
    """(bits, colours) of a JPEG's first frame, None when there is none."""
    at = 2
    while at + 10 <= len(contents) and contents[at] == 0xFF:
        marker = contents[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return contents[at + 4], contents[at + 9]
        fill = marker == 0xFF
        at += 1 if fill else 2 + int.from_bytes(contents[at + 2 : at + 4], "big")
    return None


def orientation(contents):
    """EXIF's orientation of a file's picture, 1 to 8; 1 without one. Its pixels are not decoded."""
    if contents.startswith((JPEG, PNG, b"BM")) and not any(tag in contents for tag in _TAGS):
        return 1
    try:
        with Image.open(io.BytesIO(contents)) as image:
            return turn(image)
    except Exception:  # no picture: whoever decodes it will tell
        return 1


# ---- with PIL -------------------------------------------------------------------------------------------
def picture(contents, pixels=AS_SEEN, size=None):
    """PIL's RGB image of a file's bytes (its first page or frame); size: about the (width, height) needed."""
    with Image.open(io.BytesIO(contents)) as image:
        if size:
            image.draft("RGB", size)
        return upright(image, pixels)


def upright(image, pixels=AS_SEEN):
    """RGB image of an open PIL image of any mode, turned as Pixels.exif says."""
    stored = turn(image) if image.format == "TIFF" else 1
    image.load()  # by which PIL turns a TIFF
    left, coloured = turn(image), rgb(image, pixels.grey)
    if not pixels.exif:
        left = {6: 8, 8: 6}.get(stored, stored) if left == 1 else 1
    return coloured.transpose(TURNS[left]) if left in TURNS else coloured


def turn(image):
    """EXIF's orientation of an open image, 1 to 8; 1 when it has none or its tags are damaged."""
    try:
        tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the picture itself may be whole
        return 1
    return tag if tag in TURNS else 1


def rgb(image, grey=()):
    """An image of any mode in RGB; alpha is dropped, deep grey scaled as Pixels.grey says."""
    if image.mode == "RGB":
        return image
    if is_deep(image):
        levels = shown(values_of(image), grey)
        return Image.fromarray(255 - levels if is_negative(image) else levels).convert("RGB")
    if image.mode == "LAB":
        return from_lab(image)
    if image.mode in ("RGBa", "La"):  # colours multiplied by alpha
        image = image.convert(image.mode.upper())
    return image.convert("RGB")


def is_deep(image):
    """Whether an image has grey values of more than 8 bits."""
    return image.mode == "F" or image.mode[:1] == "I"


def values_of(image):
    """[h,w] of a deep image: whole numbers or floats."""
    values = np.asarray(image)
    unsigned = image.format == "TIFF" and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 1
    return values.view(np.uint32) if unsigned and values.dtype == np.int32 else values


def is_negative(image):
    """Whether a deep image is a TIFF whose 0 is white; PIL turns only those of 8 bits over."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0


def shown(values, grey=()):
    """u8[h,w] of grey values [h,w]: from black to white, `grey` or what `span` says."""
    low, high = grey or span(values)
    values = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def span(values):
    """(black, white) of grey values: of the smallest depth that holds them all.

    That is 0 to 2**bits - 1, bits one of DEPTHS; floats may also fill 0 to 1. Where values are negative,
    black is as far below 0 as white is above.
    """
    floats = values.dtype.kind == "f"
    values = values[np.isfinite(values)] if floats else values
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    most = max(high, -low)
    negative = low < -_SLACK * most
    tops = [1.0] * floats + [2.0 ** (bits - 1) if negative else 2.0**bits - 1 for bits in DEPTHS]
    top = next((t for t in tops if most <= (1 + _SLACK * floats) * t), most)
    return (-top if negative else 0.0), top


def from_lab(image):
    """RGB of an image in CIE L*a*b*."""
    from PIL import ImageCms

    profiles = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
    return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
