"""The input pipeline on Grain: batch s is a pure function of (dataset, config, seed, s).

So training resumes at any step without saved iterator state, and reader threads, reader processes and hosts
can be changed between runs without changing a batch.
"""

import sys

import grain
import numpy as np
from absl import flags

from reid_jax.config import choice
from reid_jax.data import degrade
from reid_jax.data.images import Images, original
from reid_jax.data.sampler import CameraSampler, PKSampler
from reid_jax.data.tracklets import Tracklets, TrainClips, group, plan_clips
from reid_jax.data.transforms import Draws, generator
from reid_jax.data.triples import TripleSampler, TripleSource
from reid_jax.errors import ConfigError, DataError

KINDS = ("pk", "labels", "cameras", "triples")


def steps_per_epoch(dataset, data, kind="pk", labels=None):
    """Batches of one epoch. data: the config's `data` section; kind, labels: as in train_batches."""
    return make_sampler(dataset, data, 0, kind, labels).batches_per_epoch


def make_sampler(dataset, data, seed, kind="pk", labels=None):
    """The sampler of a training set for batches of `kind`, one of KINDS."""
    choice("batches", kind, KINDS)
    if kind == "pk":
        labels = np.array([r.pid for r in dataset.train])
    cameras = np.array([r.camid for r in dataset.train])
    if kind == "cameras":
        return CameraSampler(cameras, data.instances, seed, labels)
    if kind == "triples":
        return TripleSampler(cameras, data, seed)
    return PKSampler(labels, data.ids, data.instances, seed, data.distinct_ids)


def train_batches(dataset, data, *, seed, start_step=0, shard=(0, 1), kind="pk", labels=None):
    """Endless iterator of training batches from `start_step` on.

    kind: "pk" (P identities x K images); with pseudo labels i32[N] of dataset.train, which then stand for the
    identities and leave out images labelled -1: "labels" (P labels x K images), "cameras" (K images of each
    of P cameras, image j of camera c at row j * P + c). "triples": P * K times an image, its synthetic
    degradation and another image, see data.triples, whose batches differ from what follows.

    shard (i, n): the i-th contiguous n-th of every global batch of P*K images. A batch is a dict of numpy
    arrays, B = P*K / n, V = 2 views: image u8[B,H,W,3], with data.frames = T > 0 clips u8[B,T,H,W,3]; pid,
    camid, index i32[B] (index: row of dataset.train); flip bool[B,V]; crop i32[B,V,2]; erase i32[B,V,4] (see
    transforms.Draws; the frames of a clip share them, and both views share the frames). Reads with
    data.threads threads, or data.workers processes when that is not 0. close() the iterator (or drop it) to
    stop them. Errors: ConfigError for fields that do not fit; DataError while iterating for a broken image.
    """
    part = share(data.ids * data.instances, shard, "config.data.ids * config.data.instances")
    workers = at_least(data, "workers", 0)
    if workers and data.cache_mib:
        raise ConfigError("config.data.cache_mib works with threads only: set config.data.workers=0")
    choice("data.on_broken", data.on_broken, ("stop", "skip"))
    check_kind(dataset, data)
    records, size = dataset.train, (data.height, data.width)
    options = dict(skip=data.on_broken == "skip", cache_bytes=data.cache_mib << 20, decoder=data.decoder)
    known = {f: np.array([getattr(r, f) for r in records], np.int32) for f in ("pid", "camid")}
    if labels is not None:
        known["pid"] = np.asarray(labels, np.int32)
    sampler = make_sampler(dataset, data, seed, kind, labels)
    given = known, sampler, Draws.of(data, seed), start_step, part
    if kind == "triples":
        source = TripleSource(records, data, seed, known, sampler, start_step, part)
    elif data.frames:
        source = ClipSource(Tracklets(records, *size, **options), TrainClips(data, seed), *given)
    else:
        alike = "camid" if labels is not None else "pid"  # what may stand in for a broken image
        options["group"] = {"camid": "camera", "pid": "identity"}[alike]
        images = Images([r.path for r in records], known[alike], *size, **options)
        source = TrainSource(images, *given)
        if data.degrade.share:
            source = DegradedSource(degrade.Settings.of(data.degrade), seed, images, *given)
    return Batches(source, data, workers)


def eval_batches(records, data, batch_size, shard=(0, 1)):
    """Iterator over records in order, in batches of one size.

    shard (i, n): the i-th contiguous n-th of every batch of batch_size. Yields dicts, N = batch_size / n:
    image u8[N,H,W,3]; mask bool[N] (False: padding, a black image); index i32[N] (row of records, -1 for
    padding). A broken image raises DataError, whatever data.on_broken says: a test set must be whole.
    """
    part = share(batch_size, shard, "config.eval.batch_size")
    paths, pids = [r.path for r in records], [r.pid for r in records]
    images = Images(paths, pids, data.height, data.width, decoder=data.decoder)
    return Batches(EvalSource(images, batch_size, part), data, 0)


def eval_clips(records, data, batch_size, *, pad=True, multiple=1):
    """Iterator over the test clips of tracklets (images count as tracklets of one frame), see tracklets.

    About batch_size frames a batch. Yields dicts: image u8[N,T,H,W,3]; mask bool[N] (False: padding); frames
    bool[N,T] (False: padding, a black frame); index i32[N] (row of records, -1 for padding). N is the same
    in all batches and divisible by `multiple`. pad False: no clip has padding, T differs between batches
    (at most data.chunk lengths), and so does the order of the clips. A broken image raises DataError.
    """
    if batch_size < 1:
        raise ConfigError(f"config.eval.batch_size is {batch_size}; it must be at least 1")
    if not records:
        raise DataError("there are no tracklets to embed")
    found = Tracklets(records, data.height, data.width, decoder=data.decoder)
    source = EvalClipSource(found, *plan_clips(found.lengths, data), batch_size, pad, multiple)
    return Batches(source, data, 0)


def check_kind(dataset, data):
    """ConfigError when data.frames does not suit the training set, or pictures cannot be as data says."""
    Draws.of(data, 0)
    for field in ("mean", "std", "erase_fill"):
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


def share(size, shard, fields):
    """slice of a global batch of `size` that belongs to shard (i, n)."""
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(f"shard {index} of {count} does not exist")
    if size < count or size % count:
        raise ConfigError(f"{fields} is {size}, which {count} hosts cannot share evenly")
    return slice(index * size // count, (index + 1) * size // count)


def at_least(data, field, low):
    """data.FIELD; ConfigError when it is lower than `low`."""
    if getattr(data, field) < low:
        raise ConfigError(f"config.data.{field} is {getattr(data, field)}; it must be at least {low}")
    return getattr(data, field)


class TrainSource(grain.MapDataset):
    """Element k: batch start_step + k. Whole batches are one Grain element each: small images decode faster
    than Grain handles records one by one."""

    def __init__(self, images, labels, sampler, draws, start_step, part):
        super().__init__()
        self.images, self.labels, self.sampler, self.draws = images, labels, sampler, draws
        self.start_step, self.part = start_step, part

    def __len__(self):
        return sys.maxsize - self.start_step

    def __getitem__(self, k):
        if isinstance(k, slice):
            return self.slice(k)
        step, part, sampler = self.start_step + k, self.part, self.sampler
        epoch, batch = divmod(step, sampler.batches_per_epoch)
        position = step * sampler.ids * sampler.instances + part.start
        image, rows = self.read(sampler.epoch(epoch)[batch, part], position)
        labels = {name: values[rows] for name, values in self.labels.items()}
        return {"image": image, **labels, "index": rows, **self.draws(position, len(rows))}

    def read(self, rows, position):
        """(pictures u8[B,...] of the rows from a global position on, rows that they really show)."""
        del position
        image = np.empty((len(rows), self.images.height, self.images.width, 3), np.uint8)
        return image, self.images.fill(rows, image)


class DegradedSource(TrainSource):
    """TrainSource that degrades some images; settings: a degrade.Settings."""

    def __init__(self, settings, seed, *given):
        super().__init__(*given)
        self.settings, self.seed = settings, seed

    def read(self, rows, position):
        image, used = super().read(rows, position)
        for i, row in enumerate(used):
            rng = generator(self.seed, 0x64656772, position + i)
            if rng.random() < self.settings.share:
                picture = self.settings.draw(rng, original(self.images.paths[row]))
                image[i] = degrade.enlarge(picture, *image[i].shape[:2])
        return image, used


class ClipSource(TrainSource):
    """Element k: batch start_step + k, of clips. images: a Tracklets; clips: a TrainClips."""

    def __init__(self, images, clips, *given):
        super().__init__(images, *given)
        self.clips = clips

    def read(self, rows, position):
        frames = self.clips(position, self.images.lengths[rows])
        return self.images.read(rows, frames), rows.copy()


class EvalSource(grain.MapDataset):
    """Element k: rows k * size .. of the records, padded to the full size."""

    def __init__(self, images, size, part):
        super().__init__()
        self.images, self.size, self.part = images, size, part

    def __len__(self):
        return -(-len(self.images.paths) // self.size)

    def __getitem__(self, k):
        if isinstance(k, slice):
            return self.slice(k)
        rows = np.arange(k * self.size, (k + 1) * self.size, dtype=np.int32)[self.part]
        mask = rows < len(self.images.paths)
        image = np.zeros((len(rows), self.images.height, self.images.width, 3), np.uint8)
        self.images.fill(rows[mask], image)
        return {"image": image, "mask": mask, "index": np.where(mask, rows, -1).astype(np.int32)}


class EvalClipSource(grain.MapDataset):
    """Element k: the k-th batch of test clips, padded to the full number of clips."""

    def __init__(self, tracklets, owner, frames, batch_size, pad, multiple):
        super().__init__()
        self.tracklets, self.owner, self.frames = tracklets, owner, frames
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
        return {"image": image, "mask": index >= 0, "frames": frames >= 0, "index": index}


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
