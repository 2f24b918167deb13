"""Evaluation of a trained state: features, Market rule figures, the Table 1 diagnostic, camera probe."""

import contextlib
import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from reid_jax import methods
from reid_jax.data import pipeline
from reid_jax.errors import ConfigError
from reid_jax.eval import embed, probe, ranking, scoring, store
from reid_jax.train.checkpoint import write_json


class Result(NamedTuple):
    """One network's evaluation."""

    figures: dict  # percent
    features: Any  # FeatureSet of query and gallery
    retrieval: Any  # ranking.Retrieval


def split_records(config, dataset):
    """(query, gallery) of config.eval.split; ConfigError when a validation split was not held out."""
    if config.eval.split == "test":
        return dataset.query, dataset.gallery
    if config.eval.split == "val" and dataset.val_query:
        return dataset.val_query, dataset.val_gallery
    raise ConfigError(
        f"config.eval.split is {config.eval.split!r}; use 'test', or 'val' with config.data.val_ids > 0"
    )


class Evaluator:
    """Evaluates states of one method; each network is compiled once."""

    def __init__(self, config, dataset, method, runner):
        self.config, self.runner, self.root = config, runner, dataset.root
        self.query, self.gallery = split_records(config, dataset)
        self.embedders = {
            net: runner.compile_embed(lambda state, image, net=net: method.embed(state, image, net))
            for net in methods.choose_net(method, config.eval.net)
        }

    def __call__(self, state):
        """{net: Result} of `state`, as the runner's compiled step returns it."""
        state = self.runner.local_state(state)
        return {net: score(self.config, self.features(fn, state)) for net, fn in self.embedders.items()}

    def features(self, fn, state):
        """FeatureSet of query and gallery."""
        splits = {"query": self.query, "gallery": self.gallery}
        return feature_set(self.config, self.runner, lambda image: fn(state, image), splits, self.root)


def feature_set(config, runner, embed_fn, splits, root, progress=False):
    """FeatureSet of {split: records}, paths relative to root.

    embed_fn: image u8[B,H,W,3] -> [B,D], for batches that runner's local devices divide.
    """
    count = len(runner.local)
    size = -(-config.eval.batch_size // count) * count
    records = [r for part in splits.values() for r in part]
    with contextlib.closing(pipeline.eval_batches(records, config.data, size)) as batches:
        shown = tqdm(batches, total=-(-len(records) // size), unit="batch", disable=not progress)
        feature = embed.embed(embed_fn, shown)
    return store.FeatureSet(
        feature=feature,
        pid=np.array([r.pid for r in records], np.int32),
        camid=np.array([r.camid for r in records], np.int32),
        path=np.array([os.path.relpath(r.path, root) for r in records]),
        split=np.repeat(list(splits), [len(part) for part in splits.values()]),
    )


def score(config, features):
    """Result of a FeatureSet that holds query and gallery."""
    q, g = features.split == "query", features.split == "gallery"
    f, pid, cam = features.feature, features.pid, features.camid
    sides = scoring.take(f, q), scoring.take(f, g)
    found = ranking.rank(*sides, pid[q], pid[g], cam[q], cam[g], distance=config.eval.distance)
    figures = dict(found.figures())
    known = np.isin(pid, pid[q])  # people, no distractors
    if len(np.unique(cam[known])) > 1 and len(np.unique(pid[known])) > 3:
        figures["camera_probe"] = probe.camera_probe(f[known], cam[known], pid[known])
    return Result(figures, features, found)


def line(title, figures):
    """The figures people look for, in one line."""
    names = ("rank1", "rank5", "rank10", "mAP", "mINP", "prop", "camera_probe")
    return f"{title}: " + "  ".join(f"{n} {figures[n]:.1f}" for n in names if n in figures)


def save_final(config, workdir, step, results, folder="eval"):
    """Writes WORKDIR/eval/final.json and final.npz."""
    folder = os.path.join(workdir, folder)
    os.makedirs(folder, exist_ok=True)
    net, chosen = next(iter(results.items()))
    store.save(os.path.join(folder, "final.npz"), chosen.features)
    nets = {
        name: {
            **r.figures,
            "cmc": [round(100 * float(c), 4) for c in r.retrieval.cmc],
            "num_query": int(np.sum(r.features.split == "query")),
            "num_gallery": int(np.sum(r.features.split == "gallery")),
        }
        for name, r in results.items()
    }
    write_json(
        os.path.join(folder, "final.json"),
        {
            "step": step,
            "split": config.eval.split,
            "net": net,
            "nets": nets,
            "random": random_figures(config, chosen),
        },
    )


def random_figures(config, result):
    """Figures of seeded Gaussian features of the same size: the level of knowing nothing."""
    features = result.features
    noise = np.random.default_rng(0).standard_normal((len(features.pid), 128), np.float32)
    figures = score(config, dataclasses.replace(features, feature=noise)).figures
    return {k: figures[k] for k in ("rank1", "mAP")}


def table1(figures):
    """The paper's Table 1 in words: what the top-1 is, in percent of the queries."""
    return (
        f"top-1: same id {figures['same_id']:.1f}, other id same camera {figures['other_id_same_cam']:.1f}, "
        f"other id other camera {figures['other_id_other_cam']:.1f}; prop. {figures['prop']:.1f} "
        f"(chance {figures['chance_prop']:.1f})"
    )
