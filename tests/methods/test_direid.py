"""DI-REID's stages: what one takes over from another, its study, a whole short run (slow)."""

import functools
import json
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from methods.direid_small import SIZE, config, info

from reid_jax import report
from reid_jax.data import datasets, degrade
from reid_jax.data.records import Record
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.fields import namespace, plain
from reid_jax.methods import direid
from reid_jax.methods.direid import stage, study
from reid_jax.train import checkpoint, stages
from reid_jax.train import run as runs
from reid_jax.train.devices import Devices


def test_graft_takes_a_part_or_all():
    source = {"params": {"base": {"w": np.ones(2)}, "head": {"w": np.ones(3)}}}
    fresh = {"params": {"base": {"w": np.zeros(2)}, "other": {"w": np.zeros(1)}}}
    new = stage.graft(fresh, source, "base")
    assert new["params"]["base"]["w"].tolist() == [1, 1] and new["params"]["other"]["w"].tolist() == [0]
    with pytest.raises(CheckpointError, match="params/other/w of the earlier stage is missing"):
        stage.graft(fresh, source)
    with pytest.raises(CheckpointError, match=r"is \(2,\), this one needs \(3,\)"):
        stage.graft({"params": {"base": {"w": np.zeros(3)}}}, source, "base")


@functools.cache
def shaped(preset):
    """{stage: (Method, State of shapes)}."""
    made = {name: method(config(preset), info()) for name, method in direid.STAGES.items()}
    return {name: (method, jax.eval_shape(method.init, jax.random.key(0))) for name, method in made.items()}


@pytest.mark.parametrize("preset", ["paper", pytest.param("journal", marks=pytest.mark.slow)])
def test_later_stages_find_everything_they_need(preset):
    """Shapes only: every network of gan and dfen that is taken over fits that of the earlier stage."""
    made = {name: method for name, (method, _) in shaped(preset).items()}
    shapes = {name: state for name, (_, state) in shaped(preset).items()}
    zeros = {n: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), s) for n, s in shapes.items()}
    ones = {n: jax.tree.map(np.ones_like, s.nets) for n, s in zeros.items()}
    taken = []

    def load(stage, net):
        taken.append((stage, net))
        return ones[stage][net]

    def extract(function, variables):
        return np.ones((9, 4), np.float32)

    taught = made["gan"].inherit(zeros["gan"], load, extract)
    assert all(np.all(x == 1) for x in jax.tree.leaves(taught.nets["E_con"]["params"]["base"]))
    assert not any(np.any(x) for x in jax.tree.leaves(taught.nets["E_con"]["params"]["head"]))
    dfen = made["dfen"].inherit(zeros["dfen"], load, extract)
    fresh = {"C", "A_deg"}
    for net, variables in dfen.nets.items():
        values = {float(v) for x in jax.tree.leaves(variables) for v in np.unique(x)}
        assert values == ({0.0} if net in fresh else {1.0}), net
    if preset == "journal":
        assert dfen.memory["codes"].shape == (9, made["gan"].config.direid.code_dim) and np.all(
            dfen.memory["codes"] == 1
        )
    wanted = {"paper": ("gan", "D_deg"), "journal": ("gan", "G")}[preset]
    assert wanted in taken and ("teacher", "E_id") in taken


def test_without_degradation_learning():
    m = config(attention_input="none")
    m.train.skip = ("gan",)
    assert stages.of_config(m) == ["teacher", "dfen"]
    method = direid.Dfen(m, info())
    state, source = (jax.eval_shape(s.init, jax.random.key(0)) for s in (method, direid.Teacher(m, info())))
    zeros, ones = (jax.tree.map(lambda x, n=n: np.full(x.shape, n), s) for n, s in enumerate((state, source)))
    new = method.inherit(zeros, lambda stage, net: {"teacher": ones}[stage].nets[net], None)
    assert all(
        np.all(x == 1) for x in jax.tree.leaves((new.nets["E_id"], new.nets["E_con"]["params"]["base"]))
    )
    assert not any(np.any(x) for x in jax.tree.leaves(new.nets["E_con"]["params"]["head"]))
    for fields in (dict(attention_input="score"), dict(replay="bank")):
        m = config(**{"attention_input": "none", **fields})
        m.train.skip = ("gan",)
        with pytest.raises(ConfigError, match="attention_input"):
            direid.Dfen(m, info())


def test_donors_are_other_people_of_the_camera():
    records = [Record("", pid, cam) for pid, cam in ((3, 0), (0, 0), (3, 1), (5, 1), (4, 0), (6, 2), (7, 0))]
    each = study.one_each(records)
    assert [r.pid for r in each] == [3, 5, 4, 6, 7]
    assert study.next_of_camera(each) == [2, None, 4, None, 0]
    records = [Record("", pid, cam) for pid in (1, 2, 3, 4) for cam in (0, 1, 2)]
    assert [(r.pid, r.camid) for r in study.one_each(records)] == [(1, 0), (2, 1), (3, 2), (4, 0)]


def test_known_levels_go_from_none_to_the_strongest():
    picture = np.random.default_rng(0).integers(0, 256, (24, 12, 3), np.uint8)
    for kind in degrade.KINDS:
        levels, pictures = study.known_levels(degrade.Settings(kind), [picture], (24, 12))
        assert np.array_equal(pictures[0, 0], picture)
        distance = np.abs(pictures[:, 0].astype(float) - picture).mean((1, 2, 3))
        assert len(levels) == study.LEVELS and distance[-1] == distance.max() and distance[1] > 0


def test_sharpness_and_brightness_against_loops():
    x = np.random.default_rng(0).uniform(0, 255, (2, 5, 6, 3)).astype(np.float32)
    for b in range(2):
        grey, total = x[b].mean(-1), []
        for i in range(1, 4):
            for j in range(1, 5):
                around = grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1]
                total.append(abs(around - 4 * grey[i, j]))
        assert study.sharpness(x)[b] == pytest.approx(np.mean(total), rel=1e-5)
        assert study.brightness(x)[b] == pytest.approx(x[b].mean(), rel=1e-5)


def test_figures_of_a_study_by_hand():
    found = {
        "transferred": np.array([1.0, 3.0]),
        "true": np.array([4.0, 4.0]),
        "mse": np.full(2, 255.0**2 / 100),
        "mse_nothing": np.full(2, 255.0**2 / 10),
        "sharp": np.array([[1.0, 2.0], [2.0, 4.0]]),
        "score": np.array([[0.9, 0.1], [0.5, 0.6]]),
        "content": np.array([[1.0, 4.0], [3.0, 4.0]]),
        "code": np.array([[0.0, 1.0], [2.0, 1.0]]),
        "change/content": np.array([0.1, 0.3]),
    }
    figures = study.summary(found)
    assert figures == {
        "strength": pytest.approx(0.5),
        "psnr": pytest.approx(20),
        "psnr_nothing": pytest.approx(10),
        "sharpness": pytest.approx(0.5),
        "score_gap": pytest.approx(0.35),
        "score_auc": pytest.approx(75),  # of the four pairs 0.9, 0.5 against 0.1, 0.6 one is wrong
        "content": pytest.approx(0.5),
        "code_std": pytest.approx(0.5),
        "map_change": pytest.approx(0.2),
    }
    found["change/teacher"] = np.array([0.5, 1.0])
    assert study.summary(found) == figures | {"map_change_teacher": pytest.approx(0.75)}


def test_change_of_maps_by_hand():
    a, b = np.zeros((2, 2, 2, 2, 3), np.float32)
    a[0, 0, 0], b[0, 0, 0] = (3, 0, -4), (3, 0, 0)
    a[1, 1, 0] = (-6, 3, 0)
    b[1] = a[1] + 1
    np.testing.assert_allclose(study.relative(a, b), [4 / 5, np.sqrt(12 / 45)], rtol=1e-6)
    np.testing.assert_allclose(study.heat(a), [[[7 / 3, 0], [0, 0]], [[0, 0], [3, 0]]], rtol=1e-6)
    assert np.array_equal(study.relative(np.zeros_like(a), np.zeros_like(a)), [0, 0])


@pytest.mark.parametrize("preset", ["paper", pytest.param("journal", marks=pytest.mark.slow)])
def test_measured_maps(preset):
    """Shapes of a study's measurements; the teacher's maps where the stage has a teacher."""
    method, state = shaped(preset)["gan"]
    image = jax.ShapeDtypeStruct((3, SIZE, SIZE, 3), np.uint8)
    found = jax.eval_shape(lambda state, x: study.measure(state, (x,) * 4, method), state, image)
    maps = {n.removeprefix("map/"): x.shape for n, x in found.items() if n.startswith("map/")}
    teacher = {"teacher": (3, 2, 8, 8)} if preset == "paper" else {}
    assert maps == {"content": (3, 2, 8, 8), **teacher}
    assert all(found[f"change/{n}"].shape == (3,) for n in maps)


@pytest.mark.slow
def test_three_stages_and_resume(tmp_path):
    """A run of all stages; stages one by one, the last from another workdir, give the same weights."""
    file = pathlib.Path(__file__).parents[2] / "configs" / "direid.py"  # configs/ is no package
    m = runpy.run_path(str(file))["get_config"]("smoke")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dataset = datasets.load(m.data, str(tmp_path))
    devices = Devices(jax.devices()[:1])
    seconds = runs.train(m, dataset, str(whole), devices)["seconds"]
    again = runs.train(m, dataset, str(whole), devices)["seconds"]  # all are done
    spent = []
    for name in direid.STAGES:
        opened = checkpoint.Checkpoints(str(whole), name)
        spent.append(opened.read_meta(opened.steps()[-1])["seconds"])
        opened.close()
    assert seconds >= sum(spent) > max(spent) and again >= sum(spent)  # those of all stages
    checkpoint.claim_workdir(str(parts), plain(m))
    for name in ("teacher", "gan"):
        m.train.only = name
        runs.train(m, dataset, str(parts), devices)
    m.train.only, m.init.stages = "", f"teacher={parts},gan={parts}"
    runs.train(m, dataset, str(tmp_path / "last"), devices)
    ends = []
    for folder in (whole, tmp_path / "last"):
        opened = checkpoint.Checkpoints(str(folder), "dfen")
        ends.append(opened.read_arrays(opened.steps()[-1]))
        opened.close()
    assert ends[0].keys() == ends[1].keys()
    assert all(np.array_equal(ends[0][k], ends[1][k]) for k in ends[0])
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == set(direid.STAGES)
    assert [line["step"] for line in lines if line["kind"] == "study"]
    assert (whole / "eval" / "gan" / "grids").is_dir() and (whole / "eval" / "final.json").exists()
    assert namespace(json.loads((whole / "eval" / "final.json").read_text())).net == "fuse"
    studies = [line for line in lines if line["kind"] == "study"]
    measured = evaluated(parts, "gan")  # in a process of its own, whose sums may be rounded otherwise
    assert measured == pytest.approx({name: studies[-1][name] for name in measured}, rel=1e-4)
    page = report.build(str(parts))  # its last stage is not trained
    assert "Transfer strength" in pathlib.Path(page).read_text()


def evaluated(workdir, stage):
    """study.json of `--mode=evaluate` on one stage of a smoke run."""
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "reid_jax.main", f"--config={root / 'configs' / 'direid.py'}:smoke"]
    command += [f"--workdir={workdir}", "--mode=evaluate", f"--config.train.only={stage}"]
    subprocess.run(command, check=True, cwd=root)
    assert list((workdir / "evaluate" / "grids").glob("cross_*.png"))
    return json.loads((workdir / "evaluate" / "study.json").read_text())
