"""Reading images: decoding, resizing, broken files, the cache of decoded pictures."""

import logging
import threading

import numpy as np

from reid_jax.data import decode, tfds_sets
from reid_jax.errors import DataError, PictureError, ReidError

log = logging.getLogger(__name__)


def contents(path):
    """Bytes of an image file, or of an image in a built set (path: a reference of data.tfds_sets)."""
    if path.startswith(tfds_sets.PREFIX):
        return tfds_sets.contents(path)
    with open(path, "rb") as f:
        return f.read()


def read(path, height, width, decoder=decode.with_pil):
    """u8[height,width,3] RGB of an image file, resized; path: as in `contents`, decoder: see data.decode.

    Raises PictureError naming the file when it is missing, empty, cut short or no image.
    """
    return readable(path, lambda contents: decoder(contents, height, width))


def original(path, pixels=decode.AS_SEEN):
    """u8[h,w,3] RGB of an image file at its own size, by PIL; pixels: a decode.Pixels; errors as in read."""
    return readable(path, lambda contents: decode.original(contents, pixels))


def readable(path, function):
    """function(contents of an image file); PictureError naming the file when that fails."""
    try:
        return function(contents(path))
    except FileNotFoundError as e:
        raise PictureError(f"{path} does not exist") from e
    except ReidError:
        raise
    except Exception as e:  # PIL's plugins raise whatever a damaged byte leads to
        reason = str(e) or type(e).__name__
        raise PictureError(f"{path} cannot be read as an image ({reason}): copy it again or remove it") from e


class Images:
    """Decoded pictures of a list of files, by row; safe to use from several threads.

    skip: a broken file is replaced by the next readable one of the same identity, in the order of the list,
    and warned of once; otherwise it raises PictureError. cache_bytes: decoded pictures kept up to this size.
    decoder: a name of data.decode, or what decode.find gives. group: what rows of the same number in `pids`
    have in common, in words. advice: what else can be done about a broken file, for the error.
    """

    def __init__(
        self,
        paths,
        pids,
        height,
        width,
        *,
        skip=False,
        cache_bytes=0,
        decoder="pil",
        group="identity",
        advice="",
    ):
        self.paths, self.pids = list(paths), np.asarray(pids)
        self.height, self.width, self.skip, self.group, self.advice = height, width, skip, group, advice
        self._decoder = decode.find(decoder) if isinstance(decoder, str) else decoder
        self._room = cache_bytes // (height * width * 3)  # pictures that may still be kept
        self._cache, self._instead, self._lock = {}, {}, threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_cache": {}, "_lock": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def fill(self, rows, out):
        """Writes the pictures of rows into out u8[len(rows),H,W,3]; returns the rows really used."""
        used = rows.copy()
        for i, row in enumerate(rows.tolist()):
            out[i], used[i] = self.get(row)
        return used

    def get(self, row):
        """(u8[H,W,3], row it shows): another row only when `row` is broken and skipped."""
        row = self._instead.get(row, row)
        picture = self._cache.get(row)
        if picture is not None:
            return picture, row
        try:
            picture = self.read(self.paths[row])
        except PictureError as e:
            if not self.skip:
                raise PictureError(f"{e}{self.advice}") from e
            return self._replace(row, e)
        if self._room > 0:
            self._keep(row, picture)
        return picture, row

    def read(self, path):
        """u8[H,W,3] of a file in this list's size and by its decoder, past the cache."""
        return read(path, self.height, self.width, self._decoder)

    def _keep(self, row, picture):
        with self._lock:
            if self._room > 0 and row not in self._cache:
                self._room -= 1
                self._cache[row] = picture

    def _replace(self, row, error):
        """The next readable image of the identity; DataError when it has none."""
        same = np.flatnonzero(self.pids == self.pids[row])
        start = int(np.searchsorted(same, row))
        for other in (*same[start + 1 :].tolist(), *same[:start].tolist()):
            try:
                picture = self.read(self.paths[other])
            except PictureError:
                continue
            with self._lock:
                if row not in self._instead:
                    self._instead[row] = other
                    log.warning("broken image skipped, %s is used instead: %s", self.paths[other], error)
            return picture, other
        raise DataError(f"no image of this {self.group} can be read; the first failure: {error}") from error


class Originals(Images):
    """Pictures at their own sizes, by PIL; pixels: a decode.Pixels."""

    def __init__(self, *args, pixels=decode.AS_SEEN, **options):
        super().__init__(*args, **options)
        self.pixels = pixels

    def read(self, path):
        return original(path, self.pixels)


def training(data):
    """Options of Images and Tracklets for pictures that train; data: the config's section."""
    skip = data.on_broken == "skip"
    advice = "" if skip else ", or pass over it with config.data.on_broken=skip"
    return {"skip": skip, "advice": advice}
