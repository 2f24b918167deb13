"""Functions on configs: trees of fields as nested dicts, namespaces or dotted names."""

import argparse
import copy
import hashlib
import json
import types

from reid_jax.errors import ConfigError


def update(tree, values):
    """Puts the values of a nested dict into another, in place; ConfigError for a field that is not there."""
    for key, value in values.items():
        if key not in tree:
            raise ConfigError(f"{key} is no field; there are {', '.join(tree)}")
        if isinstance(value, dict):
            update(tree[key], value)
        else:
            tree[key] = value


def completed(tree, known):
    """A nested dict with the fields of `known` that it lacks, at the values they have there."""
    both = {k: tree.get(k, v) for k, v in known.items()} | tree
    return {
        k: completed(v, known[k]) if isinstance(v, dict) and isinstance(known.get(k), dict) else v
        for k, v in both.items()
    }


def namespace(tree):
    """Nested dict -> nested SimpleNamespace, a config for use without ml_collections."""
    if isinstance(tree, dict):
        return types.SimpleNamespace(**{k: namespace(v) for k, v in tree.items()})
    return tree


def flatten(tree, prefix=""):
    """Nested dict -> {dotted field: JSON-like value}; tuples become lists."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


FREE = ("loss.branches", "data.erase_fill", "data.erase_aspect")  # a name or numbers; a number or two


def misfit(tree, known, prefix=""):
    """What is wrong with the types of a config that was read from a file, "" when nothing is.

    known: what to compare with. Fields that it does not have are passed over.
    """
    if not isinstance(tree, dict):
        return f"{prefix.rstrip('.') or 'the config'} is {tree!r} instead of a set of fields"
    for name, default in known.items():
        value = tree.get(name, default)
        if isinstance(default, dict):
            if wrong := misfit(value, default, f"{prefix}{name}."):
                return wrong
        elif not _alike(value, default) and f"{prefix}{name}" not in FREE:
            return f"{prefix}{name} is {value!r}, which cannot stand for {default!r}"
    return ""


def _alike(value, default):
    """Whether a value read from JSON has the type of a default."""
    for kind in (str, int | float, tuple | list):
        if isinstance(default, kind):
            return isinstance(value, kind)
    return True


def choice(field, value, allowed):
    """Returns value; raises ConfigError naming the field when it is not in `allowed`."""
    if value not in allowed:
        raise ConfigError(f"config.{field} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
    return value


def within(prefix, section, **limits):
    """Raises ConfigError for a field of a section (config.PREFIX) outside of its limits.

    limits: {field: (lowest, highest)}, both allowed, None for none.
    """
    for field, (low, high) in limits.items():
        value = getattr(section, field)
        if not (low is None or value >= low) or not (high is None or value <= high):
            ends = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
            raise ConfigError(f"config.{prefix}.{field} is {value!r}; it must be {' and '.join(ends)}")


def unknown_variant(config, variant, known):
    """The error for `--config=configs/x.py:VARIANT` with a VARIANT that x does not have."""
    return ConfigError(f"configs/{config}.py has no variant {variant!r}; it has {', '.join(sorted(known))}")


def split_row(config, variant, variants, rows):
    """'caviar-no_dil' -> ('caviar', 'no_dil'), 'caviar' -> ('caviar', ''); ConfigError for unknown ones."""
    name, _, row = variant.partition("-")
    if name not in variants or (row and row not in rows):
        raise unknown_variant(config, variant, [*variants, *(f"{v}-{r}" for v in variants for r in rows)])
    return name, row


def whole(low, high=None):
    """The type of a flag that takes a whole number from `low` on, up to `high`; errors say what it may be."""
    meant = f"a whole number from {low}{'' if high is None else f' to {high}'}"

    def read(text):
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meant}") from error
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not {meant}")
        return value

    return read


def split_label(text):
    """'A=runs/a' -> ('A', 'runs/a'); without a label ('', text)."""
    label, equals, value = text.partition("=")
    return (label, value) if equals and not set(label) & set("/\\:") else ("", text)


def fingerprint(tree):
    """Short hash of a nested dict."""
    text = json.dumps(flatten(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(config):
    """Nested dict of JSON-like values of a ConfigDict, a nested namespace or a nested dict."""
    if hasattr(config, "to_json_best_effort"):
        return json.loads(config.to_json_best_effort())
    tree = config if isinstance(config, dict) else vars(config)
    return {k: plain(v) if isinstance(v, dict) or hasattr(v, "__dict__") else v for k, v in tree.items()}


def overlay(tree, changes, prefix=""):
    """A copy of nested dict `tree` with the values of `changes`; ConfigError for a field that tree lacks."""
    tree = copy.deepcopy(tree)
    have = {*flatten(tree)}
    for field, value in flatten(changes).items():
        if field not in have:
            raise ConfigError(f"config.{prefix}{field} is no field: there is no config.{field}")
        *path, last = field.split(".")
        node = tree
        for key in path:
            node = node[key]
        node[last] = value
    return tree
