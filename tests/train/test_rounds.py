"""Rounds of pseudo labels: tiny runs, stopped and continued, with useless labels, with other identities."""

import contextlib
import dataclasses
import json
import logging
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from reid_jax import cli, main, report
from reid_jax.data import datasets
from reid_jax.eval import store
from reid_jax.methods import cluster_contrast
from reid_jax.methods.adl import labels as adl_labels
from reid_jax.train import checkpoint, loop, parallel, restore, rounds, stages

CONFIGS = Path(__file__).parent.parent.parent / "configs"
CLUSTER_CONTRAST = "cluster_contrast.py:smoke"
ADL = "adl.py:smoke-baseline"


def settings(variant):
    """A smoke config with a net of one block, logging every step."""
    config = cli.load_config(f"{CONFIGS}/{variant}")
    config.data.update({"height": 16, "width": 8})
    config.model.update({"narrow_widths": (4, 4), "narrow_stripes": 1, "narrow_dim": 8})
    config.train.update({"log_every": 1, "backend": "jit"})
    config.report.enabled = False
    return config


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def load(data_root):
    """load(config): the data set that all tests share."""

    def read(config):
        config.data.root = data_root
        return datasets.load(config.data, data_root)

    return read


class StopAt(loop.StopSignal):
    """A SIGTERM that comes when `due` is asked for the `call`-th time at `step`."""

    def __init__(self, step=-1, call=1):
        super().__init__()
        self.step, self.calls = step, call

    def due(self, step):
        self.calls -= step == self.step
        if step == self.step and self.calls == 0:
            self.requested = signal.SIGTERM
        return super().due(step)


def train(config, dataset, workdir, stop=None):
    """A run, or the rest of one, to its end or to `stop`; its stage."""
    workdir.mkdir(exist_ok=True)
    checkpoint.write_json(str(workdir / "config.json"), checkpoint.plain(config))
    own, method, when = stages.build(config, dataset, "train", None)
    job = loop.Job("train", ("train",), config, own, method, when)
    stage = rounds.RoundStage(job, dataset, str(workdir), parallel.Runner("jit"), stop or StopAt())
    with contextlib.suppress(loop.Stopped):
        stage.run()
    return stage


def lines(workdir, kind=None):
    """metrics.jsonl without seconds."""
    found = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "seconds"} for x in found if kind in (None, x["kind"])]


def newest(workdir):
    """({leaf path: array}, meta) of the newest checkpoint."""
    checkpoints = checkpoint.Checkpoints(str(workdir), "train")
    with contextlib.closing(checkpoints):
        step = checkpoints.steps()[-1]
        return checkpoints.read_arrays(step), checkpoints.read_meta(step)


def assert_same_run(a, b):
    (arrays, meta), (others, other_meta) = newest(a), newest(b)
    assert arrays.keys() == others.keys() and "labels" in arrays
    for name, value in arrays.items():
        assert np.array_equal(value, others[name]), name
    drop = ("seconds",)
    assert {k: v for k, v in meta.items() if k not in drop} == {
        k: v for k, v in other_meta.items() if k not in drop
    }
    assert lines(a) == lines(b)
    features = [store.load(w / "eval" / "final.npz").feature for w in (a, b)]
    np.testing.assert_array_equal(*features)


@pytest.fixture(scope="module", params=[ADL, CLUSTER_CONTRAST])
def unbroken(request, load, tmp_path_factory):
    """(config, data set, workdir, stage) of a run to its end."""
    config = settings(request.param)
    dataset, workdir = load(config), tmp_path_factory.mktemp("runs") / "unbroken"
    return config, dataset, workdir, train(config, dataset, workdir)


def test_a_whole_run(unbroken):
    """All phases of all rounds trained on their labels; evaluations, labels and checkpoints are there."""
    config, dataset, workdir, stage = unbroken
    phases = list(stage.method.phases)
    found = [(x["round"], x["phase"]) for x in lines(workdir, "labels")]
    assert found == [(r, p) for r in (1, 2) for p in phases]
    for line in lines(workdir, "labels"):
        assert 0 < line["clusters"] and line["labelled"] > 0 and -100 <= line["ari"] <= line["nmi"] <= 100
    steps = [x["step"] for x in lines(workdir, "train")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 4
    assert [x["epoch"] for x in lines(workdir, "eval")] == [1, 2]
    arrays, meta = newest(workdir)
    assert (meta["round"], meta["phase"], meta["taken"]) == (2, 0, 0) and meta["step"] == steps[-1]
    np.testing.assert_array_equal(arrays["labels"], stage.labels)
    assert stage.done() and len(arrays["labels"]) == len(dataset.train)


def test_nothing_is_compiled_anew_in_later_rounds(unbroken, tmp_path):
    """A third and a fourth round compile nothing: neither steps nor what labels and starts phases."""
    config, dataset, _, stage = unbroken
    assert [step._cache_size() for step in stage.compiled.values()] == [1] * len(stage.compiled)
    assert stage.embedder.image._cache_size() == 1
    compiled = []
    longer = settings(ADL if config.method == "adl" else CLUSTER_CONTRAST)
    longer.data.root, longer.train.eval_every = config.data.root, 0
    longer[config.method].rounds = 4

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled[-1] += 1

    class Counting(rounds.RoundStage):
        def begin(self, name, phase):
            if not self.phase:
                compiled.append(0)
            super().begin(name, phase)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        own, method, when = stages.build(longer, dataset, "train", None)
        job = loop.Job("train", ("train",), longer, own, method, when)
        compiled.append(0)
        Counting(job, dataset, str(tmp_path), parallel.Runner("jit"), StopAt()).run()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 5 and compiled[1] > 0  # before the first round, then rounds
    assert compiled[2:4] == [0, 0]


def borders(workdir):
    """Steps after which labels were made: [(round, step)]."""
    return [(x["round"], x["step"]) for x in lines(workdir, "labels")]


def cases(both, *quick):
    """[parameters (config, case)] for both configs; those that are not `quick` are slow."""
    found = []
    for variant in (ADL, CLUSTER_CONTRAST):
        for case in both:
            marks = () if (variant, case) in quick else pytest.mark.slow
            found.append(pytest.param(variant, case, marks=marks, id=f"{variant.partition('.')[0]}-{case}"))
    return found


STOPS = cases(
    ["middle", "last step", "phase border", "round border", "start"],
    *((ADL, case) for case in ("middle", "phase border", "start")),
    *((CLUSTER_CONTRAST, case) for case in ("last step", "round border")),
)


@pytest.mark.parametrize("unbroken, where", STOPS, indirect=["unbroken"])
def test_a_stopped_run_goes_on_exactly(unbroken, tmp_path, where):
    """Bit for bit, metrics.jsonl included."""
    config, dataset, workdir, stage = unbroken
    starts = borders(workdir)
    second = next(step for r, step in starts if r == 2)
    step, call = {
        "middle": (starts[-1][1] + 1, 1),
        "last step": (lines(workdir, "train")[-1]["step"], 1),
        "phase border": (starts[-1][1], 1),
        "round border": (second, 1),
        "start": (1, 1),
    }[where]
    first = train(config, dataset, tmp_path / "run", StopAt(step, call))
    assert first.step == step
    arrays, meta = newest(tmp_path / "run")
    assert meta["step"] == step
    np.testing.assert_array_equal(arrays["labels"], first.labels)
    if where == "middle":
        assert meta["taken"] > 0
    if where in ("round border", "phase border"):
        assert meta["taken"] == 0 and (meta["round"] == 1)
    train(config, dataset, tmp_path / "run")
    assert_same_run(workdir, tmp_path / "run")


@pytest.mark.parametrize("unbroken", [ADL], indirect=True)
def test_lines_after_the_checkpoint_are_written_again_once(unbroken, tmp_path):
    """A run killed after new labels, whose checkpoint is older though of the same step."""
    config, dataset, workdir, _ = unbroken
    step = borders(workdir)[-1][1]
    train(config, dataset, tmp_path / "run", StopAt(step))
    line = next(x for x in lines(workdir, "labels") if x["step"] == step and x["round"] == 2)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as f:
        f.write(json.dumps({**line, "seconds": 1.0}) + "\n")
    train(config, dataset, tmp_path / "run")
    assert_same_run(workdir, tmp_path / "run")


def test_identities_of_the_training_set_are_never_read(unbroken, tmp_path):
    """Other identities, the same run; only the rating of the labels differs."""
    config, dataset, workdir, _ = unbroken
    rng = np.random.default_rng(0)
    pids = rng.permutation([r.pid for r in dataset.train])
    shuffled = tuple(dataclasses.replace(r, pid=int(p)) for r, p in zip(dataset.train, pids, strict=True))
    train(config, dataclasses.replace(dataset, train=shuffled), tmp_path / "run")
    (arrays, _), (others, _) = newest(workdir), newest(tmp_path / "run")
    for name, value in arrays.items():
        assert np.array_equal(value, others[name]), name
    for kind in ("train", "eval"):
        assert lines(workdir, kind) == lines(tmp_path / "run", kind)
    assert lines(workdir, "labels") != lines(tmp_path / "run", "labels")


def one_cluster(count):
    return np.zeros(count, int)


def few_clusters(count):
    """One fewer than data.ids of the smoke configs, most images left out."""
    return np.where(np.arange(count) < 4, 0, -1)


USELESS = {"none": lambda count: np.full(count, -1), "one": one_cluster, "few": few_clusters}
QUICK = [(ADL, "none"), (CLUSTER_CONTRAST, "none"), (CLUSTER_CONTRAST, "one"), (CLUSTER_CONTRAST, "few")]


@pytest.mark.parametrize("variant, useless", cases(USELESS, *QUICK))
def test_useless_labels_cost_their_phase_only(load, tmp_path, monkeypatch, caplog, variant, useless):
    """The run goes on with a warning, and a later round trains."""
    config, calls = settings(variant), []
    dataset = load(config)
    config.train.eval_every = 0
    module, name = (adl_labels, "inter") if config.method == "adl" else (cluster_contrast, "find_labels")
    real = getattr(module, name)

    def found(features, *rest, **named):
        calls.append(len(features))
        return USELESS[useless](len(features)) if len(calls) == 1 else real(features, *rest, **named)

    monkeypatch.setattr(module, name, found)
    with caplog.at_level(logging.WARNING):
        train(config, dataset, tmp_path)
    phase = "inter" if config.method == "adl" else "train"
    assert f"round 1, {phase}: no training on these labels" in caplog.text
    assert f"round 2, {phase}: no training" not in caplog.text
    epochs = {x["epoch"] for x in lines(tmp_path, "train") if config.method != "adl" or "triplet" in x}
    assert epochs == {1} and newest(tmp_path)[1]["round"] == 2


def test_a_run_is_used_without_its_training_data(unbroken, tmp_path, load):
    """Config, network and labels restored; embedding, evaluation and report."""
    config, dataset, workdir, stage = unbroken
    restored = restore.run(str(workdir), parallel.Runner("jit"), "latest")
    records = dataset.query[:3]
    found = restored.features({"query": records}, dataset.root).feature
    final = store.load(workdir / "eval" / "final.npz")
    np.testing.assert_allclose(found, final.of("query").feature[:3], rtol=1e-4, atol=1e-6)
    assert main.evaluate(config, dataset, str(workdir), parallel.Runner("jit")) == 0
    again, final = (json.loads((workdir / f / "final.json").read_text()) for f in ("evaluate", "eval"))
    assert again["nets"].keys() == final["nets"].keys()
    checkpoint.write_json(str(workdir / "summary.json"), {"seconds": 1.0})
    page = Path(report.build(str(workdir), data_root=dataset.root, queries=1)).read_text()
    assert "Pseudo labels" in page and "Adjusted Rand index of the pseudo labels over rounds" in page
    assert page.count("of the pseudo labels over rounds") == 4 and ">round 1<" in page
