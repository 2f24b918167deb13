"""The commands: one list, one way of parsing, errors in one line with exit code 2."""

import errno
import importlib.util
import subprocess
import sys
import sysconfig

import pytest

from reid_jax import __main__ as command
from reid_jax import cli, tables
from reid_jax.benchmarks import __main__ as benchmarks
from reid_jax.commands import gallery
from reid_jax.data import __main__ as data
from reid_jax.errors import ConfigError, DataError, ProcessError


def call(*arguments):
    """(exit code, stdout, stderr) of `python -m` with these arguments."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_list_of_commands(capsys):
    """A line each, fit for a terminal, and a module that `python -m` finds."""
    assert command.main([]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(command.COMMANDS)
    assert max(map(len, lines)) <= 100
    for module, _ in command.COMMANDS.values():
        assert importlib.util.find_spec(module), module


def test_unknown_commands():
    with pytest.raises(ConfigError, match="no command 'convrt'; did you mean convert?"):
        command.main(["convrt"])
    with pytest.raises(ConfigError, match="no command 'x'; there are train, data"):
        command.main(["x"])


@pytest.mark.parametrize("name", [pytest.param("reid_jax.convert", marks=pytest.mark.slow), "reid_jax"])
def test_both_ways_to_a_command_are_one(name, tmp_path):
    """The module and the list run the same code: the same message, exit code and usage."""
    before = ["convert"] if name == "reid_jax" else []
    missing = str(tmp_path / "none.pth")
    code, out, said = call(name, *before, missing)
    assert (code, out) == (2, "") and said.startswith("error: ") and said.count("\n") == 1 and missing in said
    code, out, said = call(name, *before, missing, "--no-such-flag")
    assert code == 2 and said.count("\n") == 1
    assert said.startswith("error: unrecognized arguments: --no-such-flag; python -m reid_jax convert --help")


def helped(capsys, name, *action):
    """What COMMAND [ACTION] --help prints."""
    module = importlib.import_module(command.COMMANDS[name][0])
    main = getattr(module, "main", None) or importlib.import_module(f"{module.__name__}.__main__").main
    main = (lambda argv: module.parse_flags(["train", *argv])) if name == "train" else main
    with pytest.raises(SystemExit) as end:
        main([*action, "--help"])
    assert not end.value.code
    return capsys.readouterr().out.strip().splitlines()


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_ends_with_an_example(name, capsys):
    lines = helped(capsys, name)
    name = "score" if name == "evaluate" else name  # its other name
    last = len(lines) - 1 - [line.startswith("example") for line in reversed(lines)].index(True)
    assert lines[last + 1 :] and not any(line.startswith("example") for line in lines[:last])
    joined = "\n".join(lines[last + 1 :]).replace("\\\n", "")
    assert all(line.startswith(f"    python -m reid_jax {name}") for line in joined.splitlines())


@pytest.mark.parametrize(
    "name", [*(("data", a) for a in data.COMMANDS), *(("gallery", a) for a in gallery.ACTIONS)]
)
def test_help_of_an_action_ends_with_its_example(name, capsys):
    assert helped(capsys, *name)[-1].startswith(f"    python -m reid_jax {' '.join(name)} ") or name == (
        "data",
        "list",
    )


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_help_of_a_benchmark_ends_with_its_example(name, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"reid_jax.benchmarks.{name}").main(["--help"])
    assert (
        capsys.readouterr()
        .out.strip()
        .splitlines()[-1]
        .startswith(f"    python -m reid_jax benchmarks {name}")
    )


def test_errors_and_their_exit_codes(capsys):
    def codes(error):
        def fails(argv):
            raise error

        return cli.exit_code(fails, []), capsys.readouterr().err

    assert codes(DataError("no such folder")) == (2, "error: no such folder\n")
    assert codes(ProcessError("one is missing")) == (1, "error: one is missing\n")
    assert codes(KeyboardInterrupt()) == (130, "")
    code, said = codes(OSError(errno.ENOSPC, "No space left on device", "runs/a/x"))
    assert code == 2 and said == (
        "error: no space left on the device; free some (runs/a/x) and run the same command again\n"
    )
    code, said = codes(KeyError("a fault of ours"))
    assert code == 1 and "Traceback" in said
    assert cli.exit_code(lambda argv: None) == 0 and cli.exit_code(lambda argv: 75) == 75


def test_tables(tmp_path):
    assert tables.markdown(["", "mAP"], [["long name", "1.0"], ["b", "10.0"]]) == (
        "|           | mAP  |\n|-----------|------|\n| long name | 1.0  |\n| b         | 10.0 |"
    )
    assert tables.comma_separated(["a", "b"], [[1, None], ["x,y", 2.5]]) == 'a,b\n1,\n"x,y",2.5\n'
    tables.write_text(tmp_path / "t.md", "text")
    assert (tmp_path / "t.md").read_text() == "text"
    with pytest.raises(ConfigError, match="cannot be written: "):
        tables.write_text(tmp_path, "text")


def test_configs_of_an_installed_package_are_found(tmp_path, monkeypatch):
    """From any folder, behind those that are there; a path that is neither stays, for the error."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: f"{tmp_path}/{name}")
    shipped = tmp_path / "data" / "share" / "reid_jax" / "configs"
    shipped.mkdir(parents=True)
    (shipped / "efl.py").write_text("")
    (shipped / "own.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert cli.config_path("configs/own.py:market") == f"{shipped}/own.py:market"
    assert cli.config_path("configs/none.py:market") == "configs/none.py:market"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.py").write_text("")
    assert cli.config_path("configs/own.py") == "configs/own.py"
