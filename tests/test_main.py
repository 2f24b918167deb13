"""The command as a user runs it: train, kill, stop, resume, evaluate, and its error messages."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reid_jax import errors
from reid_jax.data import synthetic
from reid_jax.eval import store

ROOT = Path(__file__).parent.parent
SMALL = [
    "--config.data.height=32", "--config.data.width=16", "--config.data.ids=2", "--config.data.instances=4",
    "--config.model.backbone=narrow", "--config.model.narrow_widths=(4,8)", "--config.model.narrow_dim=16",
    "--config.model.narrow_stripes=2", "--config.efl.mi_hidden=16", "--config.efl.n_mi=2",
    "--config.train.epochs=20", "--config.train.eval_every=8", "--config.train.checkpoint_every=2",
    "--config.train.log_every=1", "--config.report.queries=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small data set in Market-1501's layout."""
    root = tmp_path_factory.mktemp("market")
    synthetic.generate(
        str(root), train_ids=4, test_ids=4, cameras=3, images=2, height=32, width=16, distractors=2, junk=2,
        progress=False,
    )  # fmt: skip
    return str(root)


def command(workdir, *flags, config="configs/efl.py:market"):
    return [sys.executable, "-m", "reid_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]


def environment():
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONWARNINGS": "ignore",
    }


def call(workdir, *flags, config="configs/efl.py:market"):
    """(exit code, output) of one run to its end."""
    done = subprocess.run(
        command(workdir, *flags, config=config),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def interrupt(workdir, flags, sig, step):
    """Starts a run, sends `sig` once step `step` is logged; returns the exit code."""
    with open(Path(workdir).with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            command(workdir, *flags), cwd=ROOT, env=environment(), stdout=log, stderr=log
        )
        deadline = time.monotonic() + 240
        while last_step(workdir) < step and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(sig)
        return process.wait(timeout=120)


def last_step(workdir):
    lines = trained(workdir)
    return lines[-1]["step"] if lines else 0


def trained(workdir):
    """metrics.jsonl without what may differ between equal runs."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(x) for x in path.read_text().splitlines() if x.endswith("}")]
    return [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


def arrays(workdir):
    """Every array of the newest checkpoint."""
    import orbax.checkpoint as ocp

    folder = Path(workdir).resolve() / "checkpoints" / "train"
    newest = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    return newest, ocp.StandardCheckpointer().restore(folder / str(newest) / "state")


@pytest.fixture(scope="module")
def unbroken(tree, tmp_path_factory):
    """A finished run without interruption."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    code, output = call(workdir, f"--config.data.root={tree}", *SMALL)
    assert code == 0, output
    return workdir


def assert_same_run(a, b):
    (step_a, state_a), (step_b, state_b) = arrays(a), arrays(b)
    assert step_a == step_b and state_a.keys() == state_b.keys()
    for name in state_a:
        assert np.array_equal(state_a[name], state_b[name]), name
    assert trained(a) == trained(b)
    np.testing.assert_array_equal(
        store.load(a / "eval" / "final.npz").feature, store.load(b / "eval" / "final.npz").feature
    )


def test_run_leaves_what_a_user_expects(unbroken):
    for name in (
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "eval/final.json",
        "eval/first.npz",
    ):
        assert (unbroken / name).stat().st_size > 50, name
    figures = json.loads((unbroken / "eval" / "final.json").read_text())
    assert set(figures["nets"]) == {"m1"} and 0 <= figures["nets"]["m1"]["mAP"] <= 100
    assert trained(unbroken)[-1]["step"] == 20 * steps_per_epoch(unbroken)


def steps_per_epoch(workdir):
    line = trained(workdir)[-1]
    return round(line["step"] / line["epoch"])


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_run_equals_the_unbroken_one(sig, unbroken, tree, tmp_path):
    """Killed or stopped at a random step, then run again with other workers: the same run bit for bit."""
    total = trained(unbroken)[-1]["step"]
    workdir, flags = tmp_path / "run", [f"--config.data.root={tree}", *SMALL]
    code = interrupt(workdir, flags, sig, random.randint(2, total - 3))
    assert code == (errors.STOPPED if sig == signal.SIGTERM else -signal.SIGKILL), (
        Path(workdir).with_suffix(".log").read_text()
    )
    assert not (workdir / "summary.json").exists()
    code, output = call(workdir, *flags, "--config.data.threads=1")
    assert code == 0, output
    assert sig == signal.SIGKILL or "going on from step" in output
    assert_same_run(unbroken, workdir)


def test_evaluate_mode_repeats_the_figures(unbroken, tree):
    """By default of the last checkpoint, whose figures chose nothing."""
    flags = [f"--config.data.root={tree}", *SMALL, "--config.eval.net=all"]
    code, output = call(unbroken, *flags, "--mode=evaluate")
    assert code == 0, output
    assert f"step {trained(unbroken)[-1]['step']} m1" in output
    again = json.loads((unbroken / "evaluate" / "final.json").read_text())["nets"]
    final = json.loads((unbroken / "eval" / "final.json").read_text())["nets"]
    assert set(again) == {"m1", "m2", "phi1", "phi2", "mean"}
    assert again["m1"] == final["m1"]
    assert "prop." in output


@pytest.mark.parametrize(
    "flags, config, message",
    [
        (["--config.data.ids=8"], "configs/efl.py:market", "data.ids: 2 there, 8 now"),
        (["--config.efl.lambda=1"], "configs/efl.py:market", "lambda"),
        ([], "configs/efl.py:markt", "no variant 'markt'"),
        ([], "configs/none.py", "none.py"),
        (["--config.model.backbone=vgg"], "configs/efl.py:market", "model.backbone"),
    ],
)
def test_errors_name_what_is_wrong(flags, config, message, unbroken, tree):
    small = [*SMALL, *flags] if "market" in config else flags
    workdir = unbroken if "there" in message else unbroken.parent / f"run{abs(hash(message))}"
    code, output = call(workdir, f"--config.data.root={tree}", *small, config=config)
    assert code == 2, output
    assert message in output and "Traceback" not in output


def test_config_alone_starts_in_a_default_workdir_and_asks_for_data(tmp_path):
    """`--config=configs/efl.py:market` is enough; without data it says what to put where."""
    bare = [sys.executable, "-m", "reid_jax.main", f"--config={ROOT}/configs/efl.py:market"]
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(bare, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "config.data.root" in done.stderr, done.stderr
    assert (tmp_path / "runs" / "efl_market" / "config.json").exists()


def test_missing_data_says_where_to_get_it(tmp_path):
    code, output = call(tmp_path / "run", f"--config.data.root={tmp_path}/nowhere")
    assert code == 2 and "bounding_box_train" in output and "Traceback" not in output


def test_not_finite_loss_keeps_the_last_good_checkpoint(tree, tmp_path):
    flags = [
        f"--config.data.root={tree}",
        *SMALL,
        "--config.optim.lr=1e30",
        "--config.train.checkpoint_every=1",
    ]
    code, output = call(tmp_path / "run", *flags)
    assert code == 2, output
    assert "is not finite" in output and "config.optim.lr" in output and "Traceback" not in output
