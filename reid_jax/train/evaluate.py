"""Evaluation of a trained state: figures by a protocol, the Table 1 diagnostic, camera probe."""

import contextlib
import dataclasses
import logging
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from reid_jax import methods
from reid_jax.config import choice
from reid_jax.data.records import TestSet
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import (
    cross_modal,
    paired,
    probe,
    protocols,
    ranking,
    store,
    tiles,
    verification,
)
from reid_jax.train import embedding
from reid_jax.train.checkpoint import write_json

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """One network's evaluation."""

    figures: dict  # percent
    features: Any  # FeatureSet of query and gallery
    retrieval: Any  # ranking.Retrieval; protocols.SingleShot or cross_modal.Persons have no breakdown
    protocol: str  # one of eval.protocols.PROTOCOLS
    knows_camera: bool = False  # whether the features depend on every picture's camera


def split_records(config, dataset):
    """(query, gallery) of config.eval.split, both () where the data set has no people to test on; ConfigError
    when a validation split was not held out.
    """
    if config.eval.split == "test":
        return dataset.query, dataset.gallery
    if config.eval.split == "val" and dataset.val_query:
        return dataset.val_query, dataset.val_gallery
    raise ConfigError(
        f"config.eval.split is {config.eval.split!r}; use 'test', or 'val' with config.data.val_ids > 0"
    )


def tests_of(config, dataset):
    """{name: TestSet} that a run is tested on: its own, called "", unless there is nobody in it; then others.

    ConfigError for an unknown split or protocol.
    """
    query, gallery = split_records(config, dataset)
    protocol = choose_protocol(config, dataset.protocol)
    own_test = TestSet("", query, gallery, protocol, dataset.root, left_out=dataset.left_out)
    return ({"": own_test} if query or gallery else {}) | {test.name: test for test in dataset.also}


class Evaluator:
    """Evaluates states of a method on the run's own test set and on others; compiles each network once."""

    def __init__(self, config, dataset, method, devices):
        self.config, self.devices, self.tests = config, devices, tests_of(config, dataset)
        nets = methods.choose_net(method, config.eval.net)
        self.embedders = {net: embedding.Embedder(method, net, devices) for net in nets}
        self.knows_camera = method.wants_camera
        if self.knows_camera:
            log.info("features depend on the camera of each query and gallery picture: not camera-blind")

    @property
    def left_out(self):
        """{test: relative paths of its pictures that cannot be read}, of tests that have such."""
        return {name: list(test.left_out) for name, test in self.tests.items() if test.left_out}

    def __call__(self, state):
        """{(test, net): Result} of `state` as the compiled step returns it; "" is the run's own test."""
        state = self.devices.local_state(state)
        results = {
            (name, net): score(
                self.config, centred(self.config, self.features(embedder, state, test)), test.protocol
            )
            for name, test in self.tests.items()
            for net, embedder in self.embedders.items()
        }
        return {k: r._replace(knows_camera=self.knows_camera) for k, r in results.items()}

    def features(self, embedder, state, test):
        """FeatureSet of a test set's query and gallery."""
        splits = {"query": test.query, "gallery": test.gallery}
        return embedding.feature_set(
            self.config, embedder, state, splits, test.root, shared=True, foreign=bool(test.name)
        )


def centred(config, features):
    """The FeatureSet that is scored: config.eval.center "camera" takes means of cameras off.

    Of query and gallery apart, of features at unit length where the distance is the cosine.
    """
    if choice("eval.center", getattr(config.eval, "center", "none"), ("none", "camera")) == "none":
        return features
    if config.eval.distance not in ranking.DISTANCES:
        raise ConfigError(
            f"config.eval.center does not go with config.eval.distance {config.eval.distance!r}"
        )
    f = features.feature
    if config.eval.distance == "cosine":
        f = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)
    group = np.unique(np.stack([features.camid, features.split == "query"]), axis=1, return_inverse=True)[1]
    count = np.bincount(group.ravel())
    total = np.zeros((len(count), f.shape[1]), f.dtype)
    np.add.at(total, group.ravel(), f)
    return features.replace(feature=f - (total / count[:, None])[group.ravel()].astype(f.dtype))


def study(config, dataset, method, devices):
    """Method.study of a method for this run: state of the compiled step -> (figures, arrays), or None."""
    if method.study is None:
        return None
    measure = method.study(dataset, lambda f: InBatches(f, config.eval.batch_size, devices))
    return measure and (lambda state: measure(devices.local_state(state)))


class InBatches:
    """A pure function (State, arrays of B rows) -> tree of B rows, for any number of rows, in batches."""

    def __init__(self, function, size, devices):
        self.size = -(-size // len(devices.local)) * len(devices.local)
        self.compiled = devices.compile_embed(lambda state, rows: function(state, *rows))

    def __call__(self, state, *rows):
        """Tree of numpy arrays; rows: numpy arrays of the same length."""
        parts, count = [], len(rows[0])
        for start in range(0, count, self.size):
            block = [r[start : start + self.size] for r in rows]
            extra = self.size - len(block[0])
            block = tuple(np.pad(g, ((0, extra), *[(0, 0)] * (g.ndim - 1))) for g in block)
            outputs = self.compiled(state, block)
            parts.append(jax.tree.map(lambda x, n=self.size - extra: np.asarray(x)[:n], outputs))
        return jax.tree.map(lambda *p: np.concatenate(p), *parts)


def choose_protocol(config, custom):
    """One of eval.protocols.PROTOCOLS: config.eval.protocol, or the data set's own for "auto"."""
    field = getattr(config.eval, "protocol", "auto")  # runs of older versions have none
    choice("eval.protocol", field, ("auto", *protocols.PROTOCOLS))
    return custom if field == "auto" else field


def score(config, features, protocol="market", distance=""):
    """Result of a FeatureSet that holds query and gallery, by one of eval.protocols.PROTOCOLS.

    distance: "" for config.eval.distance.
    """
    f, pid, cam = features.feature, features.pid, features.camid
    sides, distance = sides_of(features), distance or config.eval.distance
    if protocol in protocols.PERSONS:
        *labels, q_cam, g_cam = sides  # cameras are numbered from 1 there
        trials = getattr(config.eval, "trials", 0) or cross_modal.TRIALS
        options = dict(protocol=protocol, count=trials, distance=distance)
        path = features.path[features.split == "gallery"]
        retrieval = cross_modal.trials(*labels, q_cam + 1, g_cam + 1, path, **options)
    elif protocol in protocols.SINGLE:
        trials = getattr(config.eval, "trials", 0) or protocols.TRIALS[protocol]
        settings = dict(trials=trials, seed=config.seed, draw=protocols.SINGLE[protocol])
        retrieval = protocols.single_shot(*sides, distance=distance, **settings)
    else:
        retrieval = ranking.rank(*sides, distance=distance, camera_filter=protocol == "market")
    figures = dict(retrieval.figures())
    known = np.isin(pid, pid[features.split == "query"])  # people, no distractors
    if len(np.unique(pid[known])) > 3:
        with contextlib.suppress(DataError):  # one camera alone shows those who are learned from
            figures["camera_probe"] = probe.camera_probe(f[known], cam[known], pid[known])
    return Result(figures, features, retrieval, protocol)


def sides_of(features):
    """Features, pids and cameras, each of query and gallery in turn, of a FeatureSet: ranking.rank's."""
    q, g = features.split == "query", features.split == "gallery"
    f, pid, cam = features.feature, features.pid, features.camid
    return tiles.take(f, q), tiles.take(f, g), pid[q], pid[g], cam[q], cam[g]


def pairs(config, result):
    """Figures of verification.Pairs of a Result, {} where there are no pairs of two persons."""
    rule = dict(distance=config.eval.distance, camera_filter=result.protocol != "all-pairs")
    try:
        counted = verification.count(*sides_of(result.features), **rule)
    except DataError:
        return {}
    return counted.figures(false_match_rates(config))


def false_match_rates(config):
    """config.eval.false_match_rates, checked; the usual ones for runs of older versions."""
    rates = tuple(getattr(config.eval, "false_match_rates", verification.RATES))
    verification.check_rates(rates)
    return rates


def line(title, figures):
    """The figures people look for, in one line."""
    names = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP", "prop", "camera_probe")
    return f"{title}: " + "  ".join(f"{n} {figures[n]:.1f}" for n in names if n in figures)


def chosen(results):
    """The Result that stands for a run: of the first network on its own test set; None without such a set."""
    return next((result for (test, _), result in results.items() if not test), None)


def details(figures):
    """Lines below `line`: what the first hits are, and what thresholds on the similarity do."""
    lines = [table1(figures)] if "same_id" in figures else []
    return [*lines, pairs_line(figures)] if "auc" in figures else lines


def pairs_line(figures):
    """Same person or not: how well a threshold on the similarity tells, in one line."""
    parts = [f"AUC {figures['auc']:.2f}, equal error rate {figures['eer']:.2f} %"]
    rates = [name.partition("@")[2] for name in figures if name.startswith("tpr@")]
    for rate in rates:
        threshold, tpr = figures[f"threshold@{rate}"], figures[f"tpr@{rate}"]
        parts.append(f"{tpr:.1f} % at false match rate {rate} (from {threshold:.4f})")
    return f"same person or not: {'; '.join(parts)}"


def save_final(config, workdir, step, results, left_out=None, folder="eval", checkpoint="last"):
    """Writes WORKDIR/eval/final.json and, of a run with a test set of its own, final.npz and queries.npz.

    results: {(test, net): Result} as `Evaluator` gives them; left_out: as there, None for nothing.
    checkpoint: last, best (by figures of config.eval.split) or a step. Returns {(test, net): the figures
    written}.
    """
    folder, own_result, tests = os.path.join(workdir, folder), chosen(results), {"": {"nets": {}}}
    os.makedirs(folder, exist_ok=True)
    written = {}
    if own_result:
        store.save(os.path.join(folder, "final.npz"), own_result.features)
        save_queries(os.path.join(folder, "queries.npz"), results)
    for (test, name), result in results.items():
        entry = tests.setdefault(test, {"nets": {}})
        entry["protocol"] = result.protocol
        entry["nets"][name] = written[test, name] = final_figures(result) | pairs(config, result)
    for test, paths in (left_out or {}).items():
        tests[test]["left_out"] = paths
    final = {"step": step, "split": config.eval.split, "checkpoint": checkpoint, **tests.pop("")}
    if own_result:
        final |= {"net": next(iter(final["nets"])), "random": random_figures(config, own_result)}
        final |= {"knows_camera": True} if own_result.knows_camera else {}
    write_json(os.path.join(folder, "final.json"), final | ({"sets": tests} if tests else {}))
    return written


def save_queries(path, results):
    """Writes what every network made of every query, which differences of two runs are paired by.

    Nothing is written for drawn galleries, where a query has many first hits.
    """
    whole = {key: r for key, r in results.items() if isinstance(r.retrieval, ranking.Retrieval)}
    own_results = {net: r for (test, net), r in whole.items() if not test}
    if own_results:
        nets = {net: queries_of(r.retrieval, r.features) for net, r in own_results.items()}
        store.save_arrays(path, paired.arrays(nets))


def queries_of(retrieval, features):
    """paired.Queries of a ranking.Retrieval of a FeatureSet's query and gallery."""
    q, g = features.of("query"), features.of("gallery")
    return paired.Queries.of(retrieval, q.path, q.pid, q.camid, g.pid, g.camid)


def final_figures(result):
    """Figures of a Result as they stand in final.json."""
    return {
        **result.figures,
        "cmc": [round(100 * float(c), 4) for c in result.retrieval.cmc],
        "num_query": int(np.sum(result.features.split == "query")),
        "num_gallery": int(np.sum(result.features.split == "gallery")),
    }


def random_figures(config, result):
    """Figures of seeded Gaussian features of the same size: the level of knowing nothing."""
    features = result.features
    noise = np.random.default_rng(0).standard_normal((len(features.pid), 128), np.float32)
    distance = config.eval.distance if config.eval.distance in ranking.DISTANCES else "cosine"
    figures = score(config, dataclasses.replace(features, feature=noise), result.protocol, distance).figures
    return {k: figures[k] for k in ("rank1", "mAP")}


def table1(figures):
    """The paper's Table 1 in words: what the top-1 is, in percent of the queries."""
    return (
        f"top-1: same id {figures['same_id']:.1f}, other id same camera {figures['other_id_same_cam']:.1f}, "
        f"other id other camera {figures['other_id_other_cam']:.1f}; prop. {figures['prop']:.1f} "
        f"(chance {figures['chance_prop']:.1f})"
    )
