"""Every stage of every method as tests look at it: facts on made-up rows, its parts, batches for them."""

import numpy as np

from reid_jax import methods
from reid_jax.data.rows import Rows
from reid_jax.train.devices import AXIS

IMAGES = 8  # of an identity


def rows(config, start, pids, cams, hidden=False):
    """A block of IMAGES rows of each identity, cameras in turn, domains as config.data.domains says."""
    count = pids * IMAGES
    pid = np.repeat(np.arange(pids), IMAGES).astype(np.int32)
    camid = (np.arange(count) % cams).astype(np.int32)
    sets = max(3, len(config.data.name.split("+")))
    domain = camid if config.data.domains == "camera" else (pid * sets // pids).astype(np.int32)
    if config.data.domains == "modality":
        domain = np.isin(camid, config.model.second_stem).astype(np.int32)
    return Rows(start, np.full(count, -1, np.int32) if hidden else pid, camid, domain, labels(config, count))


def attributes(config, pids):
    """A table by identity of the columns that the method's own fields describe, if there are such."""
    if not hasattr(getattr(config, config.method, None), "attributes"):
        return None
    rng, columns = np.random.default_rng(0), getattr(config, config.method).attributes
    table = np.stack([rng.integers(0, classes, pids) for _, classes, _ in columns], 1).astype(np.int32)
    table[::5] = -1  # some are not known
    return table


def labels(config, count):
    """What records have beside: body points, and sizes of pictures, for methods that draw them."""
    if not hasattr(getattr(config, config.method, None), "heat"):
        return {}
    rng, size = np.random.default_rng(0), np.float32([128, 64])
    places = rng.uniform(0, 1, (count, 18, 3)).astype(np.float32) * (64, 128, 1)
    return {"points": np.float32(places), "size": np.tile(size, (count, 1))}


def facts(config, pids=48, cams=6, axis_name=AXIS):
    """methods.Info of made-up rows, as the method's LABELS has them."""
    labels = methods.find(config.method).LABELS
    cams = max(cams, 5) if config.data.domains == "camera" else cams  # for methods that split the domains
    if config.data.domains == "modality":
        cams = 1 + max(config.model.second_stem)
    labelled = None if labels == "none" else rows(config, 0, pids, cams)
    unlabelled = None if labels == "all" else rows(config, pids * IMAGES if labelled else 0, pids, cams, True)
    return methods.Info(
        num_pids=pids if labelled else 0,
        num_cams=cams,
        axis_name=axis_name,
        num_images=pids * IMAGES,
        domains=labelled.ids_of_domains if labelled else (),
        labelled=labelled,
        unlabelled=unlabelled,
        attributes=attributes(config, pids) if labelled else None,
    )


def parts(method):
    """The parts of a stage up to the end of its first round, or all."""
    kept = []
    while (part := method.part(len(kept))) is not None:
        kept.append(part)
        if part.round or len(kept) > 8:
            break
    return kept


def labelled(memory):
    """A memory as numpy, with pseudo labels that are the identities."""
    memory = {k: np.zeros(v.shape, v.dtype) for k, v in memory.items()}
    if "labels" in memory:
        memory["labels"] = (np.arange(len(memory["labels"])) // IMAGES).astype(np.int32)
    return memory


def batches(part, state, data, seed=0):
    """{stream: batch} of random pictures for a part; state: a State whose memory is numpy."""
    rng, made = np.random.default_rng(seed), {}
    for name, stream in part.streams(state).items():
        chosen = stream.sampler.batch(seed)
        batch = stream.example(data, len(chosen))
        batch |= {k: np.asarray(v)[chosen] for k, v in stream.columns.items() if k in batch}
        batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
        if "flip" in batch:
            batch["flip"] = rng.random(batch["flip"].shape) < 0.5
        made[name] = batch
    return made
