"""Made-up features against their recipe written plainly, and against recorded checksums."""

import json
import pathlib
import zlib

import numpy as np
import pytest

from reid_jax.data.synthetic import features

CASE = pathlib.Path(__file__).parents[1] / "cases" / "eval__market_size.npz"
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def h(seed, stream, n):
    return mix((mix((seed * GOLDEN + stream) & MASK) + (n + 1) * GOLDEN) & MASK)


def gauss(seed, stream, n):
    value = h(seed, stream, n)
    lanes = sum((value >> s) & 0xFFFF for s in (0, 16, 32, 48))
    return np.float32(lanes - 131070) / np.float32(37837.227)


def feature(seed, pid, cam, strength_n, row, noise, dim):
    strength = np.float32(0.48) * (
        np.float32(0.5) + np.float32(0.7) * (np.float32(h(seed, 4, strength_n) >> 40) * np.float32(2**-24))
    )
    out = []
    for j in range(dim):
        centre = gauss(seed, 10, pid * dim + j) if pid else gauss(seed, 14, row * dim + j)
        offset = gauss(seed, 11, cam * dim + j) * np.float32(0.15)
        out.append(centre * strength + offset + gauss(seed, noise, row * dim + j))
    return out


@pytest.mark.parametrize("seed", [0, 7])
def test_the_recipe(seed):
    """In Python's whole numbers; more rows than one block holds."""
    sizes = features.Sizes(9, 150, 5, 3, 20, dim=6)
    pairs = sorted(sorted(range(15), key=lambda n: h(seed, 1, n))[:9])
    drawn = [pairs[h(seed, 2, g) % 9] for g in range(130)]
    g_pid = [n // 3 + 1 for n in drawn] + [0] * 20
    g_cam = [n % 3 for n in drawn] + [h(seed, 3, g) % 3 for g in range(130, 150)]
    q_pid, q_cam = [n // 3 + 1 for n in pairs], [n % 3 for n in pairs]
    got = features.make(sizes, seed)
    for name, want in dict(q_pid=q_pid, g_pid=g_pid, q_cam=q_cam, g_cam=g_cam).items():
        np.testing.assert_array_equal(getattr(got, name), want)
    q = [feature(seed, p, c, i, i, 12, 6) for i, (p, c) in enumerate(zip(q_pid, q_cam, strict=True))]
    g = [feature(seed, p, c, 9 + i, i, 13, 6) for i, (p, c) in enumerate(zip(g_pid, g_cam, strict=True))]
    np.testing.assert_array_equal(got.q_feat, np.array(q, np.float32))
    np.testing.assert_array_equal(got.g_feat, np.array(g, np.float32))


def test_recorded_checksums():
    """Market-1501's size."""
    meta = json.loads(str(np.load(CASE)["meta"]))
    config, want = meta["config"], meta["config"]["crc32"]
    sizes = features.SIZES["market"]
    names = ("q", "g", "ids", "cams", "distractors", "dim")
    assert tuple(sizes) == tuple(config[n] for n in names)
    got = features.make(sizes, meta["seed"])
    assert got.q_feat.dtype == got.g_feat.dtype == np.float32
    assert (zlib.crc32(got.q_feat), zlib.crc32(got.g_feat)) == (want["qf"], want["gf"])
    labels = b"".join(x.astype(np.int64).tobytes() for x in (got.q_pid, got.g_pid, got.q_cam, got.g_cam))
    assert zlib.crc32(labels) == want["ids_cams_int64"]


def test_impossible_sizes():
    for sizes in (features.Sizes(10, 20, 3, 3, 0), features.Sizes(3, 20, 3, 3, 20)):
        with pytest.raises(ValueError, match="queries <= ids x cameras"):
            features.make(sizes)
