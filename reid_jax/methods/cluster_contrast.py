"""Cluster contrast: unsupervised re-id with one momentum centroid per cluster (Dai et al., ACCV 2022).

Rounds of clustering (DBSCAN on Jaccard distances, outliers left out) and training against the centroids:
cross entropy of query . centroids / temperature, after which every query moves the centroid of its cluster.
"""

import functools
import logging

import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import batch as batches
from reid_jax.losses import contrast, identity, support
from reid_jax.methods import Method, Part, _rounds, _steps
from reid_jax.models import heads

log = logging.getLogger(__name__)

TITLE = "Cluster contrast"
FIELDS = dict(
    rounds=50,  # of clustering and training
    steps=200,  # of a round; 400 on MSMT17
    sampler="gallery",  # gallery (the others of a group by other cameras, data.cross_camera) | pk
    k1=30,  # Jaccard distance: length of the neighbour lists,
    k2=6,  # images a set is averaged over
    eps=0.6,  # DBSCAN: radius,
    min_samples=4,  # images within it, itself included, that make a core
    max_clusters=2000,  # places in the memory; a round that finds more keeps the largest clusters
    momentum=0.1,  # m of c <- m c + (1 - m) q
    temperature=0.05,
    hard=False,  # only the query least like its centroid moves it
    support=False,  # ISE (Zhang et al., CVPR 2022): support samples on the way to other clusters join,
    support_base=1.0,  # lambda: how far they go at the end of training
    support_weight=0.1,  # of the label-preserving loss,
    support_temperature=0.6,  # its temperature
)
METRICS = {"accuracy": "Accuracy on pseudo labels", "preserve": "Label-preserving loss of supports"}
LABELS = "none"


def reads_cameras(config):
    """By the sampler."""
    return config.cluster_contrast.sampler == "gallery" and _rounds.crosses_cameras(config)


CAMERAS = reads_cameras
_TRIES = 4  # radii tried when the one asked for finds less than two clusters


class ClusterContrast(Method):
    """The only stage: in each round one part, config.cluster_contrast.steps long."""

    def __init__(self, config, info):
        fields = config.cluster_contrast
        self.rounds = fields.rounds
        super().__init__(config, info)
        if not (fields.temperature > 0 and 0 <= fields.momentum <= 1):
            raise ConfigError(
                f"config.cluster_contrast.temperature is {fields.temperature} and momentum "
                f"{fields.momentum}; the one must lie above 0, the other between 0 and 1"
            )
        choice("cluster_contrast.sampler", fields.sampler, ("gallery", "pk"))
        within("cluster_contrast", fields, rounds=(1, None), steps=(1, None), max_clusters=(1, None))
        if fields.support and fields.support_temperature <= 0:
            raise ConfigError(
                f"config.cluster_contrast.support_temperature is {fields.support_temperature}; it must lie "
                "above 0"
            )
        _steps.check_dbscan("cluster_contrast", fields)
        self.network = heads.build(config.model, 0, info.axis_name)
        self.encoder = heads.encoder(self.network)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def measured(self, info):
        """An epoch of the schedule is a round."""
        steps = self.config.cluster_contrast.steps
        return info._replace(steps_per_epoch=steps, total_steps=steps * self.rounds)

    def init(self, key):
        """The memory is empty until the first round."""
        net = self.encoder.init(key, self.blank())
        size = self.encoder.apply(net, self.blank(), False)[0].test.shape[1]
        memory = {
            "centroids": jnp.zeros((self.config.cluster_contrast.max_clusters, size)),
            "used": jnp.int32(0),
            "labels": jnp.full(self.info.num_images, -1, jnp.int32),
        }
        return self.fresh({"net": net}, self.tx, memory)

    def part(self, i):
        if i >= self.rounds:
            return None
        streams, steps = functools.partial(self.streams, i=i), self.config.cluster_contrast.steps
        return Part("train", self.step, streams, steps, begin=self.begin, round=i + 1)

    def streams(self, state, i):
        """P groups of K images of the clusters of round i."""
        from reid_jax.data import streams

        seed, labels = _steps.part_seed(self.config.seed, i), state.memory["labels"]
        stream = {"gallery": streams.gallery, "pk": streams.pk}[self.config.cluster_contrast.sampler]
        return {"train": stream(self.info.unlabelled, self.config.data, seed, labels=labels)}

    def begin(self, state, features):
        """New clusters; the memory holds the unit mean of every cluster's unit features."""
        fields = self.config.cluster_contrast
        labels = find_labels(features, fields, progress=True)
        memory = {
            "centroids": contrast.centroids(features, labels, fields.max_clusters),
            "used": np.int32(labels.max(initial=-1) + 1),
            "labels": labels.astype(np.int32),
        }
        return state._replace(memory=memory)

    def step(self, state, batch):
        """One training step; pid i32[B]: clusters from 0 on.

        The queries of all devices move the memory, in the order of the global batch.
        """
        fields, memory, batch = self.config.cluster_contrast, state.memory, batch["train"]
        image, pid = self.view(batch), batch["pid"]

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, self.key(state))
            seen = self.queries(out.test, pid, state)
            scores = logits(jnp.concatenate(seen), memory, fields.temperature)
            value = identity.cross_entropy(scores, jnp.tile(pid, len(seen)))
            metrics = {"accuracy": jnp.mean(scores[: len(pid)].argmax(-1) == pid)}
            if fields.support:
                options = (pid, self.config.data.instances, fields.support_temperature, self.axis)
                metrics["preserve"] = support.preserving(*seen, *options)
                value += fields.support_weight * metrics["preserve"]
            return value, {"net": stats}, metrics | {"loss": value}, seen

        new, metrics, seen = _steps.descend(loss, state, self.tx, self.axis)
        f = jnp.concatenate([batches.gather(x, self.axis) for x in seen])
        pid = jnp.tile(batches.gather(pid, self.axis), len(seen))
        centroids = contrast.moved(memory["centroids"], f, pid, fields.momentum, fields.hard)
        new = new._replace(memory={**memory, "centroids": centroids})
        return new, metrics | {"lr": self.rate(state.step)}

    def queries(self, f, pid, state):
        """What is trained and moves the centroids: unit features f [B,D], and with ISE their supports."""
        fields, memory = self.config.cluster_contrast, state.memory
        if not fields.support:
            return [f]
        weight = support.progress(state.step / self.info.total_steps, fields.support_base)
        return [f, support.supports(f, pid, memory["centroids"], weight, memory["used"])]


def logits(f, memory, temperature):
    """Similarity of unit features f [B,D] to the centroids, over the temperature [B,M]; -inf: empty place."""
    scores = f @ lax.stop_gradient(memory["centroids"]).T / temperature
    return jnp.where(jnp.arange(scores.shape[1]) < memory["used"], scores, -jnp.inf)


# ---- labels, on the host


def find_labels(features, fields, progress=False) -> np.ndarray:
    """Labels i64[N] of features f[N,D]: DBSCAN on the Jaccard distance; -1: outlier. Memory is linear in N.

    fields: config.cluster_contrast. A radius that makes less than two clusters is widened (all outliers) or
    narrowed (one cluster), with a warning; in the end all images may be one cluster, of which nothing is
    learned. Of more clusters than max_clusters the largest are kept. Raises DataError for unusable features.
    """
    from reid_jax.eval import cluster  # scikit-learn is not needed for the steps

    distances = cluster.jaccard(features, k1=fields.k1, k2=fields.k2, progress=progress)
    eps, labels = fields.eps, cluster.dbscan(distances, fields.eps, fields.min_samples)
    for _ in range(_TRIES):
        if labels.max() >= 1:
            break
        wider = labels.max() < 0
        eps = (1 + eps) / 2 if wider else eps / 2
        log.warning("DBSCAN finds %s; trying eps %.3g", "outliers only" if wider else "one cluster", eps)
        labels = cluster.dbscan(distances, eps, fields.min_samples)
    if labels.max() < 0:
        log.warning("DBSCAN finds no cluster at any radius: all images are taken as one; nothing is learned")
        return np.zeros(len(labels), np.int64)
    return cluster.largest(labels, fields.max_clusters, "config.cluster_contrast.max_clusters")


STAGES = {"train": ClusterContrast}
