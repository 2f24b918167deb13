"""Retrieval figures against a loop over every query and gallery entry, hand numbers and recorded values."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.data.synthetic import features
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import ranking, scoring, tiles, verification

CASES = pathlib.Path(__file__).parents[1] / "cases"


def naive(
    q_feat, g_feat, q_pid, g_pid, q_cam, g_cam, distance, topk, max_rank,
    camera_filter=True, q_mask=None, g_mask=None,
):  # fmt: skip
    """Sorts the kept entries of every query by (-score, gallery index), in float64."""
    cmc, ap, inp, top, scores, kinds, first = np.zeros(max_rank), [], [], [], [], [0, 0, 0], []
    trapezoid = []
    q_feat, g_feat = np.asarray(q_feat, np.float64), np.asarray(g_feat, np.float64)
    for i in range(len(q_feat)):
        kept = []
        for j in range(len(g_feat)):
            if g_pid[j] == -1 or (camera_filter and g_pid[j] == q_pid[i] and g_cam[j] == q_cam[i]):
                continue
            if (q_mask is not None and not q_mask[i]) or (g_mask is not None and not g_mask[j]):
                continue
            if distance == "cosine":
                score = q_feat[i] @ g_feat[j] / np.linalg.norm(q_feat[i]) / np.linalg.norm(g_feat[j])
            else:
                score = -np.sqrt(((q_feat[i] - g_feat[j]) ** 2).sum())
            kept.append((-score, j))
        kept.sort()
        top.append([j for _, j in kept[:topk]] + [-1] * (topk - len(kept)))
        scores.append([-s for s, _ in kept[:topk]] + [-np.inf] * (topk - len(kept)))
        hits = [r for r, (_, j) in enumerate(kept) if g_pid[j] == q_pid[i] != -1]
        first.append(hits[0] if hits else -1)
        ap.append(np.mean([(n + 1) / (r + 1) for n, r in enumerate(hits)]) if hits else np.nan)
        area, precision, recall, right = 0.0, 1.0, 0.0, 0
        for r, (_, j) in enumerate(kept):  # the area under the curve of precision over recall, entry by entry
            right += g_pid[j] == q_pid[i]
            if right:
                new = right / len(hits)
                area += (new - recall) * (precision + right / (r + 1)) / 2
                recall = new
            precision = right / (r + 1)
        trapezoid.append(area if hits else np.nan)
        inp.append(len(hits) / (hits[-1] + 1) if hits else np.nan)
        if hits:
            cmc[hits[0] :] += 1
            best = kept[0][1]
            kinds[0 if g_pid[best] == q_pid[i] else 1 if g_cam[best] == q_cam[i] else 2] += 1
    n = np.isfinite(ap).sum()
    return dict(
        cmc=cmc / n, ap=ap, inp=inp, top_index=top, top_score=scores, kinds=kinds, first_hit=first,
        ap_trapezoid=trapezoid,
    )  # fmt: skip


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
    np.testing.assert_allclose(got.ap_trapezoid, want["ap_trapezoid"], rtol=1e-12)
    means = [np.nanmean(want[k]) for k in ("ap", "inp", "ap_trapezoid")]
    np.testing.assert_allclose([got.mAP, got.mINP, got.mAP_trapezoid], means)
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
@pytest.mark.parametrize("aligned", [True, False])
def test_tiles(monkeypatch, distance, aligned):
    """Tiles read in place and tiles that go through buffers; the last one overlaps the one before."""
    monkeypatch.setattr(tiles, "_TILE_BYTES", 64 * 1024)
    q, g, *labels = problem(9, gallery=1101)
    q, g = (four_norm(x) for x in (q, g))
    past = 0 if aligned else 1  # floats past the boundary
    feature = tiles.aligned((g.size + past,))[past:].reshape(g.shape)
    feature[:] = g
    made = tiles.Tiles(feature)
    assert (made.resident is not None) == aligned and len(made.starts) == 2
    assert made.starts[-1] + made.size == 1101 and made.starts[-1] < made.size
    got = ranking.rank(q, feature, *labels, distance=distance, topk=7, max_rank=20, block=10)
    compare(got, naive(q, g, *labels, distance, 7, 20), len(q))


@pytest.mark.parametrize("distance", ["cosine", pytest.param("euclidean", marks=pytest.mark.slow)])
def test_the_form_for_accelerators(monkeypatch, distance):
    """Features on the device or in tiles from the host, one count for all lanes."""
    monkeypatch.setattr(tiles, "on_cpu", lambda: False)
    monkeypatch.setattr(tiles, "_DEVICE_TILE_BYTES", 16 * 1024)
    jax.clear_caches()
    q, g, *labels = problem(4, gallery=900)
    q, g = (four_norm(x) for x in (q, g))
    want = naive(q, g, *labels, distance, 7, 20)
    for convert in (np.asarray, jnp.asarray):
        got = ranking.rank(convert(q), convert(g), *labels, distance=distance, topk=7, max_rank=20, block=10)
        compare(got, want, len(q))
    jax.clear_caches()


def test_rows_in_aligned_memory():
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    for rows in (x[:, 0] > 0, np.array([6, 0, 2])):
        got = tiles.take(x, rows)
        np.testing.assert_array_equal(got, x[rows])
        assert got.ctypes.data % 64 == 0
        assert jax.device_put(got, may_alias=True).unsafe_buffer_pointer() == got.ctypes.data


@pytest.mark.parametrize("unit", [1, np.finfo(np.float32).tiny])
def test_both_counts_agree(unit):
    """Whole numbers round 0 with ties, and neighbours of 0 among the floats."""
    rng = np.random.default_rng(0)
    rows = rng.integers(-4, 5, (5, 1024)).astype(np.float32) * np.float32(unit)
    rows[rng.random(rows.shape) < 0.1] = -np.inf
    index = rng.integers(0, 1024, (5, 8)).astype(np.int32)
    score = np.take_along_axis(rows, index, 1)
    score[score == -np.inf] = np.inf  # what padding has
    want = [
        [sum((row > s) | ((row == s) & (np.arange(1024) < j))) for s, j in zip(*part, strict=True)]
        for row, *part in zip(rows, score, index, strict=True)
    ]
    np.testing.assert_array_equal(scoring._count_plain(rows, score, index), want)
    np.testing.assert_array_equal(scoring._count_by_lanes(rows, score, index), want)


@pytest.mark.parametrize("topk", [1, 7, 200, 3000])
def test_top_lists(topk):
    """Any length, many ties: a stable sort. Less than a quarter of the groups takes the short way."""
    rng = np.random.default_rng(topk)
    rows = rng.integers(0, 40, (6, 2048)).astype(np.float32)
    rows[0, 100:] = -np.inf
    index, score = scoring._top(jnp.asarray(rows), topk)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :topk]
    width = order.shape[1]
    np.testing.assert_array_equal(score[:, :width], np.take_along_axis(rows, order, 1))
    np.testing.assert_array_equal(
        index[:, :width], np.where(np.take_along_axis(rows, order, 1) > -np.inf, order, -1)
    )
    assert index.shape == (6, topk) and (np.asarray(index)[:, width:] == -1).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("camera_filter", [True, False])
def test_masks_and_all_pairs(seed, camera_filter):
    """Masked rows hold NaN; some queries are junk."""
    q, g, *labels = problem(seed, gallery=600)
    q, g = (four_norm(x).astype(float) for x in (q, g))
    rng = np.random.default_rng(seed)
    q_mask, g_mask = rng.random(len(q)) < 0.8, rng.random(len(g)) < 0.7
    labels[0][:2] = -1
    options = dict(camera_filter=camera_filter, q_mask=q_mask, g_mask=g_mask)
    want = naive(q, g, *labels, "cosine", 7, 20, **options)
    q[~q_mask], g[~g_mask] = np.nan, np.nan
    got = ranking.rank(q, g, *labels, topk=7, max_rank=20, block=9, **options)
    compare(got, want, len(q))


@pytest.mark.parametrize("camera_filter", [True, False])
def test_given_distances(tmp_path, camera_filter):
    """Distances of the features, in memory and in a mapped file; masked columns hold NaN."""
    q, g, *labels = problem(6, gallery=500)
    distance = np.sqrt(((q[:, None] - g[None]) ** 2).sum(-1)).astype(np.float32)
    g_mask = np.arange(500) % 5 > 0
    distance[:, ~g_mask] = np.nan
    np.save(tmp_path / "distance.npy", distance)
    want = naive(q, g, *labels, "euclidean", 7, 20, camera_filter, None, g_mask)
    for given in (distance, np.load(tmp_path / "distance.npy", mmap_mode="r"), jnp.asarray(distance)):
        got = ranking.rank_distances(
            given, *labels, topk=7, max_rank=20, block=10, camera_filter=camera_filter, g_mask=g_mask
        )
        compare(got, want, len(q))


def test_bad_distances():
    labels = [1, 2], [1, 2, 3], [0, 0], [1, 1, 1]
    with pytest.raises(DataError, match="distances of query 1 are not finite"):
        ranking.rank_distances(np.array([[0, 1, 2], [0, np.inf, 1]]), *labels)
    with pytest.raises(DataError, match=r"shape \(0, 3\)"):
        ranking.rank_distances(np.zeros((0, 3)), *labels)
    with pytest.raises(DataError, match="4 gallery features but 3 gallery pids"):
        ranking.rank_distances(np.zeros((2, 4)), *labels)


def test_hand_trapezoid():
    """Matches at ranks 2 and 4: ((0 + 1/2) / 2 + (1/3 + 2/4) / 2) / 2; a match at rank 1 counts 1."""
    got = ranking.rank_distances(np.arange(4.0)[None], [1], [2, 1, 3, 1], [0], [1, 1, 1, 1])
    np.testing.assert_allclose(got.mAP_trapezoid, (0.25 + (1 / 3 + 0.5) / 2) / 2)
    got = ranking.rank_distances(np.arange(4.0)[None], [2], [2, 1, 3, 1], [0], [1, 1, 1, 1])
    np.testing.assert_allclose([got.mAP_trapezoid, got.mAP], 1)


def test_a_set_with_itself():
    """With a camera of its own for every image, only the image itself is removed."""
    rng = np.random.default_rng(2)
    f, pid, own = rng.standard_normal((60, 8)), rng.integers(1, 9, 60), np.arange(60)
    got = ranking.rank(f, f, pid, pid, own, own, topk=59)
    assert (np.sort(got.top_index, axis=1) == [np.delete(own, i) for i in range(60)]).all()


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


def test_made_up_features():
    """Market-1501's proportions at a small size, matches uneven, against the loop."""
    problem = features.make(features.Sizes(40, 700, 10, 6, 90, dim=32), seed=1)
    got = ranking.rank(*problem, distance="euclidean", block=16)
    compare(got, naive(*problem, "euclidean", 10, 50), 40)


def test_recorded_trapezoid_rule():
    case = np.load(CASES / "direid__evaluation.npz")
    names = ("query_f", "gallery_f", "query_id", "gallery_id", "query_cam", "gallery_cam")
    got = ranking.rank(*(case[f"in/{k}"] for k in names))
    np.testing.assert_allclose(
        [*got.cmc[[0, 4, 9, 19]], got.mAP_trapezoid], case["out/multi_shot"], rtol=1e-5
    )


@pytest.mark.slow
def test_market_size():
    """Market-1501's size, against float64 figures of other implementations."""
    case = np.load(CASES / "eval__market_size.npz")
    meta = json.loads(str(case["meta"]))
    got = ranking.rank(
        *features.make(features.SIZES["market"], meta["seed"]),
        distance="euclidean",
        max_rank=len(case["out/cmc"]),
    )
    assert got.valid.sum() == meta["config"]["valid_queries"]
    np.testing.assert_allclose([got.mAP, got.mINP], [case["out/mAP"], case["out/mINP"]], atol=2e-6)
    np.testing.assert_allclose(got.cmc, case["out/cmc"], atol=1 / got.valid.sum())


def test_ratio_of_two_products(monkeypatch):
    """Against a loop over pairs and parts, in tiles of a few rows too; what is not seen does not count."""
    rng, parts = np.random.default_rng(0), 3
    whole, stripes = rng.normal(size=(40, 5)), rng.normal(size=(40, parts, 4))
    whole, stripes = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (whole, stripes))
    seen = rng.integers(0, 2, (40, parts)).astype(float)
    one, half = np.ones((40, 1)), 0.5**0.5
    a = [whole * half, one * half, (stripes * seen[..., None] * half).reshape(40, -1), seen * half]
    feature = np.float32(np.concatenate([*a, one, seen], 1))

    def pair(i, j):
        both = [p for p in range(parts) if seen[i, p] and seen[j, p]]
        total = (whole[i] @ whole[j] + 1) / 2 + sum((stripes[i, p] @ stripes[j, p] + 1) / 2 for p in both)
        return total / (1 + len(both))

    pid, cam = np.repeat(np.arange(8), 5), np.arange(40) % 5
    expected = np.array([[pair(i, j) for j in range(10, 40)] for i in range(10)])
    monkeypatch.setattr(tiles, "_TILE_BYTES", 1200)
    sides = (feature[:10], feature[10:], pid[:10] + 2, pid[10:], cam[:10], cam[10:])
    found = ranking.rank(*sides, distance="ratio4", topk=30, camera_filter=False)
    np.testing.assert_array_equal(found.top_index, np.argsort(-expected, axis=1, kind="stable"))
    np.testing.assert_allclose(found.top_score, -np.sort(-expected, axis=1), atol=1e-6)
    pairs = verification.count(*sides, distance="ratio4", camera_filter=False)
    assert (pairs.low, pairs.high) == (0, 1) and pairs.same.sum() + pairs.other.sum() == expected.size
    mean = ((pairs.same + pairs.other) * (pairs.edges[:-1] + pairs.edges[1:]) / 2).sum() / expected.size
    np.testing.assert_allclose(mean, expected.mean(), atol=1e-5)
    for distance, error in (("ratio", ConfigError), ("ratio0", ConfigError), ("ratio99", DataError)):
        with pytest.raises(error, match=distance):
            ranking.rank(*sides, distance=distance)
