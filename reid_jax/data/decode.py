"""From a file's bytes to a picture of the wanted size: PIL, or the faster packages of the `decode` extra.

A decoder takes (contents, height, width) and returns u8[height,width,3] RGB. PIL is the reference: what the
others cannot read without a warning is left to it, so a broken file fails in the same way with all of them.
"""

import functools
import importlib
import io
import os

import numpy as np
from PIL import Image

from reid_jax.config import choice
from reid_jax.errors import ConfigError

JPEG = b"\xff\xd8"  # first bytes of the format
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of a picture: where PIL refuses; a small file can claim any size
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))  # read when cv2 is loaded


def find(name):
    """The decoder that config.data.decoder names; ConfigError when it is unknown or not installed."""
    decoder = DECODERS[choice("data.decoder", name, tuple(DECODERS))]
    for package in PACKAGES.get(name, ()):
        load(package)
    return decoder


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


def with_pil(contents, height, width):
    """Decodes with PIL and resizes with its bicubic filter: the reference."""
    with Image.open(io.BytesIO(contents)) as image:
        if image.mode != "RGB":
            image = image.convert("RGB")
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def original(contents):
    """Decodes with PIL, without resizing: u8[h,w,3]."""
    with Image.open(io.BytesIO(contents)) as image:
        return np.asarray(image.convert("RGB"))


def with_cv2(contents, height, width):
    """Decodes with OpenCV; resizes by `resize`."""
    cv2 = load("cv2")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION  # PIL does not turn pictures either
    try:
        picture = cv2.imdecode(np.frombuffer(contents, np.uint8), flags)
    except cv2.error:
        picture = None
    if picture is None:
        return with_pil(contents, height, width)
    return resize(picture, height, width)


def with_simplejpeg(contents, height, width):
    """Decodes JPEG with simplejpeg and other formats with OpenCV; resizes by `resize`."""
    if not contents.startswith(JPEG):
        return with_cv2(contents, height, width)
    simplejpeg = load("simplejpeg")
    try:
        rows, columns, *_ = simplejpeg.decode_jpeg_header(contents)
        if rows * columns > MOST_PIXELS:
            return with_pil(contents, height, width)  # which refuses it
        picture = simplejpeg.decode_jpeg(contents, "RGB", strict=True)
    except ValueError:
        return with_pil(contents, height, width)
    return resize(picture, height, width)


def resize(picture, height, width):
    """u8[h,w,3] -> u8[height,width,3], bicubic.

    OpenCV enlarges ten times as fast as PIL, with a slightly sharper kernel (a = -0.75, not -0.5). It does
    not smooth before it shrinks, so a picture that gets smaller in either direction goes through PIL.
    """
    rows, columns = picture.shape[:2]
    if height < rows or width < columns:
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    cv2 = load("cv2")
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)


DECODERS = {"pil": with_pil, "cv2": with_cv2, "simplejpeg": with_simplejpeg}
PACKAGES = {"cv2": ("cv2",), "simplejpeg": ("cv2", "simplejpeg")}
