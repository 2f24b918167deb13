"""Cluster contrast: unsupervised re-id with one momentum centroid per cluster (Dai et al., ACCV 2022).

Rounds of clustering (DBSCAN on Jaccard distances, outliers left out) and training against the centroids:
cross entropy of query . centroids / temperature, after which every query moves the centroid of its cluster.
`step` is the training step, `find_labels` clusters, `begin` prepares a round.
"""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.config import choice, namespace
from reid_jax.errors import ConfigError, DataError
from reid_jax.losses import batch as batches
from reid_jax.losses import identity
from reid_jax.methods import Method, Phase, State, _optim, parts
from reid_jax.models import heads

log = logging.getLogger(__name__)

_TRIES = 4  # radii tried when the one asked for finds less than two clusters


class Models(NamedTuple):
    """The network and its optimiser."""

    net: Any  # heads.ReIDNet with head "contrast"
    tx: Any
    lr: Any  # schedule, of the step


def build(config, info):
    """Models of config.model, config.optim (Adam, an epoch of its milestones being a round) and
    config.cluster_contrast.
    """
    own = config.cluster_contrast
    info = info._replace(steps_per_epoch=own.steps, total_steps=own.steps * own.rounds)
    choice("cluster_contrast.pool", own.pool, ("gem", "avg", "max"))
    if not (own.temperature > 0 and 0 <= own.momentum <= 1):
        raise ConfigError(
            f"config.cluster_contrast.temperature is {own.temperature} and momentum {own.momentum}; the one "
            "must lie above 0, the other between 0 and 1"
        )
    net = heads.build(_model(config), 0, info.axis_name)
    tx = parts.adam(config.optim, info, mask=_optim.trained(net.frozen))
    return Models(net, tx, parts.schedule(config.optim, info, config.optim.lr))


def _model(config):
    """config.model with the head of this method and its pooling, where the backbone has none of its own."""
    own, fields = config.cluster_contrast, dict(vars(config.model))
    pool = own.pool if fields["pool"] == "auto" and fields["backbone"] != "narrow" else fields["pool"]
    return namespace(fields | dict(head="contrast", pool=pool, gem_p=own.gem_p))


def init_state(key, image, *, models, config):
    """Fresh State for images [B,H,W,3]; the memory is empty until the first `begin`."""
    net = dict(models.net.init(key, image[:1], False))
    size = jax.eval_shape(lambda: models.net.apply(net, image[:1], False)).test.shape[1]
    memory = {"centroids": jnp.zeros((config.cluster_contrast.max_clusters, size)), "used": jnp.int32(0)}
    return State(jnp.int32(0), {"net": net, "memory": memory}, {"net": models.tx.init(net["params"])})


# ---- labels, on the host


def find_labels(features, config, progress=False) -> np.ndarray:
    """Labels i64[N] of features f[N,D]: DBSCAN on the Jaccard distance; -1: outlier. Memory is linear in N.

    A radius that makes less than two clusters is widened (all outliers) or narrowed (one cluster), with a
    warning; in the end all images may be one cluster, of which nothing is learned. Of more clusters than
    max_clusters the largest are kept. Raises DataError for unusable features.
    """
    from reid_jax.eval import cluster  # scikit-learn is not needed for the steps

    own = config.cluster_contrast
    distances = cluster.jaccard(features, k1=own.k1, k2=own.k2, progress=progress)
    eps, labels = own.eps, cluster.dbscan(distances, own.eps, own.min_samples)
    for _ in range(_TRIES):
        if labels.max() >= 1:
            break
        wider = labels.max() < 0
        eps = (1 + eps) / 2 if wider else eps / 2
        log.warning("DBSCAN finds %s; trying eps %.3g", "outliers only" if wider else "one cluster", eps)
        labels = cluster.dbscan(distances, eps, own.min_samples)
    if labels.max() < 0:
        log.warning("DBSCAN finds no cluster at any radius: all images are taken as one; nothing is learned")
        return np.zeros(len(labels), np.int64)
    return _largest(labels, own.max_clusters)


def _largest(labels, most):
    """Labels from 0 without gaps of the `most` largest clusters; -1 for all other images."""
    sizes = np.bincount(labels[labels >= 0])
    if len(sizes) <= most:
        return labels
    log.warning(
        "%d clusters, of which the %d largest are kept (config.cluster_contrast.max_clusters)",
        len(sizes),
        most,
    )
    number = np.full(len(sizes) + 1, -1)  # the last place is that of -1
    number[np.sort(np.argsort(-sizes, kind="stable")[:most])] = np.arange(most)
    return number[labels]


def begin(state, features, labels, *, models):
    """State for a round: the memory holds the unit mean of every cluster's unit features.

    features f[N,D], labels i[N] (-1: left out), host arrays. The network and its optimiser go on.
    Raises DataError when no image has a label or there are more clusters than places.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    centroids = np.zeros(state.nets["memory"]["centroids"].shape, np.float32)
    used = int(labels.max(initial=-1)) + 1
    if not 0 < used <= len(centroids):
        raise DataError(
            f"{used} clusters; the memory holds from 1 to {len(centroids)} "
            "(config.cluster_contrast.max_clusters)"
        )
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    np.add.at(centroids, labels[labels >= 0], unit[labels >= 0])
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    memory = {"centroids": jnp.asarray(centroids), "used": jnp.int32(used)}
    return state._replace(nets={**state.nets, "memory": memory})


# ---- loss, memory, step


def logits(f, memory, temperature):
    """Similarity of unit features f [B,D] to the centroids, over the temperature [B,M]; -inf: empty place."""
    found = f @ lax.stop_gradient(memory["centroids"]).T / temperature
    return jnp.where(jnp.arange(found.shape[1]) < memory["used"], found, -jnp.inf)


def moved(centroids, f, labels, momentum, hard=False):
    """Centroids [M,D] after the unit features f [B,D] of clusters labels i32[B].

    c <- momentum c + (1 - momentum) q, brought to unit length, one query q after the other in their order;
    hard: only the query of each cluster that is least like its centroid (the first of equals).
    """
    rows = jnp.arange(len(f))
    if hard:
        likeness = (f * centroids[labels]).sum(1)
        rank = jnp.lexsort((rows, likeness))
        place = jnp.zeros_like(rank).at[rank].set(rows)
        first = jnp.full(len(centroids), len(f)).at[labels].min(place)
        counts = first[labels] == place
    else:
        counts = jnp.ones(len(f), bool)

    def one(i, c):
        new = momentum * c[labels[i]] + (1 - momentum) * f[i]
        new = new / jnp.maximum(jnp.linalg.norm(new), 1e-12)
        return c.at[labels[i]].set(jnp.where(counts[i], new, c[labels[i]]))

    return lax.fori_loop(0, len(f), one, centroids)


def step(state, batch, *, models, config, axis_name=None):
    """One training step: (State, batch) -> (State, {name: f32[]}); pid i32[B]: clusters from 0 on.

    The queries of all devices move the memory, in the order of the global batch.
    """
    own, net, memory = config.cluster_contrast, state.nets["net"], state.nets["memory"]
    image, pid = parts.view(config, batch, 0), batch["pid"]

    def loss(params):
        out, changed = models.net.apply({**net, "params": params}, image, True, mutable=["batch_stats"])
        f = out.test
        found = logits(f, memory, own.temperature)
        value = identity.cross_entropy(found, pid)
        metrics = {"loss": value, "accuracy": jnp.mean(found.argmax(-1) == pid)}
        return value, (changed["batch_stats"], f, metrics)

    (_, (stats, f, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(net["params"])
    grad, stats, metrics = parts.pmean((grad, stats, metrics), axis_name)
    params, opt = parts.apply_gradient(models.tx, grad, state.opt["net"], net["params"])
    f, pid = (batches.gather(x, axis_name) for x in (f, pid))
    memory = {**memory, "centroids": moved(memory["centroids"], f, pid, own.momentum, own.hard)}
    found = {"net": {"params": params, "batch_stats": stats}, "memory": memory}
    metrics["lr"] = models.lr(state.step)
    return state._replace(step=state.step + 1, nets=found, opt={"net": opt}), metrics


def embed(state, image, *, models, config):
    """Test features f32[B,D] of images u8[B,H,W,3], at unit length."""
    return models.net.apply(state.nets["net"], parts.plain(config, image), False).test


def stages(config, info):
    """The single stage "train", whose rounds have one phase; see reid_jax.methods."""
    models, own = build(config, info), config.cluster_contrast

    def init(key, batch):
        return init_state(key, parts.view(config, batch, 0), models=models, config=config)

    def refresh(features, camid, state, done):
        return find_labels(features, config, progress=True)

    def new(state, features, labels, camid, done):
        return begin(state, features, labels, models=models)

    def one(state, batch):
        return step(state, batch, models=models, config=config, axis_name=info.axis_name)

    def embed_(state, image, net):
        return embed(state, image, models=models, config=config)

    def warm_start(state, load):
        return state._replace(nets={**state.nets, "net": load("net", state.nets["net"])})

    phases = {"train": Phase(refresh, new, one, "labels", config.data, 1, own.steps)}
    return {"train": Method(init, None, embed_, ("net",), warm_start, phases=phases, rounds=own.rounds)}
