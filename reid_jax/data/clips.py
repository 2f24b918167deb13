"""Which frames of a tracklet make a clip: pure functions of its length and of uniform numbers.

Sources: AP3D (`strided`, `begin_crop`, consecutive chunks), BiCnet-TKS and STMN (restricted random sampling,
interleaved clips).
"""

import numpy as np


def strided(length, size, stride, u):
    """Training clip i64[size], ascending, of a tracklet of `length` >= 1 frames (AP3D); u: f[size] in [0, 1).

    length >= size * stride: every stride-th frame from a random start on. Shorter: `size` different random
    frames. Fewer than `size` frames: random ones with repetition.
    """
    if length >= size * stride:
        return _index(u[0], length - (size - 1) * stride) + np.arange(size) * stride
    if length < size:
        return np.sort(_index(np.asarray(u), length))
    chosen = set()  # Floyd's draw of a subset: every one is as likely
    for last, number in zip(range(length - size, length), u, strict=True):
        frame = int(_index(number, last + 1))
        chosen.add(last if frame in chosen else frame)
    return np.array(sorted(chosen), np.int64)


def rrs_chunks(length, size):
    """[lo, hi) i64[size,2] of restricted random sampling: near-equal parts, larger ones first.

    With fewer frames than parts, part k is the single frame floor(k * length / size).
    """
    k = np.arange(size)
    if length < size:
        low = k * length // size
        return np.stack([low, low + 1], 1)
    width, larger = divmod(length, size)
    low = k * width + np.minimum(k, larger)
    return np.stack([low, low + width + (k < larger)], 1)


def rrs(length, size, u):
    """Training clip i64[size] of restricted random sampling: one frame of each part; u: f[size] in [0, 1)."""
    low, high = rrs_chunks(length, size).T
    return low + _index(np.asarray(u), high - low)


def rrs_test(length, size):
    """Test clip i64[size] of restricted random sampling: the first frame of each part."""
    return rrs_chunks(length, size)[:, 0]


def begin_crop(length, size):
    """Frame indices i64[size] of the quick test clip of a tracklet of `length` >= 1 frames (AP3D).

    From the first frame with the largest stride of 8, 4, 2, 1 that fits; a shorter tracklet is cycled.
    """
    for stride in (8, 4, 2, 1):
        if length > (size - 1) * stride:
            return np.arange(size) * stride
    return np.arange(size) % length


def interleaved(length, size):
    """All frames as n = ceil(length / size) clips i64[n,size], each of which spans the whole tracklet.

    Clip j is frames j, j + n, j + 2n, ... of the tracklet looped from its start to n * size frames.
    """
    return consecutive(length, size).reshape(size, -1).T


def consecutive(length, size):
    """All frames as ceil(length / size) clips i64[n,size], one after the other, the last one looped."""
    clips = -(-length // size)
    return (np.arange(clips * size) % length).reshape(clips, size)


def chunks(length, size):
    """All frames once, as chunks i64[ceil(length / size), size] one after the other; -1 beyond the end."""
    clips = -(-length // size)
    frames = np.arange(clips * size)
    return np.where(frames < length, frames, -1).reshape(clips, size)


def pieces(frames, size):
    """A tuple of frames cut into pieces of `size`; the last one keeps the remainder (AP3D, BiCnet-TKS)."""
    count = max(len(frames) // size, 1)
    ends = [*range(size, count * size, size), len(frames)]
    return [frames[i * size : end] for i, end in enumerate(ends)]


def _index(u, count):
    """floor(u * count), below `count` even where rounding would reach it."""
    return np.minimum(np.floor(u * count).astype(np.int64), count - 1)
