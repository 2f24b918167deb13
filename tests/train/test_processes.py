"""Two processes with one CPU device each: one run, the same as that of one process with two devices."""

import json
import signal
import socket
import time
from pathlib import Path

import command
import numpy as np
import pytest
from command import wait_until

from reid_jax import errors
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import CheckpointError, ConfigError, DataError
from reid_jax.eval import store
from reid_jax.train import checkpoint, processes

STEPS, EVERY = 60, 30  # of three steps an epoch
FLAGS = [
    f"--config.train.steps={STEPS}", f"--config.train.eval_every={EVERY // 3}",
    "--config.train.checkpoint_every=5", "--lost_timeout=10",
]  # fmt: skip


def start(workdir, count, *flags, devices=2):
    """Starts a run of `count` processes with `devices` in all; what process i says is in WORKDIR.i.log."""
    join = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"] if count > 1 else []
    started = []
    for i in range(count):
        own = [*join, f"--process_id={i}"] if join else []
        argv = [*command.FLAGS, f"--workdir={workdir}", *FLAGS, *own, *flags]
        started.append(command.start(argv, f"{workdir}.{i}.log", devices // count, f"{workdir}.{i}.reads"))
    return started


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ends(started, timeout=200):
    """Exit codes; none may outlive the timeout (JAX swallows SIGTERM, hence kill)."""
    try:
        deadline = time.monotonic() + timeout
        return [command.end(p, max(deadline - time.monotonic(), 0.1)) for p in started]
    finally:
        for p in started:
            command.send(p, signal.SIGKILL)


def said(workdir):
    return "".join(f.read_text() for f in sorted(workdir.parent.glob(f"{workdir.name}.*.log")))


def wait_for_step(workdir, step, started):
    wait_until(lambda: any(x["step"] >= step for x in lines(workdir)), started, 150)
    assert all(p.exitcode is None for p in started), said(workdir)


def lines(workdir):
    """metrics.jsonl without the seconds."""
    path = workdir / "metrics.jsonl"
    found = [json.loads(x) for x in path.read_text().splitlines() if x[-1] == "}"] if path.exists() else []
    return [{k: v for k, v in x.items() if k != "seconds"} for x in found]


def reads(workdir, process, folder):
    """Names of the pictures of a folder that a process has read, in order."""
    paths = Path(f"{workdir}.{process}.reads").read_text().splitlines()
    return [Path(p).name for p in paths if Path(p).parent.name in folder]


def assert_same_run(a, b, exact=True):
    """Metrics, checkpoints and features; not exact: to float32 rounding, without figures that count."""
    close = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-3, "atol": 2e-3}
    first, second = lines(a), lines(b)
    assert [{k: type(v) for k, v in x.items()} for x in first] == [
        {k: type(v) for k, v in x.items()} for x in second
    ]
    for x, y in zip(first, second, strict=True):
        for name, value in x.items():
            if not exact and (x["kind"] == "eval" or "accuracy" in name):
                continue
            same = value == y[name] if isinstance(value, str) else np.allclose(value, y[name], **close)
            assert same, (name, x, y)
    for stage in sorted(p.name for p in (a / "checkpoints").iterdir()):
        states = []
        for run in (a, b):
            kept = checkpoint.Checkpoints(str(run), stage)
            states.append((kept.steps()[-1], kept.read_arrays(kept.steps()[-1])))
            kept.close()
        assert states[0][0] == states[1][0] and states[0][1].keys() == states[1][1].keys()
        for name, array in states[0][1].items():
            np.testing.assert_allclose(array, states[1][1][name], **close, err_msg=name)
    final = [store.load(run / "eval" / "final.npz") for run in (a, b)]
    np.testing.assert_array_equal(final[0].path, final[1].path)
    np.testing.assert_allclose(final[0].feature, final[1].feature, rtol=1e-5, atol=1e-5 if exact else 2e-3)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """An unbroken run of one process with two devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert ends(start(workdir, 1)) == [0], said(workdir)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes, one of which got a SIGTERM, and that was then started again."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    started = start(workdir, 2)
    wait_for_step(workdir, 8, started)
    command.send(started[1], signal.SIGTERM)
    assert ends(started) == [errors.STOPPED] * 2, said(workdir)
    stopped = lines(workdir)[-1]["step"]
    assert not (workdir / "summary.json").exists() and stopped < STEPS
    assert f"at step {stopped}" in said(workdir)
    assert ends(start(workdir, 2)) == [0, 0], said(workdir)
    return workdir


@pytest.mark.slow
def test_two_processes_equal_one_with_two_devices(one, two):
    assert lines(two)[-1]["step"] == STEPS
    assert_same_run(one, two)


@pytest.mark.slow
def test_only_the_first_process_writes(one, two):
    """One line for each measurement, the same files, and the other process says nothing."""
    names = [
        {p.relative_to(run) for p in run.glob("*")} | {p.name for p in run.glob("eval/*")}
        for run in (one, two)
    ]
    assert names[0] == names[1] >= {Path("summary.json"), "final.json", "first.npz"}
    assert json.loads((two / "summary.json").read_text())["processes"] == 2
    other = Path(f"{two}.1.log").read_text()
    assert "rank1" not in other and "step/s" not in other and "report" not in other


@pytest.mark.slow
def test_each_process_reads_its_own_pictures(one, two):
    train, test = ("bounding_box_train",), ("query", "bounding_box_test")
    whole = np.array(reads(one, 0, train)[: STEPS * 8]).reshape(STEPS, 8)
    for i in (0, 1):
        own = reads(two, i, train)
        steps = 8  # before the stop
        assert own[: 4 * steps] == whole[:steps, 4 * i : 4 * i + 4].ravel().tolist()
    parts = [set(reads(two, i, test)) for i in (0, 1)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == set(reads(one, 0, test))
    assert abs(len(parts[0]) - len(parts[1])) <= 1


LONG = ("--config.train.steps=100000", "--config.train.eval_every=0")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_other(how, tmp_path):
    """Killed, or hanging: so that both are started again."""
    workdir = tmp_path / "run"
    started = start(workdir, 2, *LONG)
    wait_for_step(workdir, 4, started)
    command.send(started[1], how)
    try:
        code = command.end(started[0], 90)
    finally:
        command.send(started[1], signal.SIGKILL)
    assert code not in (0, errors.USER_ERROR, errors.STOPPED), said(workdir)


@pytest.mark.slow
def test_a_process_that_never_comes(tmp_path):
    workdir = tmp_path / "run"
    started = start(workdir, 2, "--join_timeout=3")
    command.send(started[1], signal.SIGKILL)
    assert ends(started, timeout=60)[0] == 1, said(workdir)
    assert "did not find each other within 3 s" in said(workdir)


@pytest.mark.slow
def test_user_errors_end_all_processes(tmp_path):
    """Known to process 0 alone, to all, or to the other alone."""
    workdir = tmp_path / "run"
    assert ends(start(workdir, 2, "--config.data.ids=3", "--config.data.instances=1")) == [2, 2]
    assert "cannot be split over" in said(workdir)
    assert ends(start(workdir, 2, "--config.data.name=market1501", "--config.data.root=/nowhere")) == [2, 2]
    assert said(workdir).count("bounding_box_train") >= 2


@pytest.mark.slow
@pytest.mark.slow
def test_evaluation_by_two_processes(two):
    """Mode evaluate gives the figures of the end of training again."""
    final = json.loads((two / "eval" / "final.json").read_text())["nets"]
    assert ends(start(two, 2, "--mode=evaluate", "--checkpoint=latest")) == [0, 0], said(two)
    assert json.loads((two / "evaluate" / "final.json").read_text())["nets"] == final


@pytest.mark.slow
def test_two_devices_each(tmp_path):
    """Four devices in two processes and in one: the same first losses, but for the order of sums.

    Later ones part: Adam's first steps follow the sign of gradients that are only rounding.
    """
    runs = tmp_path / "one", tmp_path / "two"
    for count, workdir in zip((1, 2), runs, strict=True):
        started = start(workdir, count, "--config.train.steps=3", devices=4)
        assert ends(started) == [0] * count, said(workdir)
    first, second = (next(x for x in lines(run) if x["kind"] == "train") for run in runs)
    for name in ("loss", "ce", "triplet"):
        assert first[name] == pytest.approx(second[name], rel=1e-4)


@pytest.mark.slow
def test_rounds_of_pseudo_labels(tmp_path):
    """The same labels on all processes, so the same run as with one."""
    runs = tmp_path / "one", tmp_path / "two"
    for count, workdir in zip((1, 2), runs, strict=True):
        flags = ("--config=configs/adl.py:smoke", "--config.train.eval_every=2", "--config.train.steps=0")
        started = start(workdir, count, *flags)
        assert ends(started, 500) == [0] * count, said(workdir)
    assert [x for x in lines(runs[0]) if x["kind"] == "labels"]
    assert_same_run(*runs, exact=False)


@pytest.mark.parametrize(
    "given, message",
    [
        (("host", 2, 0), "coordinator"),
        (("host:port", 2, 0), "HOST:PORT"),
        (("host:80", 0, 0), "num_processes"),
        (("host:80", 2, 2), "process_id"),
        (("host:80", 2, -1), "process_id"),
        (("host:80", 2, 0, 0), "join_timeout"),
        (("host:80", 2, 0, 5, 0), "lost_timeout"),
    ],
)
def test_settings_that_cannot_be_meant(given, message):
    with pytest.raises(ConfigError, match=message):
        processes.join(*given)


def test_nothing_tells_the_processes(monkeypatch):
    """No cluster, no flags. (The tests' backend is already in use, so JAX is asked in vain only then.)"""
    monkeypatch.setattr(
        "jax.distributed.initialize", lambda *a, **k: (_ for _ in ()).throw(ValueError("none"))
    )
    with pytest.raises(ConfigError, match="--coordinator=HOST:PORT"):
        processes.join()


@pytest.mark.parametrize(
    "variables, several",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_launchers(variables, several, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.started_by_a_launcher() is several


def test_parts_cover_all_rows_once(monkeypatch):
    for count in (1, 2, 3, 8):
        monkeypatch.setattr(processes.jax, "process_count", lambda n=count: n)
        for rows in (8, 9, 64, 101):
            parts = processes.parts(rows)
            assert np.concatenate([np.arange(rows)[p] for p in parts]).tolist() == list(range(rows))
            assert len(parts) == count and {p.stop - p.start for p in parts} <= {
                rows // count,
                -(-rows // count),
            }


def test_fingerprint_of_the_data(tmp_path, monkeypatch):
    def dataset(root, pid=1):
        records = (Record(f"{root}/a.jpg", pid, 0),)
        return Dataset("x", str(root), records, records, records, ("c1",))

    assert dataset("/a").fingerprint() == dataset("/b/c").fingerprint()
    assert dataset("/a").fingerprint() != dataset("/a", 2).fingerprint()
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "from_first", lambda function: dataset("/a").fingerprint())
    processes.check_same_data(dataset("/elsewhere"))
    with pytest.raises(DataError, match="finds another x"):
        processes.check_same_data(dataset("/a", 2))
    with pytest.raises(DataError, match="file system"):
        processes.check_shared(tmp_path / "none")


def test_another_config_than_that_of_process_0(monkeypatch):
    first = {"seed": 1, "data": {"root": "/a", "ids": 4}}
    monkeypatch.setattr(processes, "from_first", lambda function: first)
    processes.check_same_config({"seed": 1, "data": {"root": "/b", "ids": 4}})
    with pytest.raises(ConfigError, match="data.ids: 4 there, 8 here"):
        processes.check_same_config({"seed": 1, "data": {"root": "/a", "ids": 8}})


class Store:
    """A coordination service's values."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        self.values[key.rpartition("/")[0]] = value

    def blocking_key_value_get(self, key, timeout):
        return self.values[key.rpartition("/")[0]]


def test_what_process_0_finds_or_fails_at_is_handed_on(monkeypatch):
    client = Store()
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes.multihost, "get_jax_distributed_client", lambda: client)

    def as_process(index, function):
        monkeypatch.setattr(processes.jax, "process_index", lambda: index)
        return processes.from_first(function)

    assert as_process(0, lambda: [1, "two"]) == as_process(1, None) == [1, "two"]

    def fail():
        raise CheckpointError("no room")

    for index, function in ((0, fail), (1, None)):
        with pytest.raises(CheckpointError, match="no room"):
            as_process(index, function)
