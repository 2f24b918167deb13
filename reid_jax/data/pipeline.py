"""The input pipeline on Grain: reads the batches of streams, and test sets in order.

Reader threads, reader processes and hosts can be changed between runs without changing a batch, see
data.streams.
"""

import sys

import grain
import numpy as np
from absl import flags

from reid_jax.config import choice
from reid_jax.data import decode, degrade
from reid_jax.data.change import Changes
from reid_jax.data.images import Images, Originals, original, training
from reid_jax.data.records import extras
from reid_jax.data.streams import share as share_of
from reid_jax.data.tracklets import Tracklets, TrainClips, group, plan_clips
from reid_jax.data.transforms import Draws, generator
from reid_jax.errors import ConfigError, DataError

GROUPS = {"camid": "camera", "pid": "identity"}  # what pictures that may replace each other share, in words


def open_stream(stream, dataset, data, first_step, share):
    """Batches of a Stream, see Stream.open; share: slice of each global batch that is read."""
    workers = at_least(data, "workers", 0)
    if workers and data.cache_mib:
        raise ConfigError("config.data.cache_mib works with threads only: set config.data.workers=0")
    choice("data.on_broken", data.on_broken, ("stop", "skip"))
    check_fields(dataset, data)
    records = dataset.train[stream.start : stream.start + len(stream.columns["pid"])]
    return Batches(stream.source(records, data, first_step, share), data, workers)


def source(stream, records, data, first_step, share):
    """Grain dataset of a stream of images or clips; records: of the stream's block."""
    size = data.height, data.width
    options = dict(cache_bytes=data.cache_mib << 20, decoder=decode.of(data, train=True), **training(data))
    args = stream, Draws.of(data, stream.seed, stream.views), first_step, share
    if data.frames:
        return ClipSource(Tracklets(records, *size, **options), TrainClips(data, stream.seed), *args)
    options["group"] = GROUPS[stream.alike]
    images = Images([r.path for r in records], replaceable(stream), *size, **options)
    if (changes := Changes.of(data)).any:
        options = dict(group=images.group, pixels=decode.Pixels.of(data), **training(data))
        originals = Originals(images.paths, images.pids, *size, **options)
        return ChangedSource(changes, originals, images, *args)
    if data.degrade.share:
        return DegradedSource(degrade.Settings.of(data.degrade), decode.Pixels.of(data), images, *args)
    return TrainSource(images, *args)


def replaceable(stream):
    """i[N]: images of the same number may stand in for each other; they are of one domain."""
    alike = stream.columns[stream.alike]
    domain = stream.columns.get("domain", np.zeros_like(alike))
    return alike.astype(np.int64) * (int(domain.max()) + 1) + domain


def eval_batches(records, data, batch_size, shard=(0, 1), trains=False):
    """Iterator over records in order, in batches of one size.

    shard (i, n): the i-th contiguous n-th of every batch of batch_size. Yields dicts, N = batch_size / n:
    image u8[N,H,W,3]; camid i32[N]; the records' extra labels; mask bool[N] (False: padding, a black image
    and zeros); index i32[N] (row of records, -1 for padding). A broken image raises PictureError, whatever
    data.on_broken says, as a test set must be whole; of records that train it is replaced when that is
    "skip".
    """
    share = share_of(batch_size, shard, "config.eval.batch_size")
    paths, size = [r.path for r in records], (data.height, data.width)
    alike = [r.pid if r.pid >= 0 else -1 - r.camid for r in records]  # who is unknown: of the same camera
    images = Images(paths, alike, *size, decoder=decode.of(data), **(training(data) if trains else {}))
    return Batches(EvalSource(images, columns_of(records), batch_size, share), data, 0)


def eval_clips(records, data, batch_size, *, pad=True, multiple=1, trains=False):
    """Iterator over the test clips of tracklets (images count as tracklets of one frame), see tracklets.

    About batch_size frames a batch. Yields dicts: image u8[N,T,H,W,3]; mask bool[N] (False: padding); frames
    bool[N,T] (False: padding, a black frame); index i32[N] (row of records, -1 for padding); camid and extra
    labels as in eval_batches. N is the same in all batches and divisible by `multiple`. pad False: no clip
    has padding, T differs between batches (at most data.chunk lengths), and so does the order of the clips. A
    broken image raises PictureError; in tracklets that train it is replaced when data.on_broken is "skip".
    """
    if batch_size < 1:
        raise ConfigError(f"config.eval.batch_size is {batch_size}; it must be at least 1")
    if not records:
        raise DataError("there are no tracklets to embed")
    options = {"decoder": decode.of(data)} | (training(data) if trains else {})
    clips = Tracklets(records, data.height, data.width, **options)
    plan = *plan_clips(clips.lengths, data), batch_size, pad, multiple
    return Batches(EvalClipSource(clips, columns_of(records), *plan), data, 0)


def columns_of(records):
    """{name: array [N, ...]}: what an embedding may know of test records beside the picture."""
    return {"camid": np.array([r.camid for r in records], np.int32), **extras(records)}


def taken(columns, index):
    """The columns at rows index i[N]; zeros where it is -1."""
    rows = {name: values[index] for name, values in columns.items()}
    for values in rows.values():
        values[index < 0] = 0
    return rows


def check_fields(dataset, data):
    """ConfigError when data.frames does not suit the training set, or pictures cannot be as data says."""
    Draws.of(data, 0)
    Changes.of(data)
    decode.Pixels.of(data)
    fill = () if isinstance(data.erase_fill, str) else ("erase_fill",)
    for field in ("mean", "std", *fill):
        if len(getattr(data, field)) != 3:
            raise ConfigError(f"config.data.{field} is {getattr(data, field)}; it must be three numbers, RGB")
    if data.frames and dataset.kind != "video":
        raise ConfigError(
            f"config.data.frames is {data.frames}, but {dataset.name} holds images: set it to 0"
        )
    if not data.frames and dataset.kind == "video":
        raise ConfigError(
            f"{dataset.name} holds tracklets: set config.data.frames, the frames of a clip, for example to 4"
        )


def at_least(data, field, low):
    """data.FIELD; ConfigError when it is lower than `low`."""
    if getattr(data, field) < low:
        raise ConfigError(f"config.data.{field} is {getattr(data, field)}; it must be at least {low}")
    return getattr(data, field)


class Steps(grain.MapDataset):
    """Element k: the batch of step first_step + k of a stream, by `batch` of a subclass.

    Whole batches are one Grain element each: small images decode faster than Grain handles records one by
    one.
    """

    def __init__(self, stream, first_step, share):
        super().__init__()
        self.stream, self.first_step, self.share = stream, first_step, share

    def __len__(self):
        return sys.maxsize - self.first_step

    def __getitem__(self, k):
        return self.slice(k) if isinstance(k, slice) else self.batch(self.first_step + k)


class TrainSource(Steps):
    """Batches of images, see Stream."""

    def __init__(self, images, stream, draws, first_step, share):
        super().__init__(stream, first_step, share)
        self.images, self.draws = images, draws

    def batch(self, step):
        """What a step takes of the share."""
        position = step * self.stream.size + self.share.start
        image, rows = self.read(self.stream.sampler.batch(step)[self.share], position)
        columns = {name: values[rows] for name, values in self.stream.columns.items()}
        return {"image": image, **columns, "index": rows, **self.draws(position, len(rows))}

    def read(self, rows, position):
        """(pictures u8[B,...] of the rows from a global position on, rows that they really show)."""
        del position
        image = np.empty((len(rows), self.images.height, self.images.width, 3), np.uint8)
        return image, self.images.fill(rows, image)


class DegradedSource(TrainSource):
    """TrainSource that degrades some images; settings: a degrade.Settings, pixels: a decode.Pixels."""

    def __init__(self, settings, pixels, *args):
        super().__init__(*args)
        self.settings, self.pixels = settings, pixels

    def read(self, rows, position):
        image, used = super().read(rows, position)
        for i, row in enumerate(used):
            rng = generator(self.stream.seed, 0x64656772, position + i)
            if rng.random() < self.settings.share:
                picture = self.settings.draw(rng, original(self.images.paths[row], self.pixels))
                image[i] = degrade.enlarge(picture, *image[i].shape[:2])
        return image, used


class ChangedSource(TrainSource):
    """TrainSource of which some pictures are changed before they are resized; originals: an Originals."""

    def __init__(self, changes, originals, *args):
        super().__init__(*args)
        self.changes, self.originals = changes, originals

    def read(self, rows, position):
        rngs = [generator(self.stream.seed, 0x6368616E, position + i) for i in range(len(rows))]
        drawn = [self.changes.drawn(rng) for rng in rngs]
        left = np.array([not any(how) for how in drawn], bool)
        image = np.empty((len(rows), self.images.height, self.images.width, 3), np.uint8)
        used = rows.copy()
        image[left], used[left] = super().read(rows[left], position)
        for i in np.flatnonzero(~left).tolist():
            picture, used[i] = self.originals.get(int(rows[i]))
            image[i] = self.changes.made(rngs[i], picture, *drawn[i])
        return image, used


class ClipSource(TrainSource):
    """Batches of clips. images: a Tracklets; clips: a TrainClips."""

    def __init__(self, images, clips, *args):
        super().__init__(images, *args)
        self.clips = clips

    def read(self, rows, position):
        frames = self.clips(position, self.images.lengths[rows])
        return self.images.read(rows, frames), rows.copy()


class TripleSource(Steps):
    """Batches of a data.triples.Triples."""

    def __init__(self, stream, records, data, first_step, share):
        super().__init__(stream, first_step, share)
        if Changes.of(data).any:
            raise ConfigError(
                "triples take pictures whole: leave config.data.crop at none and autoaugment at 0"
            )
        size, alike = (data.height, data.width), replaceable(stream)
        options = {"group": GROUPS[stream.alike], "pixels": decode.Pixels.of(data), **training(data)}
        images = Originals([r.path for r in records], alike, *size, **options)
        self.given = images, degrade.Settings.of(data.degrade)

    def batch(self, step):
        """What a step takes of the share."""
        return self.stream.batch(*self.given, step, self.share)


class EvalSource(grain.MapDataset):
    """Element k: rows k * size .. of the records, padded to the full size."""

    def __init__(self, images, columns, size, share):
        super().__init__()
        self.images, self.columns, self.size, self.share = images, columns, size, share

    def __len__(self):
        return -(-len(self.images.paths) // self.size)

    def __getitem__(self, k):
        if isinstance(k, slice):
            return self.slice(k)
        rows = np.arange(k * self.size, (k + 1) * self.size, dtype=np.int32)[self.share]
        mask = rows < len(self.images.paths)
        image = np.zeros((len(rows), self.images.height, self.images.width, 3), np.uint8)
        self.images.fill(rows[mask], image)
        index = np.where(mask, rows, -1).astype(np.int32)
        return {"image": image, **taken(self.columns, index), "mask": mask, "index": index}


class EvalClipSource(grain.MapDataset):
    """Element k: the k-th batch of test clips, padded to the full number of clips."""

    def __init__(self, tracklets, columns, owner, frames, batch_size, pad, multiple):
        super().__init__()
        self.columns, self.tracklets, self.owner, self.frames = columns, tracklets, owner, frames
        self.pad, self.size = pad, -(-max(batch_size // frames.shape[1], 1) // multiple) * multiple
        self.batches = group(frames, self.size, pad)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, k):
        if isinstance(k, slice):
            return self.slice(k)
        rows = self.batches[k]
        frames = self.frames[rows]
        if not self.pad:
            frames = frames[:, (frames >= 0).any(0)]
        extra = (0, self.size - len(rows))
        frames = np.pad(frames, (extra, (0, 0)), constant_values=-1)
        index = np.pad(self.owner[rows], extra, constant_values=-1)
        image = self.tracklets.read(np.maximum(index, 0), frames)
        rows = {"mask": index >= 0, "index": index, **taken(self.columns, index)}
        return {"image": image, "frames": frames >= 0, **rows}


class Batches:
    """Iterator over a Grain dataset that stops its threads or processes when closed or dropped."""

    _iterator = None

    def __init__(self, source, data, workers):
        prefetch, threads = at_least(data, "prefetch", 1), at_least(data, "threads", 1)
        if workers:
            source = in_processes(source, workers, prefetch)
        else:
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
            source = source.to_iter_dataset(options)
        self._iterator = iter(source)

    def __iter__(self):
        return self

    def __next__(self):
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except BaseException:
            self.close()
            raise

    def close(self):
        """Stops reading; may be called more than once."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __del__(self):
        self.close()


def in_processes(source, workers, prefetch):
    """Grain dataset read by processes; they read in turn, so the order stays that of one process."""
    if not flags.FLAGS.is_parsed():
        raise ConfigError(
            "config.data.workers > 0 starts processes, and Grain then needs parsed absl flags: start through "
            "absl.app.run, call absl.flags.FLAGS.mark_as_parsed(), or set config.data.workers=0 (threads)"
        )
    dataset = source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=-(-prefetch // workers))
    return dataset.mp_prefetch(options)
