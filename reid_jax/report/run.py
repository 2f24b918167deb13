"""Reads what a run left in its workdir."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from reid_jax.errors import DataError
from reid_jax.eval import protocols, ranking, store

TOP = 10  # gallery images in a retrieval strip
_BOOKKEEPING = ("kind", "step", "epoch", "seconds", "net")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A ranked FeatureSet."""

    features: Any  # FeatureSet; None where only the ranking is needed, to save memory
    query: Any  # FeatureSet of the queries, without features (f32[Q,0])
    gallery: Any  # the same for the gallery
    retrieval: ranking.Retrieval


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir's content. Figures are in percent."""

    workdir: Path
    config: dict
    final: dict  # eval/final.json
    summary: dict  # summary.json, {} when absent
    train: list  # metrics.jsonl, lines of kind "train"
    evals: list  # lines of kind "eval"
    last: Ranked | None  # eval/final.npz
    first: Ranked | None  # eval/first.npz
    notes: dict  # file -> why it was not used

    @property
    def net(self):
        """Name of the network that stands for the run."""
        return self.final["net"]

    @property
    def figures(self):
        """Final figures of `net`."""
        return self.final["nets"][self.net]

    @property
    def protocol(self):
        """One of eval.protocols.PROTOCOLS."""
        return self.final.get("protocol", "market")

    @property
    def single(self):
        """Whether the figures come from drawn galleries of one image for each identity."""
        return self.protocol in protocols.SINGLE

    @property
    def first_figures(self):
        """(figures, epoch) of the first evaluation during training, or ({}, None)."""
        last = self.final.get("step", 0)
        earlier = [e for e in self.evals if e.get("net") == self.net and e["step"] < last]
        if earlier:
            return numbers(earlier[0]), earlier[0].get("epoch")
        if self.first and not self.single:
            return self.first.retrieval.figures(), None
        return {}, None

    @property
    def synthetic(self):
        """Whether the pictures are computer-made."""
        return self.config.get("data", {}).get("name") == "synthetic"

    def data_root(self, given=None):
        """Folder that the paths of the features are relative to, or None."""
        data = self.config.get("data", {})
        roots = (given, self.summary.get("data_root"), data.get("root"))
        return next((Path(r) for r in roots if r and isinstance(r, str | Path)), None)


def numbers(line):
    """The metrics of a line of metrics.jsonl that are finite numbers."""
    kept = {k: v for k, v in line.items() if k not in _BOOKKEEPING and isinstance(v, int | float)}
    return {k: v for k, v in kept.items() if math.isfinite(v)}


def read(workdir, keep_features=True) -> Run:
    """Reads a workdir. keep_features: whether `last` keeps them.

    config.json and eval/final.json are needed: DataError says which one is missing and what makes it.
    The other files are optional; `notes` says why one is not there.
    """
    workdir = Path(workdir)
    config, final = _needed(workdir, "config.json"), _needed(workdir, "eval/final.json")
    _check_final(workdir / "eval/final.json", final)
    notes = {}
    train, evals = _metrics(workdir, notes)
    options = {"distance": _distance(config), "camera_filter": final.get("protocol") != "all-pairs"}
    return Run(
        workdir=workdir,
        config=config,
        final=final,
        summary=_optional(workdir, "summary.json", notes),
        train=train,
        evals=evals,
        last=_ranked(workdir, "eval/final.npz", options, notes, keep_features),
        first=_ranked(workdir, "eval/first.npz", options, notes, False),
        notes=notes,
    )


def _needed(workdir, name):
    """A JSON object that the report cannot do without."""
    path = workdir / name
    try:
        return _json_object(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing, so there is no finished run to report; train it to the end with "
            f"`python -m reid_jax.main --config=CONFIG --workdir={workdir}`"
        ) from None
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read ({e}); run the training command of this workdir again") from e


def _optional(workdir, name, notes):
    """A JSON object, {} with a note when it is absent or broken."""
    try:
        return _json_object(workdir / name)
    except FileNotFoundError:
        notes[name] = f"{name} is not in the workdir"
    except (OSError, ValueError) as e:
        notes[name] = f"{name} cannot be read ({e})"
    return {}


def _json_object(path):
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError("it is no JSON object")
    return tree


def _check_final(path, final):
    nets = final.get("nets")
    if not isinstance(nets, dict) or not isinstance(nets.get(final.get("net")), dict):
        raise DataError(f"{path} has no figures of its network {final.get('net')!r}; evaluate the run again")


def _distance(config):
    distance = config.get("eval", {}).get("distance")
    return distance if distance in ranking.DISTANCES else "cosine"


def _metrics(workdir, notes):
    """(training lines, evaluation lines) of metrics.jsonl; lines that a kill cut are left out."""
    name, kinds = "metrics.jsonl", {"train": [], "eval": []}
    try:
        with open(workdir / name, encoding="utf-8", errors="replace") as f:
            for text in f:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and line.get("kind") in kinds and isinstance(line.get("step"), int):
                    kinds[line["kind"]].append(line)
    except OSError:
        notes[name] = f"{name} is not in the workdir"
    return kinds["train"], kinds["eval"]


def _ranked(workdir, name, options, notes, keep_features):
    """Ranked feature file, None with a note when it cannot be used."""
    path = workdir / name
    if not path.exists():
        notes[name] = f"{name} is not in the workdir"
        return None
    try:
        return rank(store.load(path), keep_features=keep_features, **options)
    except DataError as e:
        notes[name] = str(e)
        return None


def rank(features, distance="cosine", keep_features=True, camera_filter=True):
    """Ranked of a FeatureSet that holds query and gallery."""
    options = {"distance": distance, "topk": TOP, "camera_filter": camera_filter}
    q, g = features.of("query"), features.of("gallery")
    found = ranking.rank(q.feature, g.feature, q.pid, g.pid, q.camid, g.camid, **options)
    return Ranked(features if keep_features else None, _without_features(q), _without_features(g), found)


def _without_features(part):
    return dataclasses.replace(part, feature=np.empty((len(part), 0), np.float32))
