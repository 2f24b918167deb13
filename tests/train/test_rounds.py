"""Rounds of pseudo labels: tiny runs, with useless labels, with other identities; what a run leaves."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import StopAt, assert_same_run, config_of, lines, load, newest, train
from trees import picture, viper

from reid_jax import main, report
from reid_jax.errors import ConfigError
from reid_jax.eval import store
from reid_jax.methods import cluster_contrast
from reid_jax.methods.adl import labels as adl_labels
from reid_jax.train import checkpoint, restore, run, stages
from reid_jax.train.devices import Devices

CLUSTER_CONTRAST = "cluster_contrast.py:smoke"
ADL = "adl.py:smoke-baseline"
QUICK = [pytest.param(ADL, marks=pytest.mark.slow), CLUSTER_CONTRAST]


def settings(variant):
    """A smoke config with a net of one block, logging every step."""
    config = config_of(variant, data__height=16, data__width=8, train__log_every=1, report__enabled=False)
    config.model.update({"narrow_widths": (4, 4), "narrow_stripes": 1, "narrow_dim": 8})
    return config


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Folder of the pictures that all tests share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", params=QUICK)
def unbroken(request, data_root, tmp_path_factory):
    """(config, data set, workdir, Run) of a run to its end."""
    config = settings(request.param)
    dataset, workdir = load(config, data_root), tmp_path_factory.mktemp("runs") / "unbroken"
    return config, dataset, workdir, train(config, dataset, workdir)


def phases(config):
    return ["intra", "inter"] if config.method == "adl" else ["train"]


def test_a_whole_run(unbroken):
    """All parts of all rounds trained on their labels; evaluations, labels and checkpoints are there."""
    config, dataset, workdir, last = unbroken
    made = [(x["round"], x["phase"]) for x in lines(workdir, "labels")]
    assert made == [(r, p) for r in (1, 2) for p in phases(config)]
    for line in lines(workdir, "labels"):
        assert 0 < line["clusters"] and line["labelled"] > 0 and -100 <= line["ari"] <= line["nmi"] <= 100
    steps = [x["step"] for x in lines(workdir, "train")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 4
    assert [x["epoch"] for x in lines(workdir, "eval")] == [1, 2]
    arrays, meta = newest(workdir)
    assert (meta["round"], meta["part"], meta["taken"]) == (2, 2 * len(phases(config)), 0)
    seen = "3 cameras" if stages.reads_cameras(config) else "cameras hidden"
    assert f"images, identities hidden, {seen}; query" in main.describe(dataset, config)
    assert meta["step"] == steps[-1] and last.done() and len(arrays["memory/labels"]) == len(dataset.train)


@pytest.mark.parametrize("unbroken", QUICK, indirect=True)
def test_nothing_is_compiled_anew_in_later_rounds(unbroken, tmp_path):
    """A third and a fourth round compile nothing: neither steps nor what labels and starts parts."""
    config, dataset, _, _ = unbroken
    compiled = [0]
    longer = settings(ADL if config.method == "adl" else CLUSTER_CONTRAST)
    longer.data.root, longer.train.eval_every = config.data.root, 0
    longer[config.method].rounds = 4

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled[-1] += 1

    class Counting(run.Run):
        def begin(self, part, state, at):
            if at.part % len(phases(config)) == 0:
                compiled.append(0)
            return super().begin(part, state, at)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(longer, dataset, tmp_path, kind=Counting)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 5 and compiled[1] > 0  # before the first round, then rounds
    assert compiled[3] == 0  # the last one also evaluates


def borders(workdir):
    """Steps after which labels were made: [(round, step)]."""
    return [(x["round"], x["step"]) for x in lines(workdir, "labels")]


@pytest.mark.parametrize("where", ["phase border", pytest.param("start", marks=pytest.mark.slow)])
@pytest.mark.parametrize("unbroken", QUICK, indirect=True)
def test_a_run_stopped_at_a_border_goes_on_exactly(unbroken, tmp_path, where):
    """Bit for bit, metrics.jsonl included."""
    config, dataset, workdir, _ = unbroken
    step = borders(workdir)[-1][1] if where == "phase border" else 1
    train(config, dataset, tmp_path / "run", StopAt(step))
    _, meta = newest(tmp_path / "run")
    assert meta["step"] == step and (meta["taken"] == 0) == (where == "phase border")
    train(config, dataset, tmp_path / "run")
    assert_same_run(workdir, tmp_path / "run")


@pytest.mark.parametrize("unbroken", [CLUSTER_CONTRAST], indirect=True)
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


@pytest.mark.parametrize("unbroken", QUICK, indirect=True)
def test_hidden_identities_are_never_read(unbroken, tmp_path):
    """Other identities, the same run bit for bit; only the rating of the labels differs."""
    config, dataset, workdir, _ = unbroken
    assert all(r.pid == -1 for r in dataset.train)
    pid = np.random.default_rng(0).permutation(dataset.truth.pid)
    train(config, dataclasses.replace(dataset, truth=dataset.truth._replace(pid=pid)), tmp_path / "run")
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
CASES = [
    pytest.param(ADL, "none", marks=pytest.mark.slow),
    (CLUSTER_CONTRAST, "none"),
    (CLUSTER_CONTRAST, "one"),
    (CLUSTER_CONTRAST, "few"),
]


@pytest.mark.parametrize("variant, useless", CASES)
def test_useless_labels_cost_their_phase_only(data_root, tmp_path, monkeypatch, caplog, variant, useless):
    """The run goes on with a warning, and a later round trains."""
    config, calls = settings(variant), []
    dataset = load(config, data_root)
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


@pytest.mark.parametrize("unbroken", QUICK, indirect=True)
def test_a_run_is_used_without_its_training_data(unbroken):
    """Config, network and memory restored; embedding, evaluation and report."""
    config, dataset, workdir, _ = unbroken
    devices = Devices(jax.devices()[:1])
    restored = restore.run(str(workdir), devices)
    features = restored.features({"query": dataset.query[:3]}, dataset.root).feature
    final = store.load(workdir / "eval" / "final.npz")
    np.testing.assert_allclose(features, final.of("query").feature[:3], rtol=1e-4, atol=1e-6)
    main.evaluate(config, dataset, str(workdir), devices)
    again, final = (json.loads((workdir / f / "final.json").read_text()) for f in ("evaluate", "eval"))
    assert again["nets"].keys() == final["nets"].keys() and again["checkpoint"] == "last"
    checkpoint.write_json(str(workdir / "summary.json"), {"seconds": 1.0})
    page = Path(report.build(str(workdir), data_root=dataset.root, queries=1)).read_text()
    assert "Pseudo labels" in page and "Adjusted Rand index of the pseudo labels over rounds" in page
    assert page.count("of the pseudo labels over rounds") == 4 and ">round 1<" in page


def own_pictures(root, people=6):
    """Boxes that nobody has labelled, by no camera that is known."""
    for pid, i in np.ndindex(people, 4):
        picture(root, f"box{i}_{pid}.png", value=40 * pid + i)
    return str(root)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [ADL, CLUSTER_CONTRAST])
def test_a_bare_folder_is_trained_on(tmp_path, variant):
    """Nothing rates its labels, nothing is tested, and the report says so; a resumed run is the same."""
    config = settings(variant)
    config.data.name, config.data.ids, config.train.eval_every = "folder", 2, 1
    dataset, folder = load(config, own_pictures(tmp_path / "boxes")), tmp_path / "run"
    last = train(config, dataset, folder)
    made = lines(folder, "labels")
    assert made and all({"clusters", "labelled"} < x.keys() and "ari" not in x for x in made)
    assert not lines(folder, "eval") and last.done()
    final = json.loads((folder / "eval" / "final.json").read_text())
    assert final["nets"] == {} and not (folder / "eval" / "final.npz").exists()
    checkpoint.write_json(str(folder / "summary.json"), {"seconds": 1.0})
    page = Path(report.build(str(folder), data_root=dataset.root, queries=1)).read_text()
    assert "This run has no test set of its own" in page and "Adjusted Rand" not in page
    with pytest.raises(ConfigError, match="nobody to test on"):
        main.evaluate(config, dataset, str(folder), Devices(jax.devices()[:1]))
    train(config, dataset, tmp_path / "again", StopAt(lines(folder, "train")[1]["step"]))
    train(config, dataset, tmp_path / "again")
    assert_same_run(folder, tmp_path / "again")
    tested = restore.run(str(folder), Devices(jax.devices()[:1]))
    assert len(tested.features({"images": dataset.train[:3]}, dataset.root)) == 3


def test_a_bare_folder_and_another_set_to_test_on(tmp_path):
    """Its figures stand beside none, and choose no checkpoint."""
    config = settings(CLUSTER_CONTRAST)
    config.data.name, config.data.ids = "folder", 2
    config.eval.also = f"viper:{viper(tmp_path / 'VIPeR')}"
    dataset = load(config, own_pictures(tmp_path / "boxes"))
    train(config, dataset, tmp_path / "run")
    final = json.loads((tmp_path / "run" / "eval" / "final.json").read_text())
    assert final["nets"] == {} and final["sets"]["viper"]["nets"]["net"]["rank1"] >= 0
    assert {x["set"] for x in lines(tmp_path / "run", "eval")} == {"viper"}
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "run", "train")) as kept:
        assert {kept.manager.metrics(s)["mAP"] for s in kept.steps()} == {checkpoint.NOT_EVALUATED}
