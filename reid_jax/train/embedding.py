"""Features of pictures and tracklets by a trained network: compiled once, in batches, over all devices."""

import dataclasses
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from reid_jax.data import pipeline, tracklets
from reid_jax.errors import ConfigError
from reid_jax.eval import (
    embed,
    store,
)
from reid_jax.train import processes

log = logging.getLogger(__name__)


class Embedder:
    """One network of a method as compiled functions for batches that devices's local devices divide.

    image: (state, {"image": u8[B,H,W,3] or clips u8[B,T,H,W,3], "camid": i32[B], ...}) -> [B,D].
    frames: (state, {"image": clips, "frames": bool[B,T], "camid": i32[B]}) -> f32[B,C], sums of the real
    frames' vectors.
    pooled: (state, f32[B,C]) -> [B,D], tracklets by their mean vectors.
    """

    def __init__(self, method, net, devices):
        self.method, self.multiple, self.warned = method, len(devices.local), False
        self.image = devices.compile_embed(lambda state, batch: self._feature(state, batch, net))
        self.frames = devices.compile_embed(lambda state, clips: self._sums(state, clips, net))
        self.pooled = devices.compile_embed(lambda state, mean: method.embed_pooled(state, mean, net))

    def seen(self, records, foreign):
        """Records with the cameras that the network gets: -1 for those it has not been trained on.

        foreign: all of them, as they count otherwise than in training. One warning in all.
        """
        if not self.method.wants_camera:
            return records
        known = 0 if foreign else self.method.info.num_cams
        masked = [r if 0 <= r.camid < known else dataclasses.replace(r, camid=-1) for r in records]
        unknown = sum(r.camid < 0 for r in masked)
        if unknown and not self.warned:
            self.warned = True
            log.warning(
                "%d of %d pictures are by cameras that training has not seen: they get the mean of the "
                "cameras' embeddings (config.model.vit_sie)",
                unknown,
                len(masked),
            )
        return masked

    @property
    def mirrors(self):
        """Whether mirrored pictures are embedded too."""
        config = getattr(self.method, "config", None)
        return config is not None and getattr(config.eval, "mirror", False)

    def _feature(self, state, batch, net):
        feature = self.method.embed_batch(state, batch, net)
        if self.mirrors:
            feature += self.method.embed_batch(state, batch | {"image": mirrored(batch["image"])}, net)
        return feature

    def _sums(self, state, clips, net):
        extra = {"camera": clips["camid"]} if self.method.wants_camera else {}
        vectors = self.method.embed_frames(state, clips["image"], net, **extra)
        if self.mirrors:
            vectors = (vectors + self.method.embed_frames(state, mirrored(clips["image"]), net, **extra)) / 2
        return jnp.where(clips["frames"][..., None], vectors.astype(jnp.float32), 0).sum(1)


def mirrored(image):
    """Pictures or clips [...,H,W,3] mirrored left to right."""
    return image[..., ::-1, :]


def feature_set(
    config, embedder, state, splits, root, progress=False, shared=False, trains=False, foreign=False
):
    """FeatureSet of {split: records} by an Embedder and a state, paths relative to root.

    Tracklets are tested as config.data.test_clip says; a run on images takes all their frames. shared: all
    processes call this; each embeds its part of the records, and all get the whole. trains: they are training
    records, of which broken ones may be replaced (config.data.on_broken). foreign: their cameras count
    otherwise than in training.
    """
    records = [r for part in splits.values() for r in part]
    if shared and len(records) >= jax.process_count():
        part = records[processes.parts(len(records))[jax.process_index()]]
        feature = embed_records(config, embedder, state, part, progress, trains, foreign)
        feature = processes.gather(feature, len(records))
    else:
        feature = embed_records(config, embedder, state, records, progress, trains, foreign)
    return labelled(feature, splits, root)


def labelled(feature, splits, root):
    """FeatureSet of features f32[N,D] of {split: records}, in order, paths relative to root."""
    records = [r for part in splits.values() for r in part]
    return store.FeatureSet(
        feature=feature,
        pid=np.array([r.pid for r in records], np.int64),
        camid=np.array([r.camid for r in records], np.int32),
        path=np.array([os.path.relpath(r.path, root) for r in records]),
        split=np.repeat(list(splits), [len(part) for part in splits.values()]),
    )


def embed_records(config, embedder, state, records, progress=False, trains=False, foreign=False):
    """f32[N,D] of records by an Embedder and a state, on this process alone; see `feature_set`."""
    records = embedder.seen(records, foreign)
    size = -(-config.eval.batch_size // embedder.multiple) * embedder.multiple
    if not config.data.frames and not any(r.frames for r in records):
        return embed.joined(embed_images(config, embedder, state, records, progress, trains, foreign))
    if config.data.test_clip in tracklets.ONE_CLIP:
        with clip_batches(config, embedder, records, trains) as batches:
            shown = tqdm(batches, unit="batch", disable=not progress)
            return embed.embed(lambda batch: embedder.image(state, batch), shown)
    mean = mean_vectors(config, embedder, state, records, progress, trains)
    return embed.embed(lambda batch: embedder.pooled(state, batch["image"]), padded(mean, size))


def embed_images(config, embedder, state, records, progress=False, trains=False, foreign=False):
    """Yields f32[n,D] of pictures, batch by batch; see `embed_records`."""
    records = embedder.seen(records, foreign)
    size = -(-config.eval.batch_size // embedder.multiple) * embedder.multiple
    with pipeline.eval_batches(records, config.data, size, trains=trains) as batches:
        shown = tqdm(batches, total=-(-len(records) // size), unit="batch", disable=not progress)
        yield from embed.each(lambda batch: embedder.image(state, batch), shown)


def clip_batches(config, embedder, records, trains=False):
    """pipeline.eval_clips for an Embedder."""
    pad, size = embedder.method.frames_apart, config.eval.batch_size
    options = dict(pad=pad, multiple=embedder.multiple, trains=trains)
    return pipeline.eval_clips(records, config.data, size, **options)


def by_frames(config, records):
    """Whether records are tested by the vectors of their frames, and not as images or one clip each."""
    moving = config.data.frames or any(r.frames for r in records)
    return bool(moving) and config.data.test_clip not in tracklets.ONE_CLIP


def check_frames(config, method):
    """ConfigError when a method has no vectors of frames."""
    if not method.embeds_frames:
        raise ConfigError(
            f"config.data.test_clip is {config.data.test_clip!r}, but method {config.method} embeds whole "
            f"clips only: use {' or '.join(tracklets.ONE_CLIP)}"
        )


def mean_vectors(config, embedder, state, records, progress=False, trains=False):
    """f32[N,C]: the mean of the vectors of all frames of each record; only sums leave the device.

    ConfigError when the method has no vectors of frames.
    """
    check_frames(config, embedder.method)
    total, count = None, np.zeros(len(records), np.int64)

    def add(batch, sums):
        nonlocal total
        rows, real = batch["index"][batch["mask"]], batch["frames"][batch["mask"]].sum(1)
        sums = np.asarray(sums, np.float32)[batch["mask"]]
        if total is None:
            total = np.zeros((len(records), sums.shape[1]), np.float32)
        np.add.at(total, rows, sums)
        np.add.at(count, rows, real)

    with clip_batches(config, embedder, records, trains) as batches:
        waiting = None  # its sums are fetched once the next batch is on its way
        for batch in tqdm(batches, unit="batch", disable=not progress):
            clips = {"image": batch.pop("image"), "frames": batch["frames"], "camid": batch["camid"]}
            ahead = batch, embedder.frames(state, clips)
            if waiting:
                add(*waiting)
            waiting = ahead
        add(*waiting)
    return total / count[:, None]


def padded(vectors, size):
    """Batches as embed.embed takes them of rows f32[N,C]."""
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        extra = (0, size - len(part))
        yield {"image": np.pad(part, (extra, (0, 0))), "mask": np.arange(size) < len(part)}
