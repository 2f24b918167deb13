"""What may befall a run: kills at any moment, damaged checkpoints, a full disk, other devices, a NaN.

The runs are the command itself. Whatever happened, the same command goes on and ends as a run to which
nothing happened: bit for bit, but for the number of devices, which changes the order of sums.
"""

import contextlib
import errno
import itertools
import random
import resource
import shutil
import signal
import subprocess
import time

import command
import numpy as np
import pytest
import runs
from command import assert_same_run, wait_until

from reid_jax import cli, errors
from reid_jax.train import checkpoint, writer
from reid_jax.train import run as run_

STEPS, EVALUATE, CHECKPOINT = 45, 15, 6  # of three steps an epoch


class Run(command.Run):
    """Of some steps; evaluations and checkpoints as above."""

    def __init__(self, workdir, steps=STEPS, devices=1):
        every = [
            f"--config.train.eval_every={EVALUATE // 3}",
            f"--config.train.checkpoint_every={CHECKPOINT // 3}",
        ]
        super().__init__(workdir, f"--config.train.steps={steps}", *every, devices=devices)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """unbroken(steps): a run to which nothing happens, made once."""
    made = {}

    def run(steps=STEPS):
        if steps not in made:
            made[steps] = Run(tmp_path_factory.mktemp("unbroken") / "run", steps)
            made[steps].finish()
        return made[steps]

    return run


def kill_at(run, moment, step, rng):
    """Starts a run and kills it at or after `step`; returns what it was doing: a set of write, evaluation."""
    earlier, process = run.unfinished(), run.start()
    if moment == "evaluation":
        step = -(-step // EVALUATE) * EVALUATE
    wait_until(lambda: run.step() >= step, [process])
    if moment == "write":
        wait_until(lambda: run.unfinished() - earlier, [process], pause=0.0005)  # a moment is meant
        time.sleep(rng.uniform(0, 0.02))
    if moment == "any":
        time.sleep(rng.uniform(0, 0.05))
    command.send(process, signal.SIGKILL)
    assert command.end(process) == -signal.SIGKILL, run.said()
    last = run.lines()[-1]
    evaluating = last["kind"] == "train" and last["step"] % EVALUATE == 0
    doing = {"write": run.unfinished() - earlier, "evaluation": evaluating}
    return {name for name, true in doing.items() if true}


@pytest.mark.parametrize("kills, steps", [(1, STEPS), pytest.param(20, 400, marks=pytest.mark.slow)])
def test_killed_again_and_again(kills, steps, unbroken, tmp_path):
    """At random steps, while training, evaluating and writing checkpoints."""
    rng, run, fell = random.Random(kills), Run(tmp_path / "run", steps), []
    wanted = sorted(rng.sample(range(1, steps - EVALUATE), kills))
    for step, moment in zip(wanted, itertools.cycle(("write", "evaluation", "any"))):
        fell.append(kill_at(run, moment, step, rng))
        while moment == "write" and "write" not in fell[-1]:  # it was over before the kill: again
            fell.append(kill_at(run, moment, step, rng))
        if run.checkpoints():
            assert all(np.isfinite(x).all() for x in run.arrays().values())
    print(f"what the kills fell into: {fell}")
    assert any("write" in doing for doing in fell)
    run.finish()
    assert_same_run(run, unbroken(steps))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["garbage", pytest.param("cut", marks=pytest.mark.slow)])
def test_newest_checkpoint_is_damaged(damage, unbroken, tmp_path):
    """Of a finished or a stopped run: the next start goes on from the one before and saves it again."""
    run = Run(tmp_path / "run")
    if damage == "garbage":
        shutil.copytree(unbroken().workdir, run.workdir)
    else:
        run.stop(20)
    before, newest = run.checkpoints()[-2:]
    path = largest(newest / "state" / "ocdbt.process_0") if damage == "garbage" else largest(newest / "state")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:] = b"garbage".ljust(len(content) - middle, b"!") if damage == "garbage" else b""
    path.write_bytes(content)
    said = run.finish()
    assert f"checkpoint {newest.name} in {run.workdir}" in said and "cannot be read" in said
    assert f"going on from step {before.name} " in said  # Orbax's other tasks may complain beside it
    assert_same_run(run, unbroken())


def assert_full(run, code, said, *names):
    """It ended with one error that names a path and the way out, and what was saved can be read."""
    assert code == errors.USER_ERROR, said
    (error,) = [x for x in said.splitlines() if x.startswith("error: ")]
    assert any(name in error for name in names)
    assert "run the same command again" in error or "free space" in error
    assert "Traceback" not in said and "Exception" not in said, said
    assert run.arrays()


@pytest.fixture
def small_disk(tmp_path):
    """(folder, resize): a file system of 2 MiB in memory, and a function that gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        try:
            return subprocess.run(["mount", *options, folder], capture_output=True).returncode == 0
        except OSError:
            return False

    if not mount("-t", "tmpfs", "-o", "size=2m", "none"):
        pytest.skip("no right to mount a small file system")
    yield folder, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", "-l", folder], check=True)


def fill(path):
    """Takes all that is free."""
    with open(path, "wb", buffering=0) as f:
        try:
            while f.write(bytes(4096)):
                pass
        except OSError as e:
            assert e.errno == errno.ENOSPC


def test_full_disk(small_disk, unbroken):
    """Something else takes all room in the middle of the run."""
    folder, resize = small_disk
    run = Run(folder / "run")
    run.log = folder.parent / "log"
    process = run.start()
    wait_until(lambda: run.step() >= 20, [process])
    fill(folder / "filler")
    code = command.end(process)
    assert_full(run, code, run.said(), str(run.workdir))
    assert resize("64m")
    run.finish()
    assert_same_run(run, unbroken())


@pytest.mark.slow
def test_file_that_cannot_grow(tmp_path):
    """Writes themselves fail: no file may be larger than 20 kB (ulimit -f) from the middle of the run on."""
    run = Run(tmp_path / "run")
    process = run.start()
    wait_until(run.checkpoints, [process])
    assert process.exitcode is None, run.said()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    code = command.end(process)
    assert_full(run, code, run.said(), str(run.workdir))


def test_metrics_on_a_full_disk(tmp_path, capsys):
    """/dev/full: the message names the file; closing it then says nothing more."""
    w = writer.Writer(str(tmp_path))
    w.file = open("/dev/full", "a")
    with pytest.raises(OSError) as failure:
        w.write("train", 1, 1.0, 1.0, {"loss": 1.0})
    w.close()
    assert cli.report_error(failure.value) == errors.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left" in line and "metrics.jsonl" in line and "same command again" in line


@pytest.mark.slow
def test_other_number_of_devices(unbroken, tmp_path):
    """Two devices up to the middle, then one: as with one all the way, but for the order of sums.

    A short run: sooner or later rounding decides which of two pictures is the hardest.
    """
    run = Run(tmp_path / "run", 15, devices=2)
    run.stop(7)
    stopped, before = run.step(), run.arrays()
    run.devices = 1
    assert f"going on from step {stopped} " in run.finish() and 7 <= stopped < 15
    have, want = run.arrays(), unbroken(15).arrays()
    assert max(np.abs(have[k] - before[k]).max() for k in have if "/params/" in k) > 3e-4
    moments = [[(x["kind"], x["step"]) for x in r.lines()] for r in (run, unbroken(15))]
    assert have.keys() == want.keys() and moments[0] == moments[1]
    for name in want:
        np.testing.assert_allclose(have[name], want[name], rtol=0, atol=5e-5, err_msg=name)


class Poisoned(run_.Run):
    """A run whose loss is NaN at step 8."""

    def note(self, at, metrics, bar):
        super().note(at, metrics | ({"loss": 0 * metrics["loss"] / 0} if at.step == 8 else {}), bar)


def test_a_loss_that_is_not_finite(tmp_path, capsys):
    """The last good checkpoint stays, nothing later is saved or logged, and the error says what to do."""
    config = runs.tiny("baseline", train__eval_every=0, train__checkpoint_every=1)
    dataset = runs.load(config, tmp_path / "data")
    with pytest.raises(errors.TrainingError) as failure:
        runs.train(config, dataset, tmp_path / "run", kind=Poisoned)
    assert runs.newest(tmp_path / "run")[1]["step"] == 6
    assert [x["step"] for x in runs.lines(tmp_path / "run")] == list(range(1, 8))
    assert cli.report_error(failure.value) == errors.USER_ERROR
    said = capsys.readouterr().err.splitlines()[-1]
    assert "loss=nan at step 8 is not finite" in said and "(step 6) is kept" in said
    assert "config.optim.lr" in said and "the losses (config.loss)" in said  # there is no config.baseline


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(config, data set, workdir) of a run with an evaluation after each epoch of 3 steps."""
    config = runs.tiny("baseline", train__eval_every=1, train__checkpoint_every=9, train__steps=9)
    folder = tmp_path_factory.mktemp("evaluated")
    dataset = runs.load(config, folder / "data")
    runs.train(config, dataset, folder / "run")
    return config, dataset, folder / "run"


class FailsInEvaluation(run_.Run):
    """Before anything of it is kept, after the figures are written."""

    def keep_evaluation(self, at, results, arrays):
        if at.step == self.step:
            raise MemoryError("evaluation")
        super().keep_evaluation(at, results, arrays)


class FailsInStudy(run_.Run):
    """A study that cannot be."""

    def evaluate(self, at, state):
        self.study = (lambda state: 1 / 0) if at.step == self.step else None
        super().evaluate(at, state)


@pytest.mark.slow
@pytest.mark.parametrize("kind, step", [(FailsInStudy, 6), (FailsInEvaluation, 9)])
def test_what_fails_in_an_evaluation_costs_no_training(evaluated, tmp_path, kind, step):
    """What was trained is saved before; the same command evaluates it, and ends as an unbroken run."""
    config, dataset, unbroken = evaluated
    failing = type("Failing", (kind,), {"step": step})
    with pytest.raises((MemoryError, ZeroDivisionError)):
        runs.train(config, dataset, tmp_path / "run", kind=failing)
    assert runs.newest(tmp_path / "run")[1]["step"] == step
    runs.train(config, dataset, tmp_path / "run")
    runs.assert_same_run(tmp_path / "run", unbroken)
    assert best(tmp_path / "run") == best(unbroken)


def best(workdir):
    """({step: mAP}, step of the best) of the checkpoints that are kept."""
    with contextlib.closing(checkpoint.Checkpoints(str(workdir), "train")) as kept:
        return {s: kept.manager.metrics(s)["mAP"] for s in kept.steps()}, kept.best()


class StopsBeforeAnEvaluation(run_.Run):
    """A SIGTERM in the step after which one is due."""

    def note(self, at, metrics, bar):
        if at.step == 6:
            self.stop.note(signal.SIGTERM, None)
        super().note(at, metrics, bar)


class StopsInAnEvaluation(run_.Run):
    """A SIGTERM in the middle of one."""

    def evaluate(self, at, state):
        if at.step == 6:
            self.stop.note(signal.SIGTERM, None)
        super().evaluate(at, state)


@pytest.mark.slow
@pytest.mark.parametrize("kind, done", [(StopsBeforeAnEvaluation, 1), (StopsInAnEvaluation, 2)])
def test_stopped_at_an_evaluation(evaluated, tmp_path, kind, done):
    """It is not begun any more, or finished; the same command catches up on it."""
    config, dataset, unbroken = evaluated
    runs.train(config, dataset, tmp_path / "run", kind=kind)
    assert runs.newest(tmp_path / "run")[1]["step"] == 6
    assert len(runs.lines(tmp_path / "run", "eval")) == done
    runs.train(config, dataset, tmp_path / "run")
    runs.assert_same_run(tmp_path / "run", unbroken)
