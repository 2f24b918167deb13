"""`python -m reid_jax.main` in processes forked from one that has imported everything: quick to start."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from reid_jax import errors
from reid_jax.eval import store

ROOT = Path(__file__).parent.parent
# A run whose program is the same whatever its length, so that it is compiled once for all tests that start
# it.
# Small steps, and none that follows only the sign of a gradient: what differs by rounding stays close.
FLAGS = [
    "--config=configs/baseline.py:smoke", "--config.optim.schedule=step", "--config.optim.lr=3e-4",
    "--config.optim.eps=1e-3", "--config.model.bn_group=global", "--config.eval.net=auto",
    "--config.train.log_every=1", "--config.report.enabled=False", "--config.data.threads=1",
]  # fmt: skip
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax still writes to
SETTINGS = ("platforms", "compilation_cache_dir", "persistent_cache_min_compile_time_secs")  # of jax.config
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["command", "reid_jax.main", "reid_jax.train.run", "reid_jax.report"])


def _run(argv, log, environment, settings, reads):
    """Of a forked process: the command as its own program; reads: file for the paths of pictures it reads."""
    os.chdir(ROOT)
    os.environ.update(environment)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import jax

    from reid_jax import main
    from reid_jax.data import images

    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)
    if reads:
        kept, contents = open(reads, "a", buffering=1), images.contents
        images.contents = lambda path: (print(path, file=kept), contents(path))[1]
    sys.argv = ["reid_jax.main", *argv]
    main.run()


def start(argv, log, devices=1, reads=None):
    """A multiprocessing.Process of the command on simulated devices; what it says is appended to `log`."""
    import jax

    folders = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    settings = {name: getattr(jax.config, f"jax_{name}") for name in SETTINGS}
    environment = {"XLA_FLAGS": flags, "PYTHONWARNINGS": "ignore"}
    process = CONTEXT.Process(
        target=_run, args=(list(map(str, argv)), str(log), environment, settings, reads and str(reads))
    )
    process.start()
    return process


def send(process, number):
    """A signal, if the process is still there: the number of one that has ended may be another's by now."""
    if process.exitcode is None:
        os.kill(process.pid, number)


def end(process, timeout=120):
    """The exit code; the process does not outlive the timeout."""
    process.join(timeout)
    if process.exitcode is None:
        send(process, signal.SIGKILL)
        process.join()
        raise AssertionError(f"still running after {timeout} s")
    return process.exitcode


def wait_until(happens, processes, seconds=120, pause=0.02):
    """Polls until it happens; also returns when one of the processes is at its end."""
    deadline = time.monotonic() + seconds
    while not happens() and all(p.exitcode is None for p in processes):
        assert time.monotonic() < deadline
        time.sleep(pause)


class Run:
    """A run in `workdir` of FLAGS and more, started as often as it takes."""

    def __init__(self, workdir, *flags, devices=1):
        self.workdir, self.flags, self.devices = Path(workdir), [*FLAGS, *flags], devices
        self.log = Path(f"{workdir}.log")

    def start(self, *flags):
        """A process that trains."""
        return start([f"--workdir={self.workdir}", *self.flags, *flags], self.log, self.devices)

    def to_its_end(self, *flags):
        """(exit code, what it said) of the next start."""
        before = len(self.said())
        code = end(self.start(*flags), 240)
        return code, self.said()[before:]

    def finish(self, *flags):
        """The next start has to get to the end; what it said."""
        code, said = self.to_its_end(*flags)
        assert code == 0, said
        return said

    def stop(self, step):
        """SIGTERM after `step`; the run has to save and to leave."""
        process = self.start()
        wait_until(lambda: self.step() >= step, [process])
        send(process, signal.SIGTERM)
        assert end(process) == errors.STOPPED, self.said()

    def said(self):
        """All that it has said so far."""
        return self.log.read_text() if self.log.exists() else ""

    def lines(self):
        """metrics.jsonl without the seconds."""
        path = self.workdir / "metrics.jsonl"
        whole = [x for x in path.read_text().splitlines() if x.endswith("}")] if path.exists() else []
        return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in whole]

    def step(self):
        """The last step that was logged."""
        return max((x["step"] for x in self.lines()), default=0)

    def checkpoints(self):
        """Folders of finished checkpoints, oldest first."""
        folder = self.workdir / "checkpoints" / "train"
        finished = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
        return sorted(finished, key=lambda p: int(p.name))

    def unfinished(self):
        """Names of folders of checkpoints that are being written, or were when the run was killed."""
        folder = self.workdir / "checkpoints" / "train"
        return {x for x in os.listdir(folder) if UNFINISHED in x} if folder.is_dir() else set()

    def arrays(self):
        """{name: array} of the newest checkpoint."""
        return ocp.StandardCheckpointer().restore(self.checkpoints()[-1].resolve() / "state")


def assert_same_run(run, unbroken):
    """Step, every array, all metrics and the features of the last evaluation, bit for bit."""
    assert run.checkpoints()[-1].name == unbroken.checkpoints()[-1].name == str(unbroken.step())
    have, want = run.arrays(), unbroken.arrays()
    assert have.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(have[name], want[name], err_msg=name)
    assert run.lines() == unbroken.lines()
    have, want = (store.load(r.workdir / "eval" / "final.npz") for r in (run, unbroken))
    np.testing.assert_array_equal(have.feature, want.feature)
