"""Paths of all flags and fields: ~ is the home folder, addresses of other machines are refused at once."""

import argparse
import os
import subprocess
import sys

import command
import pytest

from reid_jax import cli, places
from reid_jax.config import namespace
from reid_jax.data import __main__ as data_command
from reid_jax.data import datasets, folders, tfds_sets
from reid_jax.errors import ConfigError, DataError, ReidError
from reid_jax.fields import overlay
from reid_jax.methods import defaults
from reid_jax.models import weights
from reid_jax.report import __main__ as report_command
from reid_jax.report import build
from reid_jax.train import restore, stages, warm

ADDRESSES = ("s3://bucket/x", "gs://bucket/x", "https://host/x", "s3:/bucket/x", "hdfs://host/x", "az://x")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return str(tmp_path / "home")


def test_local(home):
    assert places.local("~/x/~", "it") == f"{home}/x/~" and places.local("~", "it") == home
    for path in ("x", "/a/~/x", "./~/x", "C:/x", "a=b:c", "market1501"):
        assert places.local(path, "it") == path
    for path in ("file:///a/b", "file:/a/b", "FILE://localhost/a/b"):
        assert places.local(path, "it") == "/a/b"
    for path in ADDRESSES:
        with pytest.raises(ConfigError, match=f"--flag is {path}: .* not by {path.split(':')[0]}:"):
            places.written(path, "--flag")
    with pytest.raises(
        ConfigError, match="there is no user nobody-at-all; a folder ~nobody-at-all is ./~nob"
    ):
        places.local("~nobody-at-all/x", "it")
    assert places.local("./~nobody-at-all/x", "it") == "./~nobody-at-all/x"


COMMANDS = [  # a parser's arguments, and which of them are paths
    ("embed", "PATH /data/x --output PATH.npz"),
    ("score", "x.npz --json PATH --plot PATH"),
    ("cross", "a --targets b:c --workdir PATH"),
    ("compare", "A=x.py --workdir PATH"),
    ("convert", "PATH PATH.safetensors --report PATH"),
]


def paths_in(parsed):
    return [
        v
        for v in vars(parsed).values()
        if isinstance(v, str) and v.endswith(("/x", "/x.npz", "/x.safetensors"))
    ]


@pytest.mark.parametrize("name, line", COMMANDS, ids=[name for name, _ in COMMANDS])
def test_commands(name, line, home):
    module = __import__(f"reid_jax.commands.{name}", fromlist=["x"])
    parse = getattr(module, "parse", None) or module.arguments
    parsed = paths_in(parse(line.replace("PATH", "~/x").split()))
    assert [p for p in parsed if p.startswith(f"{home}/x")] and not [p for p in parsed if p[0] == "~"]
    for i in range(line.count("PATH")):
        given = line.replace("PATH", "y", i).replace("PATH", "s3://b/x", 1).replace("PATH", "y").split()
        with pytest.raises(ConfigError, match="is s3://b/x.*files are read and written locally only"):
            parse(given)


LINES = [
    "check folder --root PATH --json PATH --csv PATH",
    "build folder --root PATH --output PATH --csv PATH",
    "synthesize --root PATH --sheet PATH",
    "sheet --root PATH --out PATH --animate PATH",
]


@pytest.mark.parametrize("line", LINES)
def test_data_commands(line, home, monkeypatch):
    given = {}
    for name, (text, flags, _) in data_command.COMMANDS.items():
        monkeypatch.setitem(data_command.COMMANDS, name, (text, flags, lambda args: given.update(vars(args))))
    assert data_command.main(line.replace("PATH", "~/x").split()) == 0
    assert [v for v in given.values() if v == f"{home}/x"] == [f"{home}/x"] * line.count("PATH")
    for i in range(line.count("PATH")):
        words = line.replace("PATH", "y", i).replace("PATH", "s3://b/x", 1).replace("PATH", "y").split()
        with pytest.raises(ConfigError, match=f"{words[words.index('s3://b/x') - 1]} is s3://b/x"):
            data_command.main(words)


def test_report_command(monkeypatch, home):
    given = {}
    monkeypatch.setattr(report_command, "build", lambda **args: given.update(args))
    report_command.main(["~/a", "--baseline", "~/b", "--data_root", "~/c"])
    assert (given["workdir"], given["compare_with"]) == (f"{home}/a", f"{home}/b")
    with pytest.raises(ConfigError, match="--data_root is s3://x"):
        build("~/a", data_root="s3://x")
    with pytest.raises(DataError, match=f"{home}/a/config.json is missing"):
        build("~/a", data_root="tfds:/built/set")


def test_whoever_reads_a_run_or_a_file(home):
    for read in (weights.read, warm.best_of, restore.run):
        with pytest.raises(ReidError, match=f"{home}/a"):
            read("~/a")
        with pytest.raises(ConfigError, match="locally only"):
            read("s3://bucket/a")
    tree = defaults("mmt")
    tree["method"], name = "mmt", next(iter(__import__("reid_jax.methods.mmt", fromlist=["x"]).STAGES))
    tree = overlay(tree, {"init": {"stages": f"{name}=~/a"}})
    assert stages.elsewhere(namespace(tree)) == {name: f"{home}/a"}
    with pytest.raises(ConfigError, match=f"config file {home}/x.py does not exist"):
        cli.load_config("~/x.py:smoke")


def test_sets(home):
    with pytest.raises(DataError, match=f"config.data.root: {home}/d does not exist"):
        folders.load_folder("market1501", "~/d")
    with pytest.raises(ConfigError, match="config.data.root is gs://b/d: files are read"):
        folders.load_folder("market1501", "gs://b/d")
    with pytest.raises(DataError, match=f"{home}/d is neither a folder"):
        datasets.open_source("~/d")
    with pytest.raises(DataError, match=f"{home}/d does not exist"):
        datasets.open_source("A=market1501:~/d")
    with pytest.raises(ConfigError, match="locally only"):
        datasets.open_source("s3://bucket/d")
    with pytest.raises(DataError, match="no built set.*--output ~/d"):
        tfds_sets.load("~/d")


def train(*given, **environment):
    """(exit code, what it says) of a training that stops for want of data."""
    bare = [sys.executable, "-m", "reid_jax.main", f"--config={command.ROOT}/configs/baseline.py:smoke"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(command.ROOT), **environment}
    bare += ["--config.data.name=market1501", *given]
    done = subprocess.run(bare, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def test_workdir(home):
    code, said = train("--workdir=~/run", "--config.data.root=~/d")
    assert code == 2 and f"{home}/d does not exist" in said
    assert os.path.exists(f"{home}/run/config.json")
    code, said = train("--workdir=s3://bucket/run")
    assert code == 2 and said.startswith("error: --workdir is s3://bucket/run") and said.count("\n") == 1
    code, said = train("--workdir=" + os.fsdecode("\u8dd1".encode("gbk")))
    assert code == 2 and said.startswith(r"error: --workdir is \udcc5\udcdc, or lies") and "not UTF-8" in said
    assert os.listdir() == []


@pytest.mark.parametrize("field", ["data.csv", "init.weights", "init.run", "report.baseline"])
def test_fields_that_name_another_machine(field):
    from reid_jax import main

    tree = defaults("baseline")
    section, name = field.split(".")
    tree[section][name] = "s3://bucket/x"
    with pytest.raises(ConfigError, match=f"config.{field} is s3://bucket/x"):
        main.check_paths(tree)
    tree[section][name] = "~/x"
    main.check_paths(tree)


def test_argument_is_a_type_of_argparse(home):
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", type=places.argument("--x"), default="")
    assert parser.parse_args(["--x=~/y"]).x == f"{home}/y" and parser.parse_args([]).x == ""
