"""A training set as a method sees it, of the size that its publication counts, without any picture."""

import numpy as np

from reid_jax import methods
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError
from reid_jax.train import stages

LIKE = "market1501"  # the size of sets whose publication counts nothing


def of_config(config, axis_name, counts=None):
    """methods.Info of config.data.name; counts: (identities, images, cameras) instead of the published.

    As the method's LABELS says, rows without identities stand for sets that it may not read.
    """
    sets = config.data.name.split("+")
    labels = methods.find(config.method).LABELS
    hidden = [name for name in sets if labels == "none" or name == config.data.target]
    seen = [name for name in sets if name not in hidden]
    if labels == "all" and not seen:
        raise ConfigError(
            f"config.data.target is {config.data.target!r}, and {config.method} learns from identities only: "
            "join a set that it may learn from in config.data.name"
        )
    labelled = rows(config, seen, 0, counts) if seen else None
    start = len(labelled.pid) if seen else 0
    unlabelled = rows(config, hidden, start, counts, False) if hidden else None
    if hidden and not stages.reads_cameras(config):
        unlabelled = unlabelled._replace(camid=np.zeros_like(unlabelled.camid))
    block = labelled if unlabelled is None else unlabelled
    return methods.Info(
        num_pids=labelled.num_pids if seen else 0,
        num_cams=max(b.num_cams for b in (labelled, unlabelled) if b is not None),
        axis_name=axis_name,
        num_images=len(block.pid),
        domains=labelled.ids_of_domains if seen else (),
        labelled=labelled,
        unlabelled=unlabelled,
        attributes=attributes(config, labelled.num_pids) if seen else None,
    )


def published(name):
    """(identities, images, cameras) of a set's training part as published; market1501's where none are."""
    counts = getattr(LAYOUTS.get(name), "counts", {})
    if {"train ids", "train images"} - counts.keys():
        counts = LAYOUTS[LIKE].counts
    return counts["train ids"], counts["train images"], counts.get("cameras", 6)


def rows(config, sets, start, counts, known=True):
    """Rows of sets one after the other: every identity has its share of the images, cameras in turn."""
    pid, camid, domain = [], [], []
    people = cams = 0
    for number, name in enumerate(sets):
        ids, images, cameras = counts or published(name)
        place = np.arange(images)
        pid.append(people + place * ids // images)
        camid.append(cams + place % cameras)
        domain.append(np.full(images, number))
        people, cams = people + ids, cams + cameras
    pid, camid, domain = (np.concatenate(x).astype(np.int32) for x in (pid, camid, domain))
    domain = camid if config.data.domains == "camera" else domain
    return Rows(start, pid if known else np.full_like(pid, -1), camid, domain, beside(config, len(pid)))


def beside(config, count):
    """What rows have beside where config.data.points names a file of body points."""
    if not config.data.points:
        return {}
    return {"points": np.zeros((count, 18, 3), np.float32), "size": np.ones((count, 2), np.float32)}


def attributes(config, ids):
    """A table by identity, zeros, with the columns that the method's own fields describe; None without."""
    columns = getattr(getattr(config, config.method, None), "attributes", None)
    return None if columns is None else np.zeros((ids, len(columns)), np.int32)
