"""Tracklets as lists of frames: which pictures a clip is made of, in training and in testing."""

import functools

import numpy as np

from reid_jax.config import choice
from reid_jax.data import clips
from reid_jax.data.images import Images
from reid_jax.data.transforms import clip_uniforms
from reid_jax.errors import ConfigError

TRAIN_CLIPS = ("strided", "rrs")
TEST_CLIPS = ("all", "begin", "rrs", "interleaved", "consecutive")
ONE_CLIP = {"begin": clips.begin_crop, "rrs": clips.rrs_test}  # one clip stands for the whole tracklet


class Tracklets:
    """The pictures of many tracklets by tracklet and frame; an image counts as a tracklet of one frame.

    Options as for images.Images; with skip a broken frame is replaced by the next readable one of its
    tracklet.
    """

    def __init__(self, records, height, width, **options):
        frames = [r.frames or (r.path,) for r in records]
        self.lengths = np.array([len(f) for f in frames], np.int64)
        self.first = np.cumsum(self.lengths) - self.lengths
        owner = np.repeat(np.arange(len(frames), dtype=np.int32), self.lengths)
        paths = [p for f in frames for p in f]
        self.images = Images(paths, owner, height, width, group="tracklet", **options)

    def read(self, rows, frame):
        """u8[N,T,H,W,3]: frames i[N,T] of the tracklets rows i[N]; black where frame is -1."""
        size = self.images.height, self.images.width, 3
        pictures, wanted = np.zeros((frame.size, *size), np.uint8), self.first[rows][:, None] + frame
        for place in np.flatnonzero(frame >= 0).tolist():
            pictures[place], _ = self.images.get(int(wanted.flat[place]))
        return pictures.reshape(*frame.shape, *size)


class TrainClips:
    """Draws training clips: those of a position depend on (seed, position) and the tracklets alone."""

    def __init__(self, data, seed):
        if data.frames < 1:
            raise ConfigError(f"config.data.frames is {data.frames}; clips need at least 1")
        if data.stride < 1:
            raise ConfigError(f"config.data.stride is {data.stride}; it must be at least 1")
        choice("data.clip", data.clip, TRAIN_CLIPS)
        draw = functools.partial(clips.strided, stride=data.stride) if data.clip == "strided" else clips.rrs
        self.draw, self.size, self.seed = draw, data.frames, seed

    def __call__(self, first, lengths):
        """Frames i64[N,T] of tracklets with `lengths` at the global positions from `first` on."""
        u = clip_uniforms(self.seed, first, len(lengths), self.size)
        return np.stack([self.draw(n, self.size, u=x) for n, x in zip(lengths.tolist(), u, strict=True)])


def plan_clips(lengths, data):
    """(tracklet i32[M], frames i64[M,T]) of all test clips, tracklet after tracklet; -1: beyond its end.

    data.test_clip "all": every frame once, in chunks of data.chunk frames (of the longest tracklet's length
    when that is shorter). The others give clips of data.frames frames.
    """
    choice("data.test_clip", data.test_clip, TEST_CLIPS)
    size = data.chunk if data.test_clip == "all" else data.frames
    if size < 1:
        field = "chunk" if data.test_clip == "all" else "frames"
        raise ConfigError(f"config.data.{field} is {size}; data.test_clip={data.test_clip} needs at least 1")
    if data.test_clip in ONE_CLIP:
        frames = [ONE_CLIP[data.test_clip](n, size)[None] for n in lengths.tolist()]
    elif data.test_clip == "all":
        size = min(size, int(lengths.max()))
        frames = [clips.chunks(n, size) for n in lengths.tolist()]
    else:
        frames = [getattr(clips, data.test_clip)(n, size) for n in lengths.tolist()]
    owner = np.repeat(np.arange(len(frames), dtype=np.int32), [len(f) for f in frames])
    return owner, np.concatenate(frames)


def group(frames, size, pad):
    """Rows of `frames` i[M,T] that make each batch of at most `size` clips: list of i64 arrays.

    pad False: the clips of a batch have the same number of real frames, so that none needs padding.
    """
    rows = np.arange(len(frames))
    if pad:
        return np.split(rows, rows[size::size])
    real = (frames >= 0).sum(1)
    same = [rows[real == n] for n in np.unique(real)[::-1]]
    return [part for members in same for part in np.split(members, np.arange(size, len(members), size))]
