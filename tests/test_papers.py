"""configs/PAPERS.md: every row has a command, and every command can be tried without data."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from reid_jax import __main__ as command
from reid_jax import cli
from reid_jax import main as training
from reid_jax.errors import MISSING

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "configs" / "PAPERS.md").read_text()


def rows():
    """Labels of all rows of the tables, E1, ..."""
    return re.findall(r"(?m)^\| ([A-Z]\d+) \|", TEXT)


def commands():
    """{labels: command} of all blocks; labels as in "E1, E3"."""
    blocks = "".join(re.findall(r"(?s)```bash\n(.*?)```", TEXT)).replace("\\\n", " ")
    lines = blocks.splitlines()
    return {label.removeprefix("# "): line for label, line in zip(lines[::2], lines[1::2], strict=True)}


def dry_run(line):
    """The exit code of a command with --dry-run, in this process."""
    name, *argv = shlex.split(line.removeprefix("python -m reid_jax "))
    place = argv.index("--") if "--" in argv else len(argv)
    argv.insert(place, "--dry-run")
    if name == "train":
        fields = [arg for arg in argv if arg.startswith("--config")]
        assert {arg.partition("=")[0] for arg in argv if arg not in fields} <= {"--workdir", "--dry-run"}
        return training.dry_run(cli.config_of_flags(fields), "a config", "runs/nowhere")
    module = importlib.import_module(command.COMMANDS[name][0])
    main = getattr(module, "main", None) or importlib.import_module(f"{module.__name__}.__main__").main
    return main(argv)


def test_every_row_has_a_command():
    labels = [label for several in commands() for label in several.split(", ")]
    assert sorted(rows()) == sorted(labels) and len(labels) > 50


@pytest.mark.parametrize("labels", commands())
def test_every_command_can_be_tried_without_data(labels, monkeypatch, capsys):
    """What is missing is named, with whom to ask and what to train first; what is drawn can start."""
    line = commands()[labels]
    monkeypatch.chdir(ROOT)
    code = dry_run(line.replace("/data", "/nowhere/data"))
    said = capsys.readouterr().out
    assert "would " in said and (code == MISSING) == ("MISSING: " in said)
    wants = [word for word in ("/data", "init.weights=", "init.run=", " report ") if word in line]
    assert code == (MISSING if wants else 0), said
    if "/data" in line and " cross " not in line:
        assert re.search(r"(?s)set \S+: MISSING.*Terms: .*python -m reid_jax data list", said)
    if ".pth" in line:
        assert re.search(r"weights: MISSING: resnes?t\S+ is not there; ", said)
