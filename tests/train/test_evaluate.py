"""Figures by protocol, and a run on a single-gallery set from training to its report."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import load, tiny, train
from trees import viper

from reid_jax import report
from reid_jax.commands import compare, cross
from reid_jax.config import defaults, namespace
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError
from reid_jax.eval import protocols, store
from reid_jax.report import run as runs
from reid_jax.train import embedding, evaluate
from reid_jax.train.devices import Devices
from reid_jax.trained.figures import result


def config(**fields):
    tree = defaults()
    tree["eval"].update(fields)
    return namespace(tree)


def feature_set(images=1, ids=9, seed=0):
    """Queries of camera 0, `images` gallery images of each identity of camera 1, and one of camera 0."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((ids, 6))
    pid = np.concatenate([np.arange(ids), np.repeat(np.arange(ids), images), [0]]) + 1
    cam = np.concatenate([np.zeros(ids), np.ones(ids * images), [0]])
    feature = centre[pid - 1] + 0.8 * rng.standard_normal((len(pid), 6))
    split = np.repeat(["query", "gallery"], [ids, ids * images + 1])
    path = np.array([f"{i}.png" for i in range(len(pid))])
    return store.FeatureSet(
        feature.astype(np.float32), pid.astype(np.int32), cam.astype(np.int32), path, split
    )


def first_hits(features, camera_filter, keep=None):
    """Entries before the first match of every query, in plain loops; keep: bool of gallery rows."""
    q, g = features.of("query"), features.of("gallery")
    found = []
    for i in range(len(q)):
        entries = []
        for j in range(len(g)):
            same = g.pid[j] == q.pid[i]
            if (keep is None or keep[j]) and not (camera_filter and same and g.camid[j] == q.camid[i]):
                a, b = q.feature[i].astype(float), g.feature[j].astype(float)
                entries.append((-a @ b / np.linalg.norm(a) / np.linalg.norm(b), not same))
        found.append([wrong for _, wrong in sorted(entries)].index(False))
    return np.array(found)


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
@pytest.mark.parametrize("start", [2**31 - 5, 2**32, 20260101123000, 2**61])
def test_figures_do_not_depend_on_the_size_of_identities(protocol, start, monkeypatch):
    """Not on the way from records to figures: 32 bits would make one person of two that are 2**32 apart."""
    known = feature_set(images=2)
    monkeypatch.setattr(embedding, "embed_records", lambda *given: known.feature)

    def figures(number):
        splits = {"query": [], "gallery": []}
        for path, pid, camid, split in zip(known.path, known.pid, known.camid, known.split, strict=True):
            splits[split].append(Record(path, number(int(pid)), int(camid)))
        features = embedding.feature_set(config(), None, None, splits, "")
        return evaluate.score(config(), features, protocol).figures

    small = figures(lambda pid: pid)
    for step in (1, 2**32 if start < 2**40 else 3):
        assert figures(lambda pid, step=step: start + step * pid) == small


@pytest.mark.parametrize("protocol", ["market", "all-pairs"])
def test_rank_protocols(protocol):
    features = feature_set(images=3)
    hits = first_hits(features, protocol == "market")
    got = evaluate.score(config(), features, protocol)
    assert got.figures["rank1"] == pytest.approx(100 * np.mean(hits == 0))
    assert got.figures["rank5"] == pytest.approx(100 * np.mean(hits < 5))
    assert got.protocol == protocol and "prop" in got.figures


@pytest.mark.parametrize("protocol", ["single-shot", "single-gallery"])
def test_single_protocols_draw(protocol):
    """With one image of each identity there is nothing to draw; with several, figures depend on the seed."""
    features = feature_set(images=1)
    keep = features.of("gallery").camid == 1
    one = store.FeatureSet(*(x[np.append(np.full(9, True), keep)] for x in vars(features).values()))
    hits = first_hits(one, True)
    got = evaluate.score(config(), one, protocol)
    assert got.figures["rank1"] == pytest.approx(100 * np.mean(hits == 0))
    assert got.figures["mAP"] == pytest.approx(100 * np.mean(1 / (hits + 1)))
    assert "prop" not in got.figures and "rank20" in got.figures
    assert got.retrieval.trials == {"single-shot": 100, "single-gallery": 10}[protocol]
    features, tree = feature_set(images=4), config(trials=3)
    drawn = evaluate.score(tree, features, protocol)
    assert drawn.figures == evaluate.score(tree, features, protocol).figures
    assert drawn.retrieval.trials == 3
    tree.seed = 1
    assert drawn.figures["mAP"] != evaluate.score(tree, features, protocol).figures["mAP"]
    level = evaluate.random_figures(tree, drawn)
    assert 0 <= level["rank1"] <= 100 and set(level) == {"rank1", "mAP"}


def test_protocol_of_the_config_or_of_the_set():
    assert evaluate.choose_protocol(config(), "single-shot") == "single-shot"
    assert evaluate.choose_protocol(config(protocol="all-pairs"), "single-shot") == "all-pairs"
    with pytest.raises(ConfigError, match="config.eval.protocol is 'first'.*'single-gallery'"):
        evaluate.choose_protocol(config(protocol="first"), "market")
    old = config()
    del old.eval.protocol  # a run of a version without the field
    assert evaluate.choose_protocol(old, "market") == "market"


@pytest.mark.slow
def test_a_run_on_a_single_gallery_set(tmp_path):
    root, workdir = viper(tmp_path / "VIPeR", ids=range(1, 13)), str(tmp_path / "run")
    tree = tiny("baseline", data__name="viper", train__eval_every=0)
    dataset = load(tree, root)
    train(tree, dataset, workdir)
    final = json.loads((tmp_path / "run/eval/final.json").read_text())
    (figures,) = final["nets"].values()
    assert final["protocol"] == "single-gallery" and "prop" not in figures
    assert figures["num_query"] == figures["num_gallery"] == 6 and figures["cmc"][5] == 100
    with open(report.build(workdir, data_root=dataset.root, queries=2)) as f:
        page = f.read()
    assert "one random gallery image of each person, drawn for all queries" in page
    assert "a query has another first hit in each" in page and "means over drawn galleries" in page
    assert runs.read(workdir).protocol == "single-gallery"
    (tmp_path / "run/summary.json").write_text('{"seconds": 1}')
    results = {"a": {0: result(workdir, "")}}
    assert "prop." not in compare.table(results, "a")
    flags = ["--workdir", str(tmp_path / "cross"), "--checkpoint", "latest"]
    cross.main([workdir, "--targets", f"viper:{root}", *flags])
    target = json.loads((tmp_path / "cross/cross.json").read_text())["run"]["targets"]["viper"]
    assert target["mAP"] == pytest.approx(figures["mAP"]) and "prop" not in target


def test_report_of_all_pairs_leaves_nothing_out():
    features = feature_set()
    hits = {f: runs.rank(features, camera_filter=f).retrieval.first_hit for f in (True, False)}
    for camera_filter, got in hits.items():
        np.testing.assert_array_equal(got, first_hits(features, camera_filter))


def test_mirrored_pictures_are_added():
    """config.eval.mirror: the sum of the features of both pictures; off, of the picture alone."""
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 8, 3), np.uint8)
    method = SimpleNamespace(config=namespace({"eval": {"mirror": True}}))
    method.embed_batch = lambda state, batch, net: batch["image"][:, :, :2].astype(np.float32).sum((1, 2))
    left, right = (image[:, :, part].astype(np.float32).sum((1, 2)) for part in (slice(2), slice(-2, None)))
    for mirror, want in ((True, left + right), (False, left)):
        method.config.eval.mirror = mirror
        embedder = embedding.Embedder(method, "net", Devices(jax.devices()[:1]))
        np.testing.assert_array_equal(embedder.image({}, {"image": image}), want)


def test_centred_features():
    """Means of each camera's queries and of its gallery pictures are taken off, of unit rows."""
    rng = np.random.default_rng(0)
    feature, camid = rng.normal(size=(40, 5)).astype(np.float32) + 1, np.arange(40) % 3
    split = np.where(np.arange(40) < 15, "query", "gallery")
    features = store.FeatureSet(feature, np.arange(40), camid, split.copy(), split)
    config = SimpleNamespace(eval=SimpleNamespace(center="camera", distance="cosine"))
    got = evaluate.centred(config, features).feature
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    for side in ("query", "gallery"):
        for c in range(3):
            rows = (split == side) & (camid == c)
            np.testing.assert_allclose(got[rows], unit[rows] - unit[rows].mean(0), atol=1e-6)
    config.eval.center = "none"
    assert evaluate.centred(config, features) is features
    config.eval.center, config.eval.distance = "camera", "ratio2"
    with pytest.raises(ConfigError, match="eval.center"):
        evaluate.centred(config, features)
