"""Several data sets as one training set: data.name="market1501+msmt17", data.root="ROOT1,ROOT2"."""

import dataclasses
import logging
import os

from reid_jax.data.records import Dataset
from reid_jax.errors import ConfigError

# Sets that show the same persons: one of them must not train for a test on another.
OVERLAPS = (
    {"cuhk01", "cuhk02"},
    {"cuhk03", "mlr_cuhk03"},
    {"viper", "mlr_viper"},
    {"market1501", "mars"},
    {"dukemtmc", "duke_video"},
    {"prid", "prid_video"},
)
log = logging.getLogger(__name__)


def names(text):
    """'market1501+msmt17' -> ['market1501', 'msmt17']; ConfigError for an empty or repeated name."""
    found = text.split("+")
    if "" in found or len(set(found)) < len(found):
        raise ConfigError(f"config.data.name is {text!r}; a union names different data sets, as in a+b")
    return found


def per_set(text, count, separator, field):
    """One value of config.data.FIELD for each set: as many as sets, or one for all."""
    values = [v.strip() for v in text.split(separator)]
    if len(values) not in (1, count):
        raise ConfigError(
            f"config.data.{field} is {text!r}, {len(values)} values for {count} data sets; give one for "
            f"each, separated by {separator!r}, or one for all"
        )
    return values * count if len(values) == 1 else values


def test_index(found, test):
    """Index of the set whose query and gallery are used: config.data.test, the first one when empty."""
    if test and test not in found:
        raise ConfigError(f"config.data.test is {test!r}; it must be one of {', '.join(map(repr, found))}")
    return found.index(test) if test else 0


def check_overlap(found, tested):
    """ConfigError when a set that trains shows persons of the tested one, a warning for two that train."""
    for shared in OVERLAPS:
        both = [n for n in found if n in shared]
        if len(both) > 1 and tested in shared:
            raise ConfigError(
                f"config.data.name: {' and '.join(both)} show the same persons, so that training on both "
                f"spoils the test on {tested}; leave one out, or set config.data.test to another set"
            )
        if len(both) > 1:
            log.warning("%s show the same persons, who count as different ones here", " and ".join(both))


def merge(datasets, test=0):
    """Dataset that trains on all of them and is tested on datasets[test].

    Train pids and cameras of different sets are kept apart, in the order of the sets; camera names are
    SET:CAMERA. root: the folder above all. Raises ConfigError for images mixed with tracklets.
    """
    kinds = {d.name: d.kind for d in datasets}
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise ConfigError(f"config.data.name: {shown} cannot be mixed; use sets of one kind")
    train, camera_names, first_pid, camera = [], [], 0, {}
    for index, d in enumerate(datasets):
        start = len(camera_names)
        train += [dataclasses.replace(r, pid=r.pid + first_pid, camid=r.camid + start) for r in d.train]
        first_pid += d.num_train_pids
        camera_names += [f"{d.name}:{name}" for name in d.camera_names[: d.num_cams]]
        if index == test:
            camera = {c: start + c for c in range(d.num_cams)}
    tested = datasets[test]
    for c in range(tested.num_cams, len(tested.camera_names)):
        camera[c] = len(camera_names)
        camera_names.append(f"{tested.name}:{tested.camera_names[c]}")
    query, gallery = (
        tuple(dataclasses.replace(r, camid=camera[r.camid]) for r in part)
        for part in (tested.query, tested.gallery)
    )
    drawn = {d.name: d.drawn for d in datasets if d.drawn}
    return Dataset(
        "+".join(kinds),
        common_folder([d.root for d in datasets]),
        tuple(train),
        query,
        gallery,
        tuple(camera_names),
        kind=tested.kind,
        protocol=tested.protocol,
        drawn=drawn,
    )


def common_folder(roots):
    """The folder above all roots; paths of features are relative to it."""
    try:
        return os.path.commonpath(roots)
    except ValueError as e:
        raise ConfigError(f"config.data.root: {', '.join(roots)} lie on different drives") from e
