"""The command as a user runs it: train, stop, resume, evaluate, and its error messages."""

import json
import os
import random
import subprocess
import sys

import command
import pytest

from reid_jax.data import synthetic

STEPS = 24  # of three an epoch


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small data set in Market-1501's layout."""
    root = tmp_path_factory.mktemp("market")
    synthetic.generate(
        str(root), train_ids=6, test_ids=4, cameras=3, images=2, height=32, width=16, distractors=2, junk=2,
        progress=False,
    )  # fmt: skip
    return str(root)


class Run(command.Run):
    """A run on the data set `tree`."""

    def __init__(self, workdir, tree, *flags):
        every = ["--config.train.eval_every=4", "--config.train.checkpoint_every=2"]
        every.append(f"--config.train.steps={STEPS}")
        data = ["--config.data.name=market1501", f"--config.data.root={tree}"]
        super().__init__(workdir, *every, *data, *flags)


@pytest.fixture(scope="module")
def unbroken(tree, tmp_path_factory):
    """A finished run without interruption, with a report."""
    run = Run(tmp_path_factory.mktemp("runs") / "unbroken", tree)
    run.finish("--config.report.enabled=True", "--config.report.queries=2")
    return run


def test_run_leaves_what_a_user_expects(unbroken):
    names = ("config.json", "metrics.jsonl", "summary.json", "titles.json", "report.html")
    for name in (*names, "eval/final.json", "eval/final.npz", "eval/first.npz"):
        assert (unbroken.workdir / name).stat().st_size > 50, name
    figures = json.loads((unbroken.workdir / "eval" / "final.json").read_text())
    assert set(figures["nets"]) == {"net"} and 0 <= figures["nets"]["net"]["mAP"] <= 100
    assert [x["step"] for x in unbroken.lines() if x["kind"] == "eval"] == [12, STEPS]
    assert json.loads((unbroken.workdir / "summary.json").read_text())["steps"] == STEPS


def test_a_stopped_run_equals_the_unbroken_one(unbroken, tree, tmp_path):
    """Stopped at a random step, then run again with other readers of the data: the same run bit for bit."""
    run = Run(tmp_path / "run", tree)
    run.stop(random.randint(2, STEPS - 6))
    stopped = run.step()
    assert not (run.workdir / "summary.json").exists() and stopped < STEPS
    assert f"stopped on request at step {stopped} of stage 'train'" in run.said()
    readers = ("--config.data.threads=3", "--config.data.device_prefetch=0", "--config.data.cache_mib=1")
    assert f"going on from step {stopped} of" in run.finish(*readers)
    command.assert_same_run(run, unbroken)


def test_evaluate_mode_repeats_the_figures(unbroken):
    """By default of the last checkpoint, whose figures chose nothing."""
    said = unbroken.finish("--mode=evaluate", "--config.eval.net=all")
    assert f"step {STEPS} net" in said and "prop." in said
    again = json.loads((unbroken.workdir / "evaluate" / "final.json").read_text())
    final = json.loads((unbroken.workdir / "eval" / "final.json").read_text())
    assert again["nets"] == final["nets"] and again["checkpoint"] == "last"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.efl.lambda=1"], "lambda"),
        (["--config=configs/efl.py:markt"], "no variant 'markt'"),
        (["--config=configs/none.py"], "none.py"),
        (["--config.model.backbone=vgg"], "model.backbone"),
        (["--config.data.root=/nowhere"], "bounding_box_train"),
        (["--config.train.accumulate=3"], "config.train.accumulate is 3"),
    ],
)
def test_errors_name_what_is_wrong(flags, message, tree, tmp_path):
    code, said = Run(tmp_path / "run", tree).to_its_end(*flags)
    assert code == 2, said
    assert message in said and "Traceback" not in said


def test_a_workdir_of_another_config(unbroken):
    code, said = unbroken.to_its_end("--config.data.ids=8")
    assert code == 2 and "data.ids: 2 there, 8 now" in said and "Traceback" not in said


def test_config_alone_starts_in_a_default_workdir_and_asks_for_data(tmp_path):
    """`python -m reid_jax.main --config=configs/efl.py:market` is enough; it says what data to put where."""
    bare = [sys.executable, "-m", "reid_jax.main", f"--config={command.ROOT}/configs/efl.py:market"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(command.ROOT)}
    done = subprocess.run(bare, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "config.data.root" in done.stderr, done.stderr
    assert (tmp_path / "runs" / "efl_market" / "config.json").exists()
