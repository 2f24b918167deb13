"""Background swap: which queries, which backgrounds, figures of features that know one thing alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from runs import load, tiny

from reid_jax.data.records import Record
from reid_jax.errors import ConfigError
from reid_jax.eval import store
from reid_jax.train import swap


def test_one_query_of_each_person_and_another_background():
    records = [Record(f"{p}{c}", p, c) for p in (5, 6, 7) for c in range(3)]
    rows = swap.chosen(records, 9)
    assert [records[i].pid for i in rows] == [5, 6, 7] and len({records[i].camid for i in rows}) == 3
    assert len(swap.chosen(records, 2)) == 2
    camids = [0, 0, 0, 2, 2]
    given = swap.backgrounds(camids, 3)
    assert all(a != b for a, b in zip(camids, given, strict=True)) and set(given[:3]) == {1, 2}


def feature_set(people=40, cameras=4):
    pid, cam = (x.ravel() for x in np.mgrid[1 : people + 1, :cameras])
    pid, cam = np.tile(pid, 2), np.tile(cam, 2)
    split = np.repeat(["query", "gallery"], people * cameras)
    path = np.array([f"{i}" for i in range(len(pid))])
    person = np.eye(people + 1)[pid]
    feature = np.concatenate([person, 0.7 * np.eye(cameras)[cam]], 1)
    noise = 0.05 * np.random.default_rng(0).standard_normal(feature.shape)
    return store.FeatureSet((feature + noise).astype(np.float32), pid, cam, path, split)


def test_figures_of_features_that_know_one_thing():
    config = SimpleNamespace(eval=SimpleNamespace(distance="cosine", protocol="auto"))
    features = feature_set()
    query = features.of("query")
    rows = np.arange(0, 160, 4) + np.arange(40) % 4
    others = np.array(swap.backgrounds(query.camid[rows], 4))
    after = query.feature[rows].copy()
    found = swap.figures(config, features, rows, after, others)  # nothing changes: the body is known
    assert found["swap/rank1"] == found["swap/rank1_before"] == 100 and found["swap/probe_body"] == 100
    assert found["swap/probe_background"] == 0 and found["swap/mAP"] == found["swap/mAP_before"]
    after[:, 41:] = 5 * np.eye(4)[others]  # the background is all that is seen
    found = swap.figures(config, features, rows, after, others)
    assert found["swap/probe_background"] == 100 and found["swap/probe_body"] == 0
    assert found["swap/mAP"] < 60 and found["swap/probe_before"] == 100


def test_what_does_not_go_with_it(tmp_path):
    config = tiny("baseline", eval__swap=3)
    dataset = load(config, tmp_path)
    swap.check(config, dataset)
    config.eval.protocol = "single-shot"
    with pytest.raises(ConfigError, match="eval.protocol"):
        swap.check(config, dataset)
    config.eval.swap = -1
    with pytest.raises(ConfigError, match="eval.swap is -1"):
        swap.check(config, dataset)
    config.eval.swap = 1
    with pytest.raises(ConfigError, match="needs a drawn set"):
        swap.check(config, SimpleNamespace(root=str(tmp_path / "absent")))
