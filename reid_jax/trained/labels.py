"""Labels of runs and sets, which name rows of tables, files and folders, and lists of runs with labels."""

import os
from pathlib import Path

from reid_jax import cli
from reid_jax.errors import ConfigError


def configs(texts, taken=()):
    """{label: config} of LABEL=CONFIG and @FILE, whose lines are such; ConfigError for labels that cannot be.

    taken: names that other files have where each run has a folder.
    """
    runs = [labelled(run) for text in texts for run in listed(text)]
    check([folder(label) for label, _ in runs], "run", taken)
    return dict(runs)


def listed(text):
    """[text], or of @FILE its lines but empty ones and comments (#); ConfigError for none or no such file."""
    if not text.startswith("@"):
        return [text]
    path = cli.config_path(text[1:], "a list of runs")
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"{path} cannot be read: {reason}; @FILE lists LABEL=CONFIG") from error
    if not (runs := [line for line in lines if line and not line.startswith("#")]):
        raise ConfigError(f"{path} lists no LABEL=CONFIG")
    return runs


def labelled(text):
    """'A=configs/METHOD.py:VARIANT' -> ('A', 'configs/METHOD.py:VARIANT')."""
    label, _, path = text.rpartition("=")
    if not label or not path:
        raise ConfigError(f"{text!r} is not LABEL=CONFIG, as in A=configs/METHOD.py:VARIANT")
    return label, path


def folder(label):
    """The folder of a label's runs; one cannot hold a separator."""
    return label.replace(os.sep, "_")


def check(labels, noun, taken=()):
    """ConfigError for labels that are alike or no plain names; taken: names that other files have."""
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two {noun}s are called {label!r}; give them labels, as in LABEL=...")
        if os.path.basename(label) != label or label in ("", ".", "..", *taken):
            raise ConfigError(f"{label!r} cannot be a {noun}'s label: it names a file")
