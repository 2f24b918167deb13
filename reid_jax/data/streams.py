"""Streams of training batches: which rows come together, what is known of them, how they are augmented.

A stream needs neither files nor the input pipeline until it is opened, so methods can make streams
anywhere. Batch s is a pure function of (stream, s): training resumes at any step, and reader threads, reader
processes and hosts change no batch.
"""

import dataclasses
import functools

import numpy as np

from reid_jax.config import choice
from reid_jax.data.samplers import Sampler, checked_size
from reid_jax.data.samplers.domains import Cameras, Domains
from reid_jax.data.samplers.groups import EveryCamera, Gallery, Uniform
from reid_jax.data.samplers.identities import PK, Pairs
from reid_jax.data.samplers.images import Positives, Shuffled
from reid_jax.data.transforms import NO_JITTER, VIEWS
from reid_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Endless batches of rows of a training set.

    sampler: chooses rows of a block of dataset.train that begins at row `start`. columns: {"pid", "camid" and
    more: array [N, ...]}, of the block's rows; those of a batch's rows come with it. seed: of what is drawn
    for augmentation and clips. views: how each view of an image is augmented, "strong" (config's flip, crop
    and erasing) or "weak" (flip and crop); another view leaves the draws of those before as they are.
    alike: the column in which an image agrees with another that may replace it when its file is broken.

    A batch is a dict of numpy arrays, B rows of V views: image u8[B,H,W,3], with data.frames = T > 0 clips
    u8[B,T,H,W,3]; the columns; index i32[B] (row of the block); flip bool[B,V]; crop i32[B,V,2]; erase
    i32[B,V,4], with data.jitter jitter f32[B,V,4] (see transforms.Draws; the frames of a clip share them, and
    all views share the frames).
    """

    sampler: Sampler
    columns: dict
    seed: int
    views: tuple = ("strong", "strong")
    start: int = 0
    alike: str = "pid"

    @property
    def size(self):
        """Rows of a global batch."""
        return self.sampler.size

    @property
    def steps_per_epoch(self):
        """Batches of an epoch."""
        return self.sampler.batches_per_epoch

    def example(self, data, size=2):
        """A batch of zeros of `size` rows, as the opened stream gives it; data: the config's section."""
        views, frames = len(self.views), [data.frames] if data.frames else []
        return {
            "image": np.zeros((size, *frames, data.height, data.width, 3), np.uint8),
            **{n: np.zeros((size, *v.shape[1:]), v.dtype) for n, v in self.columns.items()},
            "index": np.zeros(size, np.int32),
            "flip": np.zeros((size, views), bool),
            "crop": np.zeros((size, views, 2), np.int32),
            "erase": np.zeros((size, views, 5 if isinstance(data.erase_fill, str) else 4), np.int32),
            **({"jitter": np.tile(NO_JITTER, (size, views, 1))} if any(data.jitter) else {}),
        }

    def open(self, dataset, data, first_step=0, shard=(0, 1)):
        """Iterator over the batches from `first_step` on, to be closed (or dropped) to stop its readers.

        dataset: the Dataset whose rows these are; data: the config's section. shard (i, n): the i-th
        contiguous n-th of every batch. Reads with data.threads threads, or data.workers processes when that
        is not 0. Errors: ConfigError for fields that do not fit; DataError while iterating for a broken
        image.
        """
        from reid_jax.data import pipeline

        return pipeline.open_stream(self, dataset, data, first_step, self.share(shard))

    def source(self, records, data, first_step, share):
        """Grain dataset of the batches; records: the block's, share: slice of each batch."""
        from reid_jax.data import pipeline

        return pipeline.source(self, records, data, first_step, share)

    def share(self, shard):
        """slice of a global batch that belongs to shard (i, n); ConfigError when it cannot be cut so."""
        unit = self.sampler.unit
        whole = share(self.size // unit, shard, self.sampler.units)
        return slice(whole.start * unit, whole.stop * unit)

    def check_shared(self, name, count):
        """Raises ConfigError, which calls the stream `name`, unless its batches can be cut for `count`."""
        try:
            self.share((0, count))
        except ConfigError as error:
            raise ConfigError(f"batches of the stream {name!r}: {error}") from error


def share(size, shard, fields):
    """slice of `size` that belongs to shard (i, n); fields: what `size` is, for the ConfigError."""
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(f"shard {index} of {count} does not exist")
    if size < count or size % count:
        raise ConfigError(f"{fields} is {size}, which {count} hosts or devices cannot share evenly")
    return slice(index * size // count, (index + 1) * size // count)


# ---- constructors ----------------------------------------------------------------------------------------
# rows: data.rows.Rows. data: the config's section. labels: pseudo labels i32[N] that stand for the identities
# and leave out the rows labelled -1. groups: i[N], what batches are composed by instead of labels or
# identities; rows of group -1 are left out too. ids, instances: 0 for data.ids and data.instances.


def pk(rows, data, seed, labels=None, groups=None, views=VIEWS, *, ids=0, instances=0):
    """P identities with K images each, see PK."""
    ids, instances = ids or data.ids, instances or data.instances
    groups = chosen_groups(rows, labels, groups)
    return build(rows, PK(groups, ids, instances, seed, data.distinct_ids), seed, labels, views)


def uniform(rows, data, seed, labels=None, groups=None, views=VIEWS, *, ids=0, instances=0):
    """P groups with K images each, every group once an epoch, see Uniform."""
    groups = chosen_groups(rows, labels, groups)
    sampler = Uniform(groups, ids or data.ids, instances or data.instances, seed)
    return build(rows, sampler, seed, labels, views)


def gallery(rows, data, seed, labels=None, groups=None, views=VIEWS, *, ids=0, instances=0):
    """Groups of K images by several cameras (data.cross_camera), see Gallery."""
    sampler = gallery_sampler(rows, data, seed, chosen_groups(rows, labels, groups), ids, instances)
    return build(rows, sampler, seed, labels, views)


def every_camera(rows, data, seed, labels=None, groups=None, views=VIEWS, *, ids=0, instances=0):
    """Groups of K images, one of each of their cameras first, see EveryCamera."""
    groups = chosen_groups(rows, labels, groups)
    sampler = gallery_sampler(rows, data, seed, groups, ids, instances, EveryCamera)
    return build(rows, sampler, seed, labels, views)


def shuffled(rows, data, seed, labels=None, groups=None, views=VIEWS, *, ids=0, instances=0):
    """Every image once an epoch, ids * instances in a batch; without labels those without identity too."""
    everything = labels is None and groups is None
    groups = np.zeros(len(rows.pid)) if everything else chosen_groups(rows, labels, groups)
    size = checked_size(ids or data.ids, instances or data.instances)
    return build(rows, Shuffled(groups, size, seed), seed, labels, views)


def positives(rows, data, seed, labels=None, groups=None, views=VIEWS, *, ids=0, instances=0):
    """ids * instances images a batch, each with another one of its group, see Positives."""
    size = checked_size(ids or data.ids, instances or data.instances)
    sampler = Positives(chosen_groups(rows, labels, groups), size, seed)
    return build(rows, sampler, seed, labels, views)


def cameras(rows, data, seed, labels=None, groups=None, views=VIEWS, *, instances=0):
    """K images of each camera (or group), image j of camera c at row j * C + c, see Cameras."""
    groups = rows.camid if groups is None else np.asarray(groups)
    sampler = Cameras(groups, instances or data.instances, seed, labels)
    return build(rows, sampler, seed, labels, views)


def domains(rows, data, seed, labels=None, groups=None, views=VIEWS, *, ids=0, instances=0, within="pk"):
    """P identities of every domain with K images each, see Domains.

    within: how the images of a domain are chosen, "pk" or "gallery". data.pair_ids: the same identities in
    every domain, see Pairs. data.epoch_steps: length of an epoch, 0 for the longest domain's.
    Errors: DataError when there is one domain only or one is too small.
    """
    if rows.num_domains < 2:
        cameras = ", or take cameras for domains with config.data.domains=camera"
        raise DataError(
            "the training images come from one domain: join sets in config.data.name"
            + ("" if data.domains == "camera" else cameras)
        )
    choice("within", within, ("pk", "gallery"))
    if data.epoch_steps < 0:
        raise ConfigError(f"config.data.epoch_steps is {data.epoch_steps}; it must be at least 0")
    ids, instances = ids or data.ids, instances or data.instances
    groups = chosen_groups(rows, labels, groups)
    if data.pair_ids:
        pairs = Pairs(groups, rows.domain, ids, instances, seed, data.distinct_ids)
        sampler = Domains([pairs], pairs.unit, data.epoch_steps)
    else:
        draw = functools.partial(domain_sampler, rows, data, seed, groups, ids, instances, within)
        apart = [draw(d) for d in range(rows.num_domains)]
        sampler = Domains(apart, instances, data.epoch_steps)
    return build(rows, sampler, seed, labels, views)


def triples(rows, data, seed):
    """ids * instances times an image, its synthetic degradation and another image, see data.triples."""
    from reid_jax.data.triples import Triples, TripleSampler

    stream = build(rows, TripleSampler(rows.camid, data, seed), seed, None, ())
    return Triples(**{f.name: getattr(stream, f.name) for f in dataclasses.fields(stream)})


def sizes(data, stream):
    """{"ids", "instances"} of a second stream, "source" or "meta": data.STREAM_ids and _instances, 0 for
    those of the first; keyword arguments of the constructors."""
    choice("stream", stream, ("source", "meta"))
    source = stream == "source"
    ids, instances = (
        (data.source_ids, data.source_instances) if source else (data.meta_ids, data.meta_instances)
    )
    return {"ids": ids or data.ids, "instances": instances or data.instances}


def build(rows, sampler, seed, labels, views):
    """Stream of a sampler over rows."""
    pid = rows.pid if labels is None else np.asarray(labels, np.int32)
    columns = {"pid": pid, "camid": rows.camid}
    if rows.num_domains > 1:
        columns["domain"] = rows.domain
    alike = "pid" if labels is None and rows.num_pids else "camid"
    return Stream(sampler, columns | rows.extras, seed, tuple(views), rows.start, alike)


def chosen_groups(rows, labels, groups):
    """i[N]: groups, or else labels, or else identities; -1 where the label or the group is."""
    labels = None if labels is None else np.asarray(labels)
    if groups is None:
        return rows.pid if labels is None else labels
    return np.asarray(groups) if labels is None else np.where(labels >= 0, groups, -1)


def gallery_sampler(rows, data, seed, groups, ids, instances, sampler=Gallery):
    """Gallery, or one of its kin, as data says."""
    camids = rows.camid if data.cross_camera else None
    return sampler(groups, camids, ids or data.ids, instances or data.instances, seed)


def domain_sampler(rows, data, seed, groups, ids, instances, within, domain):
    """Sampler of the rows of one domain; DataError naming the domain."""
    groups = np.where(rows.domain == domain, groups, -1)
    seed = int(np.random.SeedSequence((seed % 2**64, domain)).generate_state(1, np.uint64)[0])
    try:
        if within == "gallery":
            return gallery_sampler(rows, data, seed, groups, ids, instances)
        return PK(groups, ids, instances, seed, data.distinct_ids)
    except DataError as e:
        raise DataError(f"domain {domain} of the training set: {e}") from e
