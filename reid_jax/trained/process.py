"""A training run in a process of its own, which leaves a finished folder or goes on where it stopped."""

import os
import subprocess
import sys
from pathlib import Path

from reid_jax.errors import STOPPED, ReidError

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Stopped(Exception):
    """A run was stopped on request (SIGTERM, SIGINT); the message says how to go on."""


def train(path, folder, seed, flags, jobs, stopping):
    """One training run in its own process.

    stopping: threading.Event after which no more are started. Raises Stopped and sets it when this run was
    stopped and has saved; ReidError with the end of its log when it fails.
    """
    if stopping.is_set() or (Path(folder) / "summary.json").exists():
        return
    os.makedirs(folder, exist_ok=True)
    environment = dict(os.environ)
    if jobs > 1:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    command = [sys.executable, "-m", "reid_jax.main", f"--config={path}", f"--workdir={folder}"]
    command += [f"--config.seed={seed}", *flags]
    log = Path(folder) / "log.txt"
    with open(log, "w") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment).returncode
    if code == STOPPED:
        stopping.set()
        raise Stopped(f"{folder} was stopped on request and is saved; the same command goes on")
    if code or not (Path(folder) / "summary.json").exists():
        raise ReidError(f"{' '.join(command)} failed ({code}); see {log}:\n{log.read_text()[-1500:]}")
