"""Retrieval figures against a loop over every query and gallery entry, hand numbers and recorded values."""

import json
import pathlib
import zlib

import numpy as np
import pytest

from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import ranking

CASES = pathlib.Path(__file__).parents[1] / "cases"


def naive(q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, distance, topk, max_rank):
    """Sorts the kept entries of every query by (-score, gallery index), in float64."""
    cmc, ap, inp, top, scores, kinds, first = np.zeros(max_rank), [], [], [], [], [0, 0, 0], []
    q_feat, g_feat = np.asarray(q_feat, np.float64), np.asarray(g_feat, np.float64)
    for i in range(len(q_feat)):
        kept = []
        for j in range(len(g_feat)):
            if g_pid[j] == -1 or (g_pid[j] == q_pid[i] and g_cam[j] == q_cam[i]):
                continue
            if distance == "cosine":
                score = q_feat[i] @ g_feat[j] / np.linalg.norm(q_feat[i]) / np.linalg.norm(g_feat[j])
            else:
                score = -np.sqrt(((q_feat[i] - g_feat[j]) ** 2).sum())
            kept.append((-score, j))
        kept.sort()
        top.append([j for _, j in kept[:topk]] + [-1] * (topk - len(kept)))
        scores.append([-s for s, _ in kept[:topk]] + [-np.inf] * (topk - len(kept)))
        hits = [r for r, (_, j) in enumerate(kept) if g_pid[j] == q_pid[i]]
        first.append(hits[0] if hits else -1)
        ap.append(np.mean([(n + 1) / (r + 1) for n, r in enumerate(hits)]) if hits else np.nan)
        inp.append(len(hits) / (hits[-1] + 1) if hits else np.nan)
        if hits:
            cmc[hits[0] :] += 1
            best = kept[0][1]
            kinds[0 if g_pid[best] == q_pid[i] else 1 if g_cam[best] == q_cam[i] else 2] += 1
    n = np.isfinite(ap).sum()
    return dict(cmc=cmc / n, ap=ap, inp=inp, top_index=top, top_score=scores, kinds=kinds, first_hit=first)


def problem(seed, queries=23, gallery=300, dim=6, ids=8):
    """Small integers, so that scores are exact in float32 and many tie; junk, distractors, lonely queries."""
    rng = np.random.default_rng(seed)
    q, g = rng.integers(-1, 2, (queries, dim)), rng.integers(-1, 2, (gallery, dim))
    q_pid = rng.integers(1, ids + 3, queries)  # some identities are not in the gallery
    g_pid = rng.integers(-1, ids + 1, gallery)
    return (q, g, q_pid, g_pid, rng.integers(0, 3, queries), rng.integers(0, 3, gallery))


def four_norm(x):
    """Adds columns that make every squared norm 4 or 16: exact float32 cosines."""
    square = (x**2).sum(1)
    rest = np.where(square <= 4, 4, 16) - square
    return np.concatenate([x, (np.arange(16) < rest[:, None]).astype(int)], 1)


def compare(got, want, queries):
    np.testing.assert_array_equal(got.top_index, want["top_index"])
    np.testing.assert_allclose(got.top_score, want["top_score"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got.first_hit, want["first_hit"])
    np.testing.assert_allclose(got.cmc, want["cmc"], rtol=1e-12)
    np.testing.assert_allclose(got.ap, want["ap"], rtol=1e-12)
    np.testing.assert_allclose(got.inp, want["inp"], rtol=1e-12)
    np.testing.assert_allclose([got.mAP, got.mINP], [np.nanmean(want["ap"]), np.nanmean(want["inp"])])
    np.testing.assert_array_equal(got.valid, np.isfinite(want["ap"]))
    names = ("same_id", "other_id_same_cam", "other_id_other_cam")
    shares = 100 * np.array(want["kinds"]) / got.valid.sum()
    np.testing.assert_allclose([got.breakdown[n] for n in names], shares)
    assert queries == len(got.valid)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gallery", [40, 1100])
def test_the_loop_over_all_pairs(distance, seed, gallery):
    """With ties; 1100 entries take the path that bounds the top-k by groups."""
    q, g, *labels = problem(seed, gallery=gallery)
    if distance == "cosine":
        q, g = four_norm(q), four_norm(g)
    got = ranking.rank(q, g, *labels, distance=distance, topk=7, max_rank=20, block=5)
    assert not got.valid.all() and got.valid.any()
    compare(got, naive(q, g, *labels, distance, 7, 20), len(q))
    assert len(np.unique(got.top_score[0])) < 7  # there are ties to settle


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_real_valued_features(distance):
    rng = np.random.default_rng(5)
    _, _, *labels = problem(5, gallery=900)
    q, g = rng.standard_normal((23, 16)).astype(np.float32), rng.standard_normal((900, 16)).astype(np.float32)
    got = ranking.rank(q, g, *labels, distance=distance, topk=10)
    compare(got, naive(q, g, *labels, distance, 10, 50), 23)


def test_equal_features_rank_by_gallery_index():
    """A collapsed network: the order is the gallery's, whatever the block."""
    q, g = np.ones((3, 4)), np.ones((700, 4))
    g_pid, g_cam = np.arange(700) % 7 + 1, np.ones(700, int)
    got = ranking.rank(q, g, [1, 2, 3], g_pid, [0, 0, 0], g_cam, topk=3, block=1)
    np.testing.assert_array_equal(got.top_index, [[0, 1, 2]] * 3)
    np.testing.assert_array_equal(got.first_hit, [0, 1, 2])


def test_hand_numbers():
    """Query of id 1, camera 0. Order: other id own camera, match, junk, own image, distractor, match."""
    angle = np.radians([10, 20, 30, 40, 50, 60, 70])
    g = np.stack([np.cos(angle), np.sin(angle)], 1)
    g_pid, g_cam = np.array([2, 1, -1, 1, 0, 1, 3]), np.array([0, 1, 1, 0, 2, 2, 2])
    got = ranking.rank([[1.0, 0.0]], g, [1], g_pid, [0], g_cam, topk=9, max_rank=4)
    np.testing.assert_array_equal(got.top_index, [[0, 1, 4, 5, 6, -1, -1, -1, -1]])
    np.testing.assert_allclose(got.top_score[0, :5], np.cos(angle[[0, 1, 4, 5, 6]]), rtol=1e-6)
    np.testing.assert_array_equal(got.cmc, [0, 1, 1, 1])
    figures = got.figures()
    np.testing.assert_allclose([figures["mAP"], figures["mINP"]], [50, 50])  # (1/2 + 2/4) / 2, 2/4
    assert (figures["rank1"], figures["rank5"], figures["rank10"]) == (0, 100, 100)
    assert (figures["same_id"], figures["other_id_same_cam"], figures["prop"]) == (0, 100, 100)
    np.testing.assert_allclose(figures["chance_prop"], 100 / 3)


def test_recorded_case():
    case = np.load(CASES / "efl__retrieval.npz")
    arrays = [case[f"in/{k}"] for k in ("q_feat", "g_feat", "q_pid", "g_pid", "q_cam", "g_cam")]
    got = ranking.rank(*arrays, max_rank=len(case["out/cmc"]))
    np.testing.assert_allclose(got.cmc, case["out/cmc"], rtol=1e-6)
    np.testing.assert_allclose(got.mAP, case["out/map"], rtol=1e-6)
    index = case["out/top1_index"]
    np.testing.assert_array_equal(got.valid, index >= 0)
    np.testing.assert_array_equal(got.top_index[index >= 0, 0], index[index >= 0])
    np.testing.assert_allclose(
        got.top_score[index >= 0, 0], -case["out/dist"][index >= 0, index[index >= 0]], rtol=1e-5
    )
    kinds = [got.breakdown[k] for k in ("same_id", "other_id_same_cam", "other_id_other_cam", "prop")]
    np.testing.assert_allclose(kinds, [*case["out/top1_percent"], case["out/prop"]], rtol=1e-6)


def test_fewer_entries_than_ranks():
    got = ranking.rank(np.eye(2), np.eye(2), [1, 2], [1, 2], [0, 0], [1, 1], topk=5, max_rank=50)
    assert got.cmc.shape == (50,) and (got.cmc == 1).all()
    np.testing.assert_array_equal(got.top_index, [[0, 1, -1, -1, -1], [1, 0, -1, -1, -1]])
    assert got.figures()["rank10"] == 100


def test_bad_input():
    def rank(q=None, g=None, q_pid=(1, 2), g_pid=(1, 2, 0), q_cam=(0, 0), g_cam=(1, 1, 1), **kw):
        q, g = np.ones((2, 4)) if q is None else q, np.ones((3, 4)) if g is None else g
        return ranking.rank(q, g, q_pid, g_pid, q_cam, g_cam, **kw)

    broken = np.ones((3, 4))
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match="1 of 3 gallery features are not finite.*row 1"):
        rank(g=broken)
    with pytest.raises(DataError, match="too large"):
        rank(q=np.full((2, 4), 1e19))
    with pytest.raises(DataError, match="2 query features but 1 query pids"):
        rank(q_pid=(1,))
    with pytest.raises(DataError, match="3 gallery features but 2 gallery cameras"):
        rank(g_cam=(1, 1))
    with pytest.raises(DataError, match="query features have shape"):
        rank(q=np.zeros((0, 4)), q_pid=(), q_cam=())
    with pytest.raises(DataError, match="5 dimensions, gallery features 4"):
        rank(q=np.ones((2, 5)))
    with pytest.raises(DataError, match="none of the 2 queries has a match"):
        rank(q_cam=(1, 1))
    with pytest.raises(ConfigError, match="eval.distance"):
        rank(distance="manhattan")


def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(seed, stream, counter):
    golden = 0x9E3779B97F4A7C15
    start = mix(np.array([(seed * golden + stream) % 2**64], np.uint64))
    return mix(start + (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(golden))


def gauss(seed, stream, rows, dim):
    counter = rows.astype(np.uint64)[:, None] * np.uint64(dim) + np.arange(dim, dtype=np.uint64)
    h = draw(seed, stream, counter)
    lanes = sum((h >> np.uint64(s)) & np.uint64(0xFFFF) for s in (0, 16, 32, 48))
    return (lanes.astype(np.int64) - 131070).astype(np.float32) / np.float32(37837.227)


def market_size(config, seed):
    """The recorded problem's inputs, from the recipe in its config."""
    q, g, cams, lost, dim = (config[k] for k in ("q", "g", "cams", "distractors", "dim"))
    pairs = np.arange(config["ids"] * cams)
    kept = np.sort(np.argsort(draw(seed, 1, pairs), kind="stable")[:q])
    g_pair = kept[(draw(seed, 2, np.arange(g - lost)) % np.uint64(q)).astype(int)]
    lost_cam = (draw(seed, 3, np.arange(g - lost, g)) % np.uint64(cams)).astype(int)
    q_pid, q_cam = kept // cams + 1, kept % cams
    g_pid = np.concatenate([g_pair // cams + 1, np.zeros(lost, int)])
    g_cam = np.concatenate([g_pair % cams, lost_cam])

    def features(pid, cam, first, stream):
        out = np.empty((len(pid), dim), np.float32)
        offset = gauss(seed, 11, np.arange(cams), dim) * np.float32(0.15)
        unit = (draw(seed, 4, first + np.arange(len(pid))) >> np.uint64(40)).astype(np.float32) * np.float32(
            2**-24
        )
        strength = np.float32(0.48) * (np.float32(0.5) + np.float32(0.7) * unit)
        for i in range(0, len(pid), 500):
            rows = np.arange(i, min(i + 500, len(pid)))
            centre = np.where(
                (pid[rows] > 0)[:, None], gauss(seed, 10, pid[rows], dim), gauss(seed, 14, rows, dim)
            )
            noise = gauss(seed, stream, rows, dim)
            out[rows] = centre * strength[rows, None] + offset[cam[rows]] + noise
        return out

    return features(q_pid, q_cam, 0, 12), features(g_pid, g_cam, q, 13), q_pid, g_pid, q_cam, g_cam


@pytest.mark.slow
def test_market_size():
    """Market-1501's size, against float64 figures of other implementations."""
    case = np.load(CASES / "eval__market_size.npz")
    meta = json.loads(str(case["meta"]))
    arrays = market_size(meta["config"], meta["seed"])
    assert zlib.crc32(arrays[0].tobytes()) == meta["config"]["crc32"]["qf"]
    assert zlib.crc32(arrays[1].tobytes()) == meta["config"]["crc32"]["gf"]
    got = ranking.rank(*arrays, distance="euclidean", max_rank=len(case["out/cmc"]))
    assert got.valid.sum() == meta["config"]["valid_queries"]
    np.testing.assert_allclose([got.mAP, got.mINP], [case["out/mAP"], case["out/mINP"]], atol=2e-6)
    np.testing.assert_allclose(got.cmc, case["out/cmc"], atol=1 / got.valid.sum())
