"""Pictures as callers have them: paths, bytes, PIL images and arrays -> u8[H,W,3] RGB of a net's size."""

import io
import os
import threading

import numpy as np
from PIL import Image, UnidentifiedImageError

from reid_jax import places
from reid_jax.data import decode
from reid_jax.errors import ConfigError, DataError, PictureError, ReidError

SORTS = "a path, the bytes of a file, a PIL image or a uint8 array [h,w,3] or [h,w]"
CHANNELS = ("rgb", "bgr")


def each(pictures):
    """The single pictures of what a caller gives: one, an array [N,h,w,3], or an iterable that mixes both."""
    if _is_single(pictures):
        yield pictures
    elif _is_array(pictures):
        yield from pictures
    else:
        try:
            entries = iter(pictures)
        except TypeError:
            raise DataError(f"{_named(pictures)} is no picture; give {SORTS}, or several of them") from None
        for entry in entries:
            if _is_array(entry) and np.ndim(entry) == 4:
                yield from entry
            else:
                yield entry


def _is_array(value):
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)


def _is_single(value):
    if _is_array(value):
        return np.ndim(value) != 4
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def _named(value):
    return f"something of type {type(value).__name__}"


def check_channels(channels):
    """Returns channels; ConfigError unless it is one of CHANNELS."""
    if channels not in CHANNELS:
        raise ConfigError(f"channels is {channels!r}; it must be one of {', '.join(map(repr, CHANNELS))}")
    return channels


def whole(array, channels="rgb"):
    """u8[h,w,3] RGB of an array of one picture; DataError for another type or rank, PictureError without
    pixels.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8:
        raise DataError(
            f"an array of {array.dtype} {array.shape} is no picture, its range is unknown: give uint8 "
            "values, 0 to 255 ((255 * x).round().astype('uint8') for values of 0 to 1)"
        )
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, 2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"an array of shape {array.shape} is no picture; give [h,w,3] RGB, [h,w] grey, or several as "
            "[N,h,w,3] (x[..., :3] drops an alpha channel)"
        )
    if not array.size:
        raise PictureError(f"an array of shape {array.shape} has no pixels")
    return array[:, :, ::-1] if channels == "bgr" else array


class Reader:
    """Pictures of any sort as u8[H,W,3]; safe to use from several threads.

    decoder: config.data.decoder's names. Files, bytes and PIL images are turned as their EXIF tag says.
    """

    def __init__(self, height, width, decoder="pil"):
        self.height, self.width, self.name = height, width, decoder
        self._decode, self._lock = decode.find(decoder), threading.Lock()

    def __call__(self, picture, channels="rgb"):
        """u8[H,W,3]; channels: of arrays. PictureError for what is broken, DataError for what is none."""
        try:
            return self._read(picture, channels)
        except FileNotFoundError as e:
            raise PictureError(f"{picture} does not exist") from e
        except IsADirectoryError as e:
            raise PictureError(f"{picture} is a folder; give the pictures that lie in it") from e
        except ReidError:
            raise
        except Exception as e:  # PIL's plugins raise whatever a damaged byte leads to
            name = picture if isinstance(picture, str | os.PathLike) else f"it ({type(picture).__name__})"
            reason = "no format that Pillow knows" if isinstance(e, UnidentifiedImageError) else str(e)
            reason = reason or type(e).__name__
            raise PictureError(f"{name} cannot be read as an image ({reason}): copy it again") from e

    def _read(self, picture, channels):
        if isinstance(picture, str | os.PathLike):
            with open(places.local(picture, "a picture"), "rb") as file:
                picture = file.read()
        if isinstance(picture, bytes | bytearray | memoryview):
            return self._decode(bytes(picture), self.height, self.width)
        if _is_array(picture):
            return self.resized(whole(picture, channels))
        return self.resized(self.original(picture))

    def original(self, picture, channels="rgb"):
        """u8[h,w,3] of one picture at its own size; errors as in the call."""
        if _is_array(picture):
            return whole(picture, channels)
        if isinstance(picture, str | os.PathLike):
            with open(places.local(picture, "a picture"), "rb") as file:
                picture = file.read()
        if isinstance(picture, bytes | bytearray | memoryview):
            picture = Image.open(io.BytesIO(picture))
        if not isinstance(picture, Image.Image):
            raise DataError(f"{_named(picture)} is no picture; give {SORTS}")
        if not picture.width or not picture.height:
            raise PictureError("a PIL image has no pixels")
        with self._lock:  # an image that is given twice is loaded once
            return np.asarray(decode.upright(picture))

    def resized(self, array):
        """u8[h,w,3] -> u8[H,W,3], as a decoded file is resized."""
        if array.shape[:2] == (self.height, self.width):
            return array
        if self.name != "pil":
            return decode.resize(np.ascontiguousarray(array), self.height, self.width)
        image = Image.fromarray(np.ascontiguousarray(array))
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.BICUBIC))
