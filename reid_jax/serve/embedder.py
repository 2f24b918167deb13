"""Features of pictures by a trained run or an export: `reid_jax.load(SOURCE)`.

An Embedder reads pictures of any sort in threads, a chunk ahead of the net, and keeps at most three chunks in
memory. The net behind it is one of two backends: JAX (`serve.nets`, runs and exports), and ONNX Runtime
(exports), which imports no jax.
"""

import concurrent.futures
import hashlib
import itertools
import json
import os
import threading

import numpy as np

from reid_jax import places
from reid_jax.errors import ConfigError, DataError, PictureError, ReidError, WeightsError
from reid_jax.serve import pictures
from reid_jax.serve.trackers import Trackers

BACKENDS = ("auto", "jax", "onnx")
ON_BROKEN = ("stop", "nan")
CARD, ONNX_FILE = "card.json", "model.onnx"


def load(
    source, *, checkpoint="best", net="auto", backend="auto", device=None, batch=64, threads=4, decoder="pil"
):
    """Embedder of a run's workdir, of a folder that `reid_jax export` wrote, or of hf://OWNER/NAME@REVISION.

    checkpoint: best, latest or a step, and net: a network of the method; both of runs only. backend: jax,
    onnx (exports), auto: onnx for exports on CPUs where onnxruntime is installed, else jax. device: None (the
    first accelerator, else the CPU), "cpu", "cuda:1" or a jax.Device. batch: most pictures that the net sees
    at a time, rounded down to a power of two. threads: that read pictures. decoder: as config.data.decoder.
    Raises CheckpointError, ConfigError or WeightsError that say what is wrong.
    """
    _check(backend, batch, threads)
    folder = _folder(source)
    exported = os.path.exists(os.path.join(folder, CARD))
    if exported and (checkpoint not in ("best", "latest") or net != "auto"):
        raise ConfigError(
            f"{source} is an export, of one checkpoint and one net: leave checkpoint and net out"
        )
    if not exported and backend == "onnx":
        raise ConfigError(f"{source} is a run; write its ONNX first: reid_jax export {source} --output DIR")
    if exported and (backend == "onnx" or (backend == "auto" and _suits_onnx(folder, device))):
        return Embedder(OnnxNet(folder, device), batch, threads, decoder)
    from reid_jax.serve import nets

    if exported:
        made = nets.of_export(folder, device)
    else:
        made = nets.of_run(folder, checkpoint, net, device)
    return Embedder(made, batch, threads, decoder)


def _check(backend, batch, threads):
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}; it must be one of {', '.join(map(repr, BACKENDS))}")
    for name, value in (("batch", batch), ("threads", threads)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1 on")


def _folder(source):
    """The local folder of a source."""
    text = os.fspath(source)
    if text.startswith("hf://"):
        from reid_jax.serve import hub

        return hub.fetch(text)
    folder = places.local(text, "the model")
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{text} is no folder; give the workdir of a run, a folder that reid_jax export wrote, or "
            "hf://OWNER/NAME@REVISION"
        )
    return folder


def _suits_onnx(folder, device):
    """Whether an export is to be run by ONNX Runtime when nobody says: on CPUs, where it is installed."""
    if not os.path.exists(os.path.join(folder, ONNX_FILE)):
        return False
    try:
        import onnxruntime
    except ImportError:
        return False
    return device == "cpu" or (device is None and onnxruntime.get_device() == "CPU" and not _accelerated())


def _accelerated():
    """Whether this machine shows an accelerator; asks files, as asking JAX costs seconds."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")


class Embedder(Trackers):
    """f(pictures) -> f32[N,D], rows of unit length, in the order of the pictures; safe in any threads.

    dim: D. size: (H, W) of the pictures the net sees. hash: SHA-256 of the weights, the same for a run and
    all its exports. card: dict of where it comes from and how good it is, with "thresholds". broken: {index:
    why} of this thread's last call with on_broken="nan".
    """

    def __init__(self, net, batch=64, threads=4, decoder="pil"):
        self.net, self.chunk = net, 1 << (batch.bit_length() - 1)
        self.size, self.dim, self.hash = tuple(net.size), net.dim, net.hash
        self.reader = pictures.Reader(*self.size, decoder)
        self._threads, self._lock, self._own = threads, threading.Lock(), threading.local()
        self._made = None

    @property
    def card(self):
        """What is known of the model: card.json of an export, the same of a run."""
        return self.net.card

    @property
    def broken(self):
        """{index: why} of the pictures that this thread's last call made NaN."""
        return getattr(self._own, "broken", {})

    def __call__(self, given, *, channels="rgb", on_broken="stop"):
        """f32[N,D] of pictures: a path, bytes of a file, PIL image, u8[h,w,3] RGB, u8[h,w], u8[N,h,w,3], or
        an iterable that mixes them.

        channels: "bgr" for arrays as OpenCV reads them. on_broken: "stop" raises PictureError with index and
        file of what cannot be read; "nan" makes its row NaN, see `broken`. DataError for what is no picture.
        """
        parts = [features for _, features in self.stream(given, channels=channels, on_broken=on_broken)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def stream(self, given, *, channels="rgb", on_broken="stop"):
        """Yields (index of the first, f32[n,D]) of pictures without end, chunk by chunk, reading two ahead.

        Arguments as in the call.
        """
        pictures.check_channels(channels)
        if on_broken not in ON_BROKEN:
            raise ConfigError(
                f"on_broken is {on_broken!r}; it must be one of {', '.join(map(repr, ON_BROKEN))}"
            )
        self._own.broken = broken = {}
        return self._stream(given, channels, broken if on_broken == "nan" else None)

    def tracklet(self, frames, *, channels="rgb"):
        """f32[D] of the frames of one person: by the method's rule where it has one, else their unit mean."""
        pictures.check_channels(channels)
        if self.net.tracklet is not None:
            chunks = self._chunks(frames, channels)
            rows = [self._rows(first, waiting, None)[0] for first, waiting in chunks]
            if not rows:
                raise DataError("a tracklet has no frames; give at least one picture")
            return self.net.tracklet(np.concatenate(rows))
        features = self(frames, channels=channels)
        if not len(features):
            raise DataError("a tracklet has no frames; give at least one picture")
        mean = features.mean(0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def warm(self):
        """Compiles for every number of pictures, which calls else do when they need it; returns self."""
        for size in (1 << power for power in range(self.chunk.bit_length())):
            self._start(np.zeros((size, *self.size, 3), np.uint8))
        return self

    # ---- chunks
    def _stream(self, given, channels, broken):
        reading = computing = None
        for chunk in itertools.chain(self._chunks(given, channels), (None, None)):
            done, computing = computing, reading and self._begin(*reading, broken)
            reading = chunk
            if done:
                yield self._finished(*done)

    def _chunks(self, given, channels):
        """(index of the first, [future of u8[H,W,3]]) of every chunk, reading of which has begun."""
        pool, entries = self._pool(), pictures.each(given)
        for first in itertools.count(0, self.chunk):
            part = list(itertools.islice(entries, self.chunk))
            if not part:
                return
            yield first, [pool.submit(self.reader, picture, channels) for picture in part]

    def _pool(self):
        with self._lock:
            if self._made is None:
                self._made = concurrent.futures.ThreadPoolExecutor(self._threads, "reid_jax-pictures")
            return self._made

    def _rows(self, first, waiting, broken):
        """(u8[n,H,W,3], places of the broken ones) of a chunk; broken: {index: why} to fill, None: errors."""
        rows, gone = np.zeros((len(waiting), *self.size, 3), np.uint8), []
        for place, future in enumerate(waiting):
            try:
                rows[place] = future.result()
            except PictureError as e:
                if broken is None:
                    way = "; on_broken='nan' makes a row of NaN of it"
                    raise PictureError(f"picture {first + place}: {e}{way}", first + place, str(e)) from e
                broken[first + place] = str(e)
                gone.append(place)
            except ReidError as e:
                raise type(e)(f"picture {first + place}: {e}") from e
        return rows, gone

    def _begin(self, first, waiting, broken):
        rows, gone = self._rows(first, waiting, broken)
        return first, len(rows), self._start(rows), gone

    def _start(self, rows):
        """Features of rows u8[n,H,W,3], maybe of padding behind them, maybe still being computed."""
        if self.net.padded:
            extra = (1 << (len(rows) - 1).bit_length()) - len(rows)
            rows = np.pad(rows, ((0, extra), (0, 0), (0, 0), (0, 0))) if extra else rows
        return self.net(rows)

    def _finished(self, first, count, features, gone):
        features = np.array(features, np.float32)[:count]
        features[gone] = np.nan
        return first, features


class OnnxNet:
    """The ONNX file of an export under ONNX Runtime: u8[n,H,W,3] -> f32[n,D]."""

    padded = False  # the file takes any number of pictures
    tracklet = None

    def __init__(self, folder, device=None):
        self.card = read_card(folder)
        path = os.path.join(folder, ONNX_FILE)
        check_whole(folder, self.card, ONNX_FILE)
        self.size, self.dim, self.hash = self.card["input"]["size"], self.card["dim"], self.card["hash"]
        self.session = _session(path, device)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if metadata.get("hash") != self.hash:
            raise WeightsError(
                f"{path} is of the model {str(metadata.get('hash'))[:12]}, and {CARD} of {self.hash[:12]}: "
                "the files are of two exports; copy the folder again"
            )

    def __call__(self, rows):
        return self.session.run(None, {"image": rows})[0]


def _session(path, device):
    """onnxruntime.InferenceSession of a file on "cpu" or "cuda:N"."""
    try:
        import onnxruntime
    except ImportError as e:
        raise ConfigError(
            f"backend onnx needs the package onnxruntime ({e}): pip install 'reid_jax[export]'"
        ) from e
    name, _, number = str(device or "cpu").partition(":")
    known = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    there = [k for k, provider in known.items() if provider in onnxruntime.get_available_providers()]
    if name not in there or not (number or "0").isdigit():
        raise ConfigError(f"device is {device!r}; this onnxruntime has {', '.join(there)}")
    provider = (known[name], {"device_id": int(number or 0)} if name == "cuda" else {})
    if not os.path.exists(path):
        raise ConfigError(f"{path} does not exist; export with --formats=onnx, or take backend='jax'")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as e:  # whatever a damaged byte leads to
        raise WeightsError(f"{path} cannot be read by ONNX Runtime ({str(e)[:200]}); copy it again") from e


def read_card(folder):
    """card.json of an export as a dict; WeightsError when it is damaged or of a later version."""
    path = os.path.join(folder, CARD)
    try:
        with open(path, encoding="utf-8") as file:
            card = json.load(file)
        height, width = card["input"]["size"]
        good = all(isinstance(x, int) and x > 0 for x in (height, width, card["dim"]))
        dicts = card["thresholds"], card.get("files", {})
        if not good or not isinstance(card["hash"], str) or not all(isinstance(d, dict) for d in dicts):
            raise ValueError("its fields have other types")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise WeightsError(f"{path} is no card of an export ({e}); copy the folder again") from e
    return card


def check_whole(folder, card, name):
    """WeightsError for a file of an export that is not the one its card tells of."""
    path, wanted = os.path.join(folder, name), card.get("files", {}).get(name)
    if wanted and os.path.exists(path) and sha256(path) != wanted:
        raise WeightsError(
            f"{path} is not the file that {CARD} tells of: a byte of it changed, or the files are of two "
            "exports; copy the folder again"
        )


def sha256(path):
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
