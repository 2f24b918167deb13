"""What may befall a run: kills at any moment, damaged checkpoints, a full disk, other devices.

Every run here is the command itself. Whatever happened, the same command goes on and ends as a run to which
nothing happened: bit for bit, but for the number of devices, which changes the order of sums.
"""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from reid_jax import cli, errors
from reid_jax.eval import store
from reid_jax.train import writer

ROOT = Path(__file__).parents[2]
STEPS, EVALUATE, CHECKPOINT = 120, 30, 15  # of three steps an epoch
FLAGS = [
    "--config=configs/baseline.py:smoke", f"--config.train.eval_every={EVALUATE // 3}",
    f"--config.train.checkpoint_every={CHECKPOINT // 3}", "--config.train.log_every=1",
    "--config.report.enabled=False", "--config.data.threads=1",
]  # fmt: skip
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax still writes to


class Run:
    """A run in `workdir`, started as often as it takes."""

    def __init__(self, workdir, steps, *flags, devices=1):
        self.workdir, self.steps = workdir, steps
        self.flags, self.devices = [f"--config.train.steps={steps}", *flags], devices
        self.log = Path(f"{workdir}.log")

    def start(self, **options):
        """A process that trains; options: of subprocess.Popen."""
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}",
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, "-m", "reid_jax.main", f"--workdir={self.workdir}", *FLAGS, *self.flags]
        with open(self.log, "a") as log:
            options = {"stdout": log, "stderr": log} | options
            return subprocess.Popen(command, cwd=ROOT, env=environment, **options)

    def to_its_end(self, **options):
        """(exit code, what it said) of the next start."""
        process = self.start(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
        said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def finish(self):
        """The next start has to get to the end."""
        code, said = self.to_its_end()
        assert code == 0, said
        return said

    def stop(self, step):
        """SIGTERM after `step`; the run has to save and to leave."""
        process = self.start()
        wait_until(lambda: self.step() >= step, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == errors.STOPPED, self.said()

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def lines(self):
        """metrics.jsonl without the seconds."""
        path = self.workdir / "metrics.jsonl"
        found = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(x) for x in found if x.endswith("}")]
        return [{k: v for k, v in x.items() if k != "seconds"} for x in found]

    def step(self):
        """The last step that was logged."""
        return max((x["step"] for x in self.lines()), default=0)

    def checkpoints(self):
        """Folders of finished checkpoints, oldest first."""
        folder = self.workdir / "checkpoints" / "train"
        found = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
        return sorted(found, key=lambda p: int(p.name))

    def unfinished(self):
        """Names of folders of checkpoints that are being written, or were when the run was killed."""
        folder = self.workdir / "checkpoints" / "train"
        return {x for x in os.listdir(folder) if UNFINISHED in x} if folder.is_dir() else set()

    def arrays(self):
        """{name: array} of the newest checkpoint."""
        return ocp.StandardCheckpointer().restore(self.checkpoints()[-1].resolve() / "state")


def wait_until(happens, process, seconds=120):
    """Polls without a pause, as a moment is meant; also returns when the process is at its end."""
    deadline = time.monotonic() + seconds
    while not happens() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def assert_same_run(run, unbroken):
    """Step, every array, all metrics and the features of the last evaluation, bit for bit."""
    assert run.checkpoints()[-1].name == unbroken.checkpoints()[-1].name == str(unbroken.steps)
    have, want = run.arrays(), unbroken.arrays()
    assert have.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(have[name], want[name], err_msg=name)
    assert run.lines() == unbroken.lines()
    have, want = (store.load(r.workdir / "eval" / "final.npz") for r in (run, unbroken))
    np.testing.assert_array_equal(have.feature, want.feature)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """unbroken(steps): a run to which nothing happens, made once."""
    made = {}

    def run(steps):
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
    wait_until(lambda: run.step() >= step, process)
    if moment == "write":
        wait_until(lambda: run.unfinished() - earlier, process)
        time.sleep(rng.uniform(0, 0.02))
    if moment == "any":
        time.sleep(rng.uniform(0, 0.05))
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL, run.said()
    last = run.lines()[-1]
    evaluating = last["kind"] == "train" and last["step"] % EVALUATE == 0
    doing = {"write": run.unfinished() - earlier, "evaluation": evaluating}
    return {name for name, true in doing.items() if true}


@pytest.mark.parametrize("kills, steps", [(3, STEPS), pytest.param(20, 400, marks=pytest.mark.slow)])
def test_killed_again_and_again(kills, steps, unbroken, tmp_path):
    """At random steps, while training, evaluating and writing checkpoints."""
    rng, run, fell = random.Random(kills), Run(tmp_path / "run", steps), []
    wanted = sorted(rng.sample(range(1, steps - 2 * EVALUATE), kills))
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
    run = Run(tmp_path / "run", STEPS)
    if damage == "garbage":
        shutil.copytree(unbroken(STEPS).workdir, run.workdir)
    else:
        run.stop(40)
    before, newest = run.checkpoints()[-2:]
    path = largest(newest / "state" / "ocdbt.process_0") if damage == "garbage" else largest(newest / "state")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:] = b"garbage".ljust(len(content) - middle, b"!") if damage == "garbage" else b""
    path.write_bytes(content)
    said = run.finish()
    assert f"checkpoint {newest.name} in {run.workdir}" in said and "cannot be read" in said
    assert f"going on from step {before.name} " in said  # Orbax's other tasks may complain beside it
    assert_same_run(run, unbroken(STEPS))


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
    run = Run(folder / "run", STEPS)
    run.log = folder.parent / "log"
    process = run.start()
    wait_until(lambda: run.step() >= 40, process)
    fill(folder / "filler")
    code = process.wait(timeout=120)
    assert_full(run, code, run.said(), str(run.workdir))
    assert resize("64m")
    run.finish()
    assert_same_run(run, unbroken(STEPS))


def test_file_that_cannot_grow(tmp_path):
    """Writes themselves fail: no file may be larger than 20 kB (ulimit -f) from the middle of the run on."""
    run = Run(tmp_path / "run", STEPS)
    process = run.start(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(run.checkpoints, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    said, _ = process.communicate(timeout=120)
    assert_full(run, process.returncode, said, str(run.workdir))


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


# Small steps, and none that follows only the sign of a gradient: what differs by rounding stays close.
# (After 48 a hardest pair changes, and with it the run.)
MOVED = 45
CALM = ["--config.model.bn_group=global", "--config.optim.lr=3e-4", "--config.optim.eps=1e-3"]


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run with two devices up to the middle, then with one."""
    run = Run(tmp_path_factory.mktemp("moved") / "run", MOVED, *CALM, devices=2)
    run.stop(10)
    stopped, before = run.step(), run.arrays()
    run.devices = 1
    assert f"going on from step {stopped} " in run.finish() and 10 <= stopped < MOVED
    after = run.arrays()
    assert max(np.abs(after[k] - before[k]).max() for k in after if "/params/" in k) > 3e-4
    return run


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_other_number_of_devices(devices, moved, tmp_path):
    """As with one or with two all the way, but for the order of sums."""
    other = Run(tmp_path / "run", MOVED, *CALM, devices=devices)
    other.finish()
    have, want = moved.arrays(), other.arrays()
    moments = [[(x["kind"], x["step"]) for x in run.lines()] for run in (moved, other)]
    assert have.keys() == want.keys() and moments[0] == moments[1]
    for name in want:
        np.testing.assert_allclose(have[name], want[name], rtol=0, atol=5e-5, err_msg=name)
