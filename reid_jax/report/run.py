"""Reads what a run left in its workdir."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from reid_jax import places
from reid_jax.config import defaults
from reid_jax.data import decode
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import protocols, ranking, scoring, store, verification
from reid_jax.fields import misfit

TOP = 10  # gallery images in a retrieval strip
UNTESTED = "the run has no test set of its own"
_BOOKKEEPING = ("kind", "step", "epoch", "seconds", "net", "set")
_SUMMARY = {
    **{"seconds": int | float, "images_per_second": int | float, "devices": str, "machine": str},
    **{"data_root": str, "camera_names": list, "versions": dict},
}


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A ranked FeatureSet."""

    features: Any  # FeatureSet; None where only the ranking is needed, to save memory
    query: Any  # FeatureSet of the queries, without features (f32[Q,0])
    gallery: Any  # the same for the gallery
    retrieval: ranking.Retrieval
    pairs: verification.Pairs | None = None  # of the last evaluation


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir's content. Figures are in percent."""

    workdir: Path
    config: dict
    final: dict  # eval/final.json
    summary: dict  # summary.json, {} when absent
    train: list  # metrics.jsonl, lines of kind "train"
    evals: list  # lines of kind "eval"
    labels: list  # lines of kind "labels": pseudo labels, one line for each phase of each round
    studies: list  # lines of kind "study", of every stage
    titles: dict  # titles.json: method, metrics, look, defaults, study, sets; each empty when it is absent
    last: Ranked | None  # eval/final.npz
    first: Ranked | None  # eval/first.npz
    notes: dict  # file -> why it was not used
    drawn: dict = dataclasses.field(default_factory=dict)  # eval/drawn.json: figures of drawn sets alone

    @property
    def name(self):
        """What the run is called: its method, or that row of an ablation."""
        method = str(self.config.get("method", "unknown method"))
        return self.titles["method"] or method[:1].upper() + method[1:]

    @property
    def net(self):
        """Name of the network that stands for the run, "" of one that was not tested."""
        return self.final.get("net", "")

    @property
    def figures(self):
        """Final figures of `net`, {} of a run that was not tested."""
        return self.final["nets"].get(self.net, {})

    @property
    def untested(self):
        """Whether the run has no test set of its own."""
        return not self.final["nets"]

    @property
    def left_out(self):
        """Number of test pictures that could not be read and were left out."""
        paths = self.final.get("left_out")
        return len(paths) if isinstance(paths, list) else 0

    @property
    def protocol(self):
        """One of eval.protocols.PROTOCOLS."""
        return self.final.get("protocol", "market")

    @property
    def single(self):
        """Whether the figures come from drawn galleries of one image for each identity."""
        return self.protocol in (*protocols.SINGLE, *protocols.PERSONS)

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
    def sets(self):
        """[(name, protocol, {net: figures})] of further test sets; damaged ones are left out."""
        sets = self.final.get("sets")
        pairs = [] if not isinstance(sets, dict) else [(n, s) for n, s in sets.items() if isinstance(s, dict)]
        return [
            (name, tested["protocol"], {net: numbers(f) for net, f in tested["nets"].items()})
            for name, tested in pairs
            if tested.get("protocol") in protocols.PROTOCOLS and _figures(tested.get("nets"))
        ]

    @property
    def unit(self):
        """What the run's epochs are called."""
        return "round" if self.labels else "epoch"

    @property
    def synthetic(self):
        """Whether the pictures are computer-made."""
        return self.config.get("data", {}).get("name", "").startswith("synthetic")

    @property
    def pixels(self):
        """data.decode.Pixels that the run saw its pictures with."""
        data = self.config.get("data", {})
        return decode.Pixels(bool(data.get("exif", True)), tuple(data.get("grey", ())))

    def data_root(self, folder=None):
        """Folder that the paths of the features are relative to, or None."""
        data = self.config.get("data", {})
        roots = (folder, self.summary.get("data_root"), data.get("root"))
        root = next((r for r in roots if r and isinstance(r, str | Path)), None)
        return root and Path(os.path.expanduser(root))


def numbers(line):
    """The metrics of a line of metrics.jsonl that are finite numbers."""
    return {k: v for k, v in line.items() if k not in _BOOKKEEPING and _number(v)}


def _figures(nets):
    """Whether this is {net: {figure: ...}}."""
    return isinstance(nets, dict) and all(isinstance(figures, dict) for figures in nets.values())


def read(workdir, keep_features=True) -> Run:
    """Reads a workdir. keep_features: whether `last` keeps them.

    config.json and eval/final.json are needed: DataError says which one is missing and what makes it.
    The other files are optional; `notes` says why one is not there. Of a run whose last stage is still to be
    trained the last finished one stands for it: eval/STAGE/final.json.
    """
    workdir = Path(places.local(workdir, "the run"))
    config, notes = read_config(workdir), {}
    lines = _metrics(workdir, notes)
    names = [line.get("stage", "") for line in lines["eval"] or lines["train"]]
    folder = _folder(workdir, names)
    last = folder.removeprefix("eval/") if "/" in folder else names[-1] if names else ""
    final = _needed(workdir, f"{folder}/final.json", _misfit_of_final)
    train, evals, labels = (of_stage(lines[kind], last) for kind in ("train", "eval", "labels"))
    evals = [line for line in evals if "set" not in line]  # of the run's own test set
    options = {"distance": _distance(config), "camera_filter": final.get("protocol") != "all-pairs"}
    run = Run(
        workdir=workdir,
        config=config,
        final=final,
        summary=_summary(_optional(workdir, "summary.json", notes)),
        drawn=numbers(_optional(workdir, "eval/drawn.json", {})),
        train=train,
        evals=evals,
        labels=labels,
        studies=lines["study"],
        titles=_titles(_optional(workdir, "titles.json", notes)),
        last=_ranked(workdir / folder, "final.npz", options, notes, keep_features, pairs=True),
        first=_ranked(workdir / folder, "first.npz", options, notes, False),
        notes=notes,
    )
    if run.untested:
        notes |= dict.fromkeys(
            (f"eval/{name}" for name in ("final.npz", "first.npz", "final.json")), UNTESTED
        )
    return run


def read_final(workdir):
    """eval/final.json as a dict; DataError when there is none."""
    return _needed(Path(workdir), "eval/final.json", _misfit_of_final)


def read_config(workdir):
    """config.json as a nested dict; DataError when there is none."""
    return _needed(Path(workdir), "config.json", lambda tree: misfit(tree, defaults()))


def _folder(workdir, names):
    """eval, or eval/STAGE where only earlier stages are finished; names: stages as they were evaluated."""
    finished = [
        n for n in names if isinstance(n, str) and n and (workdir / "eval" / n / "final.json").exists()
    ]
    whole = (workdir / "eval" / "final.json").exists()
    return f"eval/{finished[-1]}" if finished and not whole else "eval"


def _needed(workdir, name, misfit_of):
    """A JSON object that the report cannot do without; misfit_of: what is wrong with it, or ""."""
    path = workdir / name
    try:
        tree = _json_object(path)
        if wrong := misfit_of(tree):
            raise ValueError(wrong)
        return tree
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing, so there is no finished run to report; train it to the end with "
            f"`python -m reid_jax.main --config=CONFIG --workdir={workdir}`"
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path} cannot be read ({e}); run the training command of this workdir again") from e


def _optional(workdir, name, notes):
    """A JSON object, {} with a note when it is absent or broken."""
    try:
        return _json_object(workdir / name)
    except FileNotFoundError:
        notes[name] = f"{name} is not in the workdir"
    except (OSError, ValueError, RecursionError) as e:
        notes[name] = f"{name} cannot be read ({e})"
    return {}


def _json_object(path):
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError("it is no JSON object")
    return tree


def _misfit_of_final(final):
    """What is wrong with the content of eval/final.json, "" when nothing is."""
    nets, net = final.get("nets"), final.get("net")
    untested = nets == {} and net is None
    if not untested and (not isinstance(net, str) or not isinstance(nets, dict) or net not in nets):
        return f"it has no figures of its network {net!r}; evaluate the run again"
    figures = {**nets, "random": final.get("random") or {}}
    for name, values in figures.items():
        if not isinstance(values, dict):
            return f"{name} is {values!r} instead of figures"
        for figure, value in values.items():
            if not all(map(_number, value if figure == "cmc" and isinstance(value, list) else [value])):
                return f"{figure} of {name} is {value!r}"
    if final.get("protocol", "market") not in protocols.PROTOCOLS:
        return f"protocol is {final['protocol']!r}"
    return "" if isinstance(final.get("step", 0), int) else f"step is {final['step']!r}"


def _number(value):
    return isinstance(value, int | float) and abs(value) < 1e300


def _titles(tree):
    """titles.json as far as it is what it should be."""
    fields = {"method": str, "metrics": dict, "look": dict, "defaults": dict, "study": dict, "sets": dict}
    titles = {k: tree[k] if isinstance(tree.get(k), form) else form() for k, form in fields.items()}
    sets = titles["sets"].items()
    titles["sets"] = {k: list(map(str, v)) for k, v in sets if isinstance(v, list) and v}
    for field in ("metrics", "look"):
        titles[field] = {k: v for k, v in titles[field].items() if isinstance(v, str)}
    return titles


def _summary(tree):
    """The fields of summary.json that the report shows, as far as they are what they should be."""
    fields = {k: v for k, v in tree.items() if isinstance(v, _SUMMARY.get(k, object))}
    return {k: v for k, v in fields.items() if _number(v) or not isinstance(v, float | int)}


def _distance(config):
    with contextlib.suppress(ConfigError):
        return scoring.check_distance(config.get("eval", {}).get("distance"))
    return "cosine"


def _metrics(workdir, notes):
    """{kind: lines} of metrics.jsonl; lines that a kill cut are left out."""
    name, kinds = "metrics.jsonl", {"train": [], "eval": [], "labels": [], "study": []}
    try:
        with open(workdir / name, encoding="utf-8", errors="replace") as f:
            for text in f:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if _usable(line) and line["kind"] in kinds:
                    kinds[line["kind"]].append(line)
    except OSError:
        notes[name] = f"{name} is not in the workdir"
    return kinds


def read_arrays(path, fits):
    """{name: array} of an .npz file; None when there is none, it cannot be read or fits(arrays) says no."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        arrays = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray)}  # numpy gives bytes too
        return arrays if fits(arrays) else None
    except Exception:  # damaged bytes make zipfile and numpy fail in many ways
        return None


def of_stage(lines, stage):
    """The lines of one stage of a run with several."""
    return [line for line in lines if line.get("stage", "") == stage]


def _usable(line):
    """Whether a line of metrics.jsonl says when and what was measured."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    step, epoch = line.get("step"), line.get("epoch", 0)
    return isinstance(step, int) and _number(step) and _number(epoch) and isinstance(line.get("net", ""), str)


def _ranked(folder, name, options, notes, keep_features, pairs=False):
    """Ranked feature file, None with a note when it cannot be used; notes call every stage's folder eval."""
    path, note = folder / name, f"eval/{name}"
    if not path.exists():
        notes[note] = f"{note} is not in the workdir"
        return None
    try:
        return rank(store.load(path), keep_features=keep_features, pairs=pairs, **options)
    except DataError as e:
        notes[note] = str(e)
        return None


def rank(features, distance="cosine", keep_features=True, camera_filter=True, pairs=False):
    """Ranked of a FeatureSet with query and gallery; pairs: with them, if there are any of two persons."""
    q, g = features.of("query"), features.of("gallery")
    sides = (q.feature, g.feature, q.pid, g.pid, q.camid, g.camid)
    options = {"distance": distance, "camera_filter": camera_filter}
    retrieval, counted = ranking.rank(*sides, topk=TOP, **options), None
    if pairs:
        with contextlib.suppress(DataError):
            counted = verification.count(*sides, **options)
    stored = features if keep_features else None
    return Ranked(stored, _without_features(q), _without_features(g), retrieval, counted)


def _without_features(side):
    return dataclasses.replace(side, feature=np.empty((len(side), 0), np.float32))
