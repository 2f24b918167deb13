"""Attributes of training people: market_attribute.mat, duke_attribute.mat, or those of synthetic people.

A table i32[P,A] of classes from 0, -1 where nothing is known. Colours, of which a file has a yes or no each,
become one attribute with a last class for none of them.
"""

import dataclasses
import os

import numpy as np

from reid_jax import places
from reid_jax.data.loaders.common import PID_CAMERA, read_mat
from reid_jax.errors import ConfigError, DataError

_UP = ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")
_DOWN = ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")
# Of each file: its plain fields, and colours as (name, prefix of fields, colours).
FILES = {
    "market_attribute": (
        ("age", "backpack", "bag", "handbag", "clothes", "down", "up", "hair", "hat", "gender"),
        (("up colour", "up", _UP), ("down colour", "down", _DOWN)),
    ),
    "duke_attribute": (
        ("backpack", "bag", "handbag", "boots", "gender", "hat", "shoes", "top"),
        (
            ("up colour", "up", _UP),
            ("down colour", "down", ("black", "white", "red", "gray", "blue", "green", "brown")),
        ),
    ),
}


def attach(dataset, data):
    """The Dataset with attributes i32[P,A] as config.data.attributes says: a .mat file, or "true".

    Errors: ConfigError for sets that have none, DataError for a file that cannot be used.
    """
    if dataset.roots or data.source != "folder":
        raise ConfigError(
            f"config.data.attributes is {data.attributes!r}; attributes are for a single set of "
            "config.data.source=folder"
        )
    pids = original_pids(dataset)
    table = of_synthetic(dataset, pids) if data.attributes == "true" else of_file(data.attributes, pids)
    return dataclasses.replace(dataset, attributes=table)


def original_pids(dataset):
    """[P] the identities in the names of the training pictures, by label; ConfigError for other names."""
    pids = {}
    for r in dataset.train:
        match = PID_CAMERA.match(os.path.basename(r.path))
        if r.pid >= 0 and match is None:
            raise ConfigError(
                f"config.data.attributes goes with names as Market-1501's, unlike {r.path}; set it to ''"
            )
        if r.pid >= 0:
            pids[r.pid] = int(match[1])
    return [pids[label] for label in range(len(pids))]


def of_synthetic(dataset, pids):
    """i32[P,A] of synthetic people; ConfigError for another set."""
    from reid_jax.data.synthetic import truth

    if not dataset.name.startswith("synthetic"):
        raise ConfigError(
            f"config.data.attributes is 'true', but {dataset.name} is not synthetic: name a file"
        )
    return truth.attributes(dataset.root, pids)


def of_file(path, pids):
    """i32[P,A] of market_attribute.mat or duke_attribute.mat (names of the file and of its variable)."""
    path = places.local(path, "config.data.attributes")
    name = os.path.splitext(os.path.basename(path))[0]
    if name not in FILES:
        raise DataError(f"config.data.attributes is {path}; the file must be {'.mat or '.join(FILES)}.mat")
    (whole,) = read_mat(path, name)
    try:
        fields = whole[0, 0].fields["train"][0, 0].fields
        people = [int(np.ravel(i)[0]) for i in fields["image_index"].ravel()]
        columns = [fields[f].ravel().astype(np.int32) - 1 for f in FILES[name][0]]
        for _, prefix, colours in FILES[name][1]:
            columns.append(colour(np.stack([fields[prefix + c].ravel() for c in colours], 1)))
        table = np.stack(columns, 1)
        rows = {pid: row for pid, row in zip(people, table, strict=True)}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path} does not hold the attributes of its data set ({e!r}); copy it again") from e
    if not any(pid in rows for pid in pids):
        raise DataError(
            f"{path} knows none of the {len(pids)} training identities: it is of another data set"
        )
    unknown = np.full(table.shape[1], -1, np.int32)
    return np.stack([rows.get(pid, unknown) for pid in pids]).astype(np.int32)


def colour(flags):
    """i[P] of 1 (no) or 2 (yes) for each colour [P,C]: the first that is there, C for none."""
    there = np.asarray(flags) == 2
    return np.where(there.any(1), there.argmax(1), flags.shape[1]).astype(np.int32)
