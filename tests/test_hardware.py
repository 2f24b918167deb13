"""What a program runs on is said at its start; a platform that is missing ends it in one line."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from reid_jax import cli, hardware
from reid_jax.errors import ConfigError

KINDS = [SimpleNamespace(device_kind=kind) for kind in ("NVIDIA H200", "NVIDIA H200", "NVIDIA L4")]


@pytest.fixture
def any_platform(monkeypatch):
    """JAX that was not told a platform, on a machine without a GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(hardware.glob, "glob", lambda pattern: [])
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield monkeypatch
    jax.config.update("jax_platforms", before)


def said(caplog):
    with caplog.at_level(logging.INFO):
        hardware.start()
    return caplog.text


def test_devices_in_words():
    assert hardware.described(KINDS) == "2 x NVIDIA H200, 1 x NVIDIA L4"
    assert hardware.described() == f"{jax.device_count()} x cpu"


def test_a_machine_without_a_gpu(any_platform, caplog):
    text = said(caplog)
    assert f"running on {jax.device_count()} x cpu" in text and "WARNING" not in text


@pytest.mark.parametrize("sign", ["/dev/nvidia3", "nvidia-smi"])
def test_a_gpu_that_stays_idle_is_told(sign, any_platform, caplog, tmp_path):
    if sign == "nvidia-smi":
        (tmp_path / sign).write_text("#!/bin/sh\n")
        (tmp_path / sign).chmod(0o755)
        any_platform.setenv("PATH", str(tmp_path))
    else:
        any_platform.setattr(hardware.glob, "glob", lambda pattern: [sign])
    text = said(caplog)
    assert "WARNING" in text and sign in text and "cuda12" in text and "JAX_PLATFORMS=cpu" in text


@pytest.mark.parametrize("meant", ["platform", "devices"])
def test_cpus_that_are_meant_are_no_mistake(meant, any_platform, caplog):
    any_platform.setattr(hardware.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    if meant == "platform":
        jax.config.update("jax_platforms", "cpu")
    else:
        any_platform.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "WARNING" not in said(caplog)


@pytest.mark.parametrize("failure", [AssertionError(), RuntimeError("no driver\nsecond line")])
def test_a_platform_that_fails(failure, any_platform):
    def fails():
        raise failure

    any_platform.setattr(jax, "default_backend", fails)
    with pytest.raises(ConfigError, match=r"^JAX cannot start: (no driver|JAX finds no  device here)$"):
        hardware.start()
    jax.config.update("jax_platforms", "cuda")
    with pytest.raises(
        ConfigError, match=r"^JAX_PLATFORMS=cuda cannot be had: (no driver|JAX finds no cuda)"
    ):
        hardware.start()


@pytest.mark.parametrize("wanted", ["cuda", "cuda,cpu", "gpu", "tpu,cpu"])
def test_cpus_for_a_gpu_that_was_asked_for_are_an_error(wanted, any_platform):
    jax.config.update("jax_platforms", wanted)
    with pytest.raises(ConfigError, match=rf"^JAX_PLATFORMS={wanted} cannot be had: JAX finds only CPUs"):
        hardware.start()


def test_every_command_turns_it_into_one_line(any_platform, capsys):
    """Also those that meet it somewhere in JAX, without looking for it first."""

    def fails(*_):
        raise AssertionError

    any_platform.setattr(jax, "default_backend", fails)
    jax.config.update("jax_platforms", "cuda")
    assert cli.exit_code(fails, []) == 2
    assert capsys.readouterr().err.startswith("error: JAX_PLATFORMS=cuda cannot be had: ")


TRAIN = ["reid_jax.main", "--config=configs/baseline.py:smoke"]


@pytest.mark.parametrize(
    "command", [TRAIN, pytest.param(["reid_jax", "convert", "w.npz"], marks=pytest.mark.slow)]
)
def test_a_missing_platform_as_a_user_meets_it(command, tmp_path):
    """In a process of its own: the plugin that is not there, not a stand-in."""
    import numpy as np

    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    command = [str(tmp_path / c) if c == "w.npz" else c for c in command]
    if command[0] == "reid_jax.main":
        command.append(f"--workdir={tmp_path / 'run'}")
    environment = {**os.environ, "JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: JAX_PLATFORMS=cuda cannot be had: ")
    assert not (tmp_path / "run").exists()
