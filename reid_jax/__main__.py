"""`python -m reid_jax` lists the commands, `python -m reid_jax NAME ...` runs one."""

import difflib
import runpy
import sys

from reid_jax import cli
from reid_jax.errors import ConfigError

COMMANDS = {  # name: (module, one line)
    "train": ("reid_jax.main", "train, resume or evaluate a run of a config; writes its report"),
    "data": ("reid_jax.data", "list, check, draw, show or build data sets"),
    "report": ("reid_jax.report", "write the report page of a finished run again, or beside another run"),
    "embed": ("reid_jax.embed", "features of a data set or a folder of pictures by a trained run"),
    "score": ("reid_jax.evaluate", "retrieval figures of stored features: protocols, re-ranking, CMC"),
    "evaluate": ("reid_jax.evaluate", "the same as score"),
    "export": ("reid_jax.export", "a run as files for others: safetensors, StableHLO, ONNX, each compared"),
    "cross": ("reid_jax.cross", "one table of trained runs on other data sets"),
    "dg": ("reid_jax.dg", "domain generalisation: train on some sets, test on unseen ones; one table"),
    "compare": ("reid_jax.compare", "train several configs with several seeds; one table of the results"),
    "zoo": ("reid_jax.zoo", "all methods in one table and page: what for, size, speed, results of runs"),
    "convert": ("reid_jax.convert", "weights from and to PyTorch: what fits, and a file of it"),
    "gallery": ("reid_jax.commands.gallery", "a gallery of people: build, search, remove, calibrate, check"),
    "serve": ("reid_jax.commands.serve", "a page in the browser that searches a gallery"),
    "plan": (
        "reid_jax.commands.plan",
        "whether a run's steps fit a chip, by its own compiler, without the chip",
    ),
    "parity": ("reid_jax.parity", "compare this library with recorded outputs of PyTorch code"),
    "benchmarks": ("reid_jax.benchmarks", "time and memory of steps, data, evaluation and clustering"),
}


def main(argv=None):
    """Lists the commands, or becomes the one that is named."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(listing() if not argv else f"{listing()}\n\n{fields()}")
        return 0
    name, *arguments = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise ConfigError(f"no command {name!r}; {advice}")
    sys.argv[1:] = arguments
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    return 0


def listing():
    """All commands with a line each."""
    lines = [f"  {name:11} {line}" for name, (_, line) in COMMANDS.items()]
    usage = "usage: python -m reid_jax COMMAND ...   (python -m reid_jax COMMAND --help: its arguments)"
    return "\n".join([usage, "", *lines])


def fields():
    """The common fields of a config with their defaults."""
    from reid_jax.config import defaults
    from reid_jax.fields import flatten

    shown = [f"  {name:28} {value!r}" for name, value in flatten(defaults()).items()]
    head = "fields of a config, set by train --config.FIELD=VALUE, and their defaults (configs/README.md):"
    return "\n".join([head, "", *shown])


def run():
    """The console script `reid_jax`."""
    cli.run(main)


if __name__ == "__main__":
    run()
