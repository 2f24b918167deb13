"""Seeded features of a made-up data set, for timing and checking retrieval at full size.

Every number comes from a 64-bit integer hash of (seed, stream, counter), so the same sizes give the same
bytes on any machine. Features are identity centre x strength + camera offset + noise.
"""

import concurrent.futures
import os
from typing import NamedTuple

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_PAIR, _GALLERY_PAIR, _LOST_CAMERA, _STRENGTH = 1, 2, 3, 4  # streams
_CENTRE, _OFFSET, _QUERY_NOISE, _GALLERY_NOISE, _LOST_CENTRE = 10, 11, 12, 13, 14
_ID_SCALE, _CAMERA_SCALE = np.float32(0.48), np.float32(0.15)
_BLOCK = 64  # rows made at a time: their hashes stay in the cache


class Sizes(NamedTuple):
    """Numbers of queries, gallery images, identities, cameras, distractors in the gallery; the dimension."""

    queries: int
    gallery: int
    ids: int
    cameras: int
    distractors: int
    dim: int = 2048


SIZES = {
    "market": Sizes(3368, 19732, 750, 6, 2793),
    "msmt17": Sizes(11659, 82161, 3060, 15, 0),
}


class Problem(NamedTuple):
    """A retrieval problem: features f32[N,dim], pids (0: distractor) and cameras (from 0) i64[N]."""

    q_feat: np.ndarray
    g_feat: np.ndarray
    q_pid: np.ndarray
    g_pid: np.ndarray
    q_cam: np.ndarray
    g_cam: np.ndarray


def make(sizes, seed=0, allocate=None) -> Problem:
    """The problem of these Sizes. allocate: function of a shape that returns the array f32 for features.

    One query for each of `queries` (identity, camera) pairs, drawn without repetition; gallery images are of
    pairs drawn from these, distractors (at the end) of cameras drawn at random.
    Raises ValueError when there are fewer pairs than queries or more distractors than gallery images.
    """
    if not 0 < sizes.queries <= sizes.ids * sizes.cameras or not 0 <= sizes.distractors < sizes.gallery:
        raise ValueError(f"{sizes}: queries <= ids x cameras and distractors < gallery are needed")
    q_pid, g_pid, q_cam, g_cam = labels(sizes, seed)
    centres, offsets = (_table(seed, s, n, sizes.dim) for s, n in
                        ((_CENTRE, sizes.ids + 1), (_OFFSET, sizes.cameras)))  # fmt: skip
    offsets *= _CAMERA_SCALE
    arrays = []
    for pid, cam, first, noise in (
        (q_pid, q_cam, 0, _QUERY_NOISE),
        (g_pid, g_cam, sizes.queries, _GALLERY_NOISE),
    ):
        unit = (_hash(seed, _STRENGTH, first + np.arange(len(pid))) >> np.uint64(40)).astype(np.float32)
        strength = _ID_SCALE * (np.float32(0.5) + np.float32(0.7) * (unit * np.float32(2**-24)))
        shape = len(pid), sizes.dim
        out = allocate(shape) if allocate else np.empty(shape, np.float32)
        _fill(out, seed, pid, cam, strength, centres, offsets, noise)
        arrays.append(out)
    return Problem(*arrays, q_pid, g_pid, q_cam, g_cam)


def labels(sizes, seed=0):
    """(q_pid, g_pid, q_cam, g_cam) of the problem, i64."""
    order = np.argsort(_hash(seed, _PAIR, np.arange(sizes.ids * sizes.cameras)), kind="stable")
    pair = np.sort(order[: sizes.queries])
    known = sizes.gallery - sizes.distractors
    drawn = _hash(seed, _GALLERY_PAIR, np.arange(known)) % np.uint64(sizes.queries)
    g_pair = pair[drawn.astype(np.int64)]
    lost = _hash(seed, _LOST_CAMERA, np.arange(known, sizes.gallery)) % np.uint64(sizes.cameras)
    return (
        pair // sizes.cameras + 1,
        np.append(g_pair // sizes.cameras + 1, np.zeros(sizes.distractors, np.int64)),
        pair % sizes.cameras,
        np.append(g_pair % sizes.cameras, lost.astype(np.int64)),
    )


def _fill(out, seed, pid, cam, strength, centres, offsets, noise):
    """Features of one side into f32[N,dim], block by block on all cores."""

    def block(start):
        rows = np.arange(start, min(start + _BLOCK, len(pid)))
        part = out[rows[0] : rows[-1] + 1]
        np.take(centres, pid[rows], axis=0, out=part)
        lost = np.flatnonzero(pid[rows] == 0)
        if len(lost):
            part[lost] = _gauss(seed, _LOST_CENTRE, rows[lost], part.shape[1])
        part *= strength[rows, None]
        part += offsets[cam[rows]]
        part += _gauss(seed, noise, rows, part.shape[1])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(block, range(0, len(pid), _BLOCK)))


def _table(seed, stream, rows, dim):
    """`_gauss` of rows 0..rows-1: f32[rows,dim]."""
    parts = np.array_split(np.arange(rows), -(-rows // _BLOCK))
    return np.concatenate([_gauss(seed, stream, part, dim) for part in parts])


def _gauss(seed, stream, rows, dim):
    """Nearly normal numbers f32[n,dim], row r from counters r dim..: the sum of a hash's 16-bit lanes."""
    h = _hash(seed, stream, rows[:, None] * dim + np.arange(dim))
    low = np.uint64(0x0000FFFF0000FFFF)
    pairs = h >> np.uint64(16)
    pairs &= low
    h &= low
    h += pairs  # two sums of two lanes, 32 bits apart
    np.right_shift(h, np.uint64(32), out=pairs)
    h += pairs
    lanes = h.astype(np.uint32).view(np.int32)  # the lower half: at most 4 x 65535
    lanes -= 131070
    return lanes.astype(np.float32) / np.float32(37837.227)


def _hash(seed, stream, counter):
    """Hashes u64 of integer counters i64 of any shape; arithmetic wraps."""
    start = _mix(np.array([(seed * _GOLDEN + stream) % 2**64], np.uint64))
    h = counter.astype(np.uint64)
    h += np.uint64(1)
    h *= np.uint64(_GOLDEN)
    h += start
    return _mix(h)


def _mix(z):
    """A 64-bit finaliser, in place."""
    shifted = np.empty_like(z)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        np.right_shift(z, np.uint64(shift), out=shifted)
        z ^= shifted
        if factor is not None:
            z *= np.uint64(factor)
    return z
