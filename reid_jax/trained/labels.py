"""Labels of runs and sets, which name rows of tables, files and folders."""

import os

from reid_jax.errors import ConfigError


def check(labels, noun, taken=()):
    """ConfigError for labels that are alike or no plain names; taken: names that other files have."""
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two {noun}s are called {label!r}; give them labels, as in LABEL=...")
        if os.path.basename(label) != label or label in ("", ".", "..", *taken):
            raise ConfigError(f"{label!r} cannot be a {noun}'s label: it names a file")
