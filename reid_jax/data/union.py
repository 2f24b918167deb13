"""Several data sets as one training set: data.name="market1501+msmt17", data.root="ROOT1,ROOT2"."""

import dataclasses
import logging
import os

import numpy as np

from reid_jax.data.records import Dataset
from reid_jax.errors import ConfigError

# Sets that show the same persons: one of them must not train for a test on another.
OVERLAPS = (
    {"cuhk01", "cuhk02"},
    {"cuhk03", "mlr_cuhk03"},
    {"viper", "mlr_viper"},
    {"market1501", "mars"},
    {"dukemtmc", "duke_video", "p_dukemtmc"},
    {"ilids", "partial_ilids"},
    {"prid", "prid_video"},
)
log = logging.getLogger(__name__)


def names(text):
    """'market1501+msmt17' -> ['market1501', 'msmt17']; ConfigError for an empty or repeated name."""
    sets = text.split("+")
    if "" in sets or len(set(sets)) < len(sets):
        raise ConfigError(f"config.data.name is {text!r}; a union names different data sets, as in a+b")
    return sets


def per_set(text, count, separator, field):
    """One value of config.data.FIELD for each set: as many as sets, or one for all."""
    values = [v.strip() for v in text.split(separator)]
    if len(values) not in (1, count):
        raise ConfigError(
            f"config.data.{field} is {text!r}, {len(values)} values for {count} data sets; give one for "
            f"each, separated by {separator!r}, or one for all"
        )
    return values * count if len(values) == 1 else values


def chosen_set(sets, name, field):
    """Name of the set that config.data.FIELD names, the first one when it is empty."""
    if name and name not in sets:
        raise ConfigError(f"config.data.{field} is {name!r}; it must be one of {', '.join(map(repr, sets))}")
    return name or sets[0]


def tested(sets, data):
    """Names of the sets that data.test and data.target have tested, the run's own test first."""
    if data.test == "all":
        return list(sets)
    field = "test" if data.test else "target"
    return [chosen_set(sets, getattr(data, field), field)]


def check_overlap(sets, tested, target=""):
    """ConfigError when a set that trains shows persons of the tested one, or a source such of the target;
    a warning for two that train."""
    for shared in OVERLAPS:
        both = [n for n in sets if n in shared]
        if len(both) > 1 and tested in shared:
            raise ConfigError(
                f"config.data.name: {' and '.join(both)} show the same persons, so that training on both "
                f"spoils the test on {tested}; leave one out, or set config.data.test to another set"
            )
        if len(both) > 1 and target in shared:
            raise ConfigError(
                f"config.data.target: {' and '.join(both)} show the same persons, so that the identities of "
                f"{target} would not be hidden; leave the other one out of config.data.name"
            )
        if len(both) > 1:
            log.warning("%s show the same persons, who count as different ones here", " and ".join(both))


def check_overlap_with_test(sets, tested):
    """ConfigError when a set that trains shows persons of `tested`, another set."""
    for shared in OVERLAPS:
        same = [n for n in sets if n in shared and n != tested]
        if tested in shared and same:
            raise ConfigError(
                f"{same[0]}, which trains, and {tested} show the same persons, so that the test is spoiled: "
                "leave it out"
            )


def merge(datasets, test=0, also=()):
    """Dataset that trains on all of them and is tested on datasets[test]; also: numbers of more to test on.

    Train pids and cameras of different sets are kept apart, side by side in the order of the sets; a set's
    number is the domain of its records; camera names are SET:CAMERA. root: the folder above all. Identities
    have attributes if they do in all sets. Raises ConfigError for images mixed with tracklets.
    """
    holds = {d.name: d.kind for d in datasets}
    if len(set(holds.values())) > 1:
        shown = ", ".join(f"{name} ({records})" for name, records in holds.items())
        raise ConfigError(f"config.data.name: {shown} cannot be mixed; use sets of one kind")
    train, camera_names, first_pid, camera = [], [], 0, {}
    for index, d in enumerate(datasets):
        start = len(camera_names)
        train += [
            dataclasses.replace(r, pid=moved(r.pid, first_pid), camid=r.camid + start, domain=index)
            for r in d.train
        ]
        first_pid += d.num_train_pids
        camera_names += [f"{d.name}:{name}" for name in d.camera_names[: d.num_cams]]
        if index == test:
            camera = {c: start + c for c in range(d.num_cams)}
    tested = datasets[test]
    for c in range(tested.num_cams, len(tested.camera_names)):
        camera[c] = len(camera_names)
        camera_names.append(f"{tested.name}:{tested.camera_names[c]}")
    query, gallery = (
        tuple(dataclasses.replace(r, camid=camera[r.camid], domain=test) for r in records)
        for records in (tested.query, tested.gallery)
    )
    drawn = {d.name: d.drawn for d in datasets if d.drawn}
    return Dataset(
        "+".join(holds),
        common_folder([d.root for d in datasets]),
        tuple(train),
        query,
        gallery,
        tuple(camera_names),
        kind=tested.kind,
        protocol=tested.protocol,
        drawn=drawn,
        domain_names=tuple(holds),
        tested=tested.name,
        roots=tuple(d.root for d in datasets),
        attributes=joined_attributes(datasets),
        also=tuple(d.tests[0] for d in (datasets[i] for i in also) if d.query),
    )


def moved(pid, first):
    """An identity behind `first` others; -1, nobody known, stays."""
    return pid + first if pid >= 0 else pid


def joined_attributes(datasets):
    """i32[P, A] of the identities of all sets; None where a set has none or other ones."""
    tables = [d.attributes for d in datasets]
    if any(t is None for t in tables) or len({t.shape[1] for t in tables}) > 1:
        return None
    return np.concatenate(tables)


def common_folder(roots):
    """The folder above all roots; paths of features are relative to it."""
    try:
        return os.path.commonpath(roots)
    except ValueError as e:
        raise ConfigError(f"config.data.root: {', '.join(roots)} lie on different drives") from e
