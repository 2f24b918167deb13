"""Whether a test set can be tested on: people who match, pictures that can be read."""

import os

import numpy as np
import pytest
from batches import data_config
from trees import damage, picture

from reid_jax.data import testable
from reid_jax.data.records import Record
from reid_jax.errors import DataError
from reid_jax.eval import protocols, ranking

ADVICE = "--config.eval.protocol=all-pairs"


def records(rng, count, side):
    """Of people 0 to 5, junk (-1) among them, by 3 cameras."""
    return [Record(f"{side}/{n}.png", int(rng.integers(-1, 6)), int(rng.integers(3))) for n in range(count)]


def by_loops(query, gallery, protocol):
    return [
        sum(
            r.pid == q.pid != -1 and (r.path != q.path if protocol == "all-pairs" else r.camid != q.camid)
            for r in gallery
        )
        for q in query
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_matches_are_counted_as_by_loops(seed, protocol):
    rng = np.random.default_rng(seed)
    query, gallery = records(rng, 20, "q"), records(rng, 30, "g")
    gallery += query[:4]
    assert testable.matches(query, gallery, protocol).tolist() == by_loops(query, gallery, protocol)


@pytest.mark.parametrize("seed", range(4))
def test_the_ranking_agrees(seed):
    """It refuses what is refused here, and nothing else."""
    rng = np.random.default_rng(seed)
    for _ in range(30):
        query, gallery = records(rng, 3, "q"), records(rng, 3, "g")
        labels = [[r.pid for r in query], [r.pid for r in gallery]]
        labels += [[r.camid for r in query], [r.camid for r in gallery]]
        features = rng.standard_normal((2, 3, 4)).astype(np.float32)
        for protocol in ("market", "all-pairs"):
            possible = True
            try:
                ranking.rank(*features, *labels, camera_filter=protocol == "market")
            except DataError:
                possible = False
            assert possible == (testable.impossible(query, gallery, protocol) == "")


def test_what_is_wrong_and_the_ways_out():
    def side(name, *labels):
        return [Record(f"{name}{n}.png", pid, cam) for n, (pid, cam) in enumerate(labels)]

    query, gallery = side("q", (1, 0), (2, 0)), side("g", (1, 0), (2, 0), (0, 0))
    text = testable.impossible(query, gallery, "market", ADVICE)
    assert "none of the 2 queries has a match" in text and "all pictures come from one camera" in text
    assert "camid" in text and text.endswith(ADVICE)
    assert testable.impossible(query, gallery, "all-pairs", ADVICE) == ""
    assert ADVICE not in testable.impossible(query, gallery, "single-shot")
    two = [*gallery, *side("h", (9, 1))]
    assert "one camera" not in testable.impossible(query, two, "market") != ""
    text = testable.impossible(query, side("g", (3, 1), (-1, 1)), "market", ADVICE)
    assert "nobody in query is in gallery too" in text and ADVICE not in text
    text = testable.impossible(query, query, "all-pairs", ADVICE)
    assert "every query finds itself alone" in text and ADVICE not in text
    assert ADVICE not in testable.impossible(query, query, "market", ADVICE)  # it would be no use
    assert "no picture in gallery" in testable.impossible(query, [], "market")


@pytest.fixture
def tracklets(tmp_path):
    """Two tracklets of three frames: one broken in the second, all of the other."""
    paths = [[picture(tmp_path, f"{t}_{f}.png", value=9 * f) for f in range(3)] for t in range(2)]
    damage(paths[0][1], "truncated")
    os.remove(paths[1][0])
    damage(paths[1][1], "empty")
    damage(paths[1][2], "text")
    return [Record(p[0], 1, t, tuple(p)) for t, p in enumerate(paths)]


def test_tracklets_lose_frames(tracklets):
    paths = testable.paths_of(tracklets)
    assert len(paths) == 6
    broken = testable.unreadable(paths, data_config(height=16, width=8))
    assert sorted(broken) == [1, 3, 4, 5]
    assert all(paths[i] in why for i, why in broken.items()) and "does not exist" in broken[3]
    assert not any("on_broken" in why for why in broken.values())
    (kept,) = testable.without(tracklets, {paths[i] for i in broken})
    assert kept.frames == (paths[0], paths[2]) and (kept.pid, kept.camid) == (1, 0)
    (other,) = testable.without(tracklets[:1], {paths[0]})
    assert other.path == paths[1] == other.frames[0]


def test_images_are_left_out(tmp_path):
    """Every broken one of many, in order; whole records stay the very same."""
    rows = [Record(picture(tmp_path, f"{n:03d}.png"), n, 0) for n in range(150)]
    for n in (0, 64, 149):
        damage(rows[n].path, "truncated")
    paths = testable.paths_of([*rows, *rows])
    broken = testable.unreadable(paths, data_config(height=16, width=8))
    assert list(broken) == [0, 64, 149]
    kept = testable.without(rows, {paths[i] for i in broken})
    assert kept == tuple(r for n, r in enumerate(rows) if n not in broken)
    assert testable.relative([rows[3].path], str(tmp_path)) == ("003.png",)
