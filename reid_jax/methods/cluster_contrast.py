"""Cluster contrast: unsupervised re-id with one momentum centroid per cluster (Dai et al., ACCV 2022).

Rounds of clustering (DBSCAN on Jaccard distances, outliers left out) and training against the centroids:
cross entropy of query . centroids / temperature, after which every query moves the centroid of its cluster.
"""

import functools
import logging

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.errors import ConfigError, DataError
from reid_jax.fields import choice
from reid_jax.losses import batch as batches
from reid_jax.losses import contrast, identity
from reid_jax.methods import Method, Part, _steps
from reid_jax.models import heads
from reid_jax.models.layers import BatchNorm

log = logging.getLogger(__name__)

TITLE = "Cluster contrast"
FIELDS = dict(
    rounds=50,  # of clustering and training
    steps=200,  # of a round; 400 on MSMT17
    k1=30,  # Jaccard distance: length of the neighbour lists,
    k2=6,  # images a set is averaged over
    eps=0.6,  # DBSCAN: radius,
    min_samples=4,  # images within it, itself included, that make a core
    max_clusters=2000,  # places in the memory; a round that finds more keeps the largest clusters
    momentum=0.1,  # m of c <- m c + (1 - m) q
    temperature=0.05,
    hard=False,  # only the query least like its centroid moves it
    pool="gem",  # gem | avg | max
    gem_p=3.0,  # exponent that the pooling starts with; it is trained
)
METRICS = {"accuracy": "Accuracy on pseudo labels"}
LABELS = "none"
_TRIES = 4  # radii tried when the one asked for finds less than two clusters


class ContrastNet(nn.Module):
    """Backbone, pooling, norm with frozen bias: images [B,H,W,3] -> unit features [B,D].

    pool 'gem': (mean of max(x, 1e-6)^p)^(1/p) over the map with a trained p; 'avg', 'max'.
    """

    base: nn.Module
    pool: str = "gem"
    gem_p: float = 3.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        y = self.base(x, train)
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        if y.ndim == 4 and self.pool == "gem":
            p = self.param("gem_p", nn.initializers.constant(self.gem_p), (1,), jnp.float32)
            y = (jnp.maximum(y, 1e-6) ** p).mean((1, 2)) ** (1 / p)
        elif y.ndim == 4:
            y = heads.spatial_pool(y, self.pool)
        return _steps.unit(BatchNorm(axis_name=self.axis_name, frozen_bias=True, name="neck")(y, train))


class ClusterContrast(Method):
    """The only stage: in each round one part, config.cluster_contrast.steps long."""

    def __init__(self, config, info):
        fields = config.cluster_contrast
        self.rounds = fields.rounds
        super().__init__(config, info)
        choice("cluster_contrast.pool", fields.pool, ("gem", "avg", "max"))
        if not (fields.temperature > 0 and 0 <= fields.momentum <= 1):
            raise ConfigError(
                f"config.cluster_contrast.temperature is {fields.temperature} and momentum {fields.momentum}; the "
                "one must lie above 0, the other between 0 and 1"
            )
        base = heads.trunk(config.model, info.axis_name)
        self.network = ContrastNet(base, fields.pool, fields.gem_p, base.axis_name)
        self.tx = {"net": _steps.adam(config.optim, self.info, mask=_trained)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def measured(self, info):
        """An epoch of the schedule is a round."""
        steps = self.config.cluster_contrast.steps
        return info._replace(steps_per_epoch=steps, total_steps=steps * self.rounds)

    def init(self, key):
        """The memory is empty until the first round."""
        image = self.blank()
        net = dict(self.network.init(key, image, False))
        size = self.network.apply(net, image, False).shape[1]
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
        """P x K batches of the clusters of round i."""
        from reid_jax.data import streams

        seed, labels = _steps.part_seed(self.config.seed, i), state.memory["labels"]
        return {"train": streams.pk(self.info.unlabelled, self.config.data, seed, labels=labels)}

    def begin(self, state, features):
        """New clusters; the memory holds the unit mean of every cluster's unit features."""
        labels = find_labels(features, self.config.cluster_contrast, progress=True)
        centroids, used = self.centroids(features, labels)
        memory = {"centroids": centroids, "used": np.int32(used), "labels": labels.astype(np.int32)}
        return state._replace(memory=memory)

    def centroids(self, features, labels):
        """(f32[max_clusters,D], number of clusters) of features f[N,D] with labels i[N] (-1: left out)."""
        places = self.config.cluster_contrast.max_clusters
        used = int(labels.max(initial=-1)) + 1
        if not 0 < used <= places:
            raise DataError(
                f"{used} clusters; the memory holds from 1 to {places} (config.cluster_contrast.max_clusters)"
            )
        return contrast.centroids(features, labels, places), used

    def step(self, state, batch):
        """One training step; pid i32[B]: clusters from 0 on.

        The queries of all devices move the memory, in the order of the global batch.
        """
        fields, memory, batch = self.config.cluster_contrast, state.memory, batch["train"]
        image, pid = self.view(batch), batch["pid"]

        def loss(nets):
            f, changed = self.network.apply(nets["net"], image, True, mutable=["batch_stats"])
            scores = logits(f, memory, fields.temperature)
            value = identity.cross_entropy(scores, pid)
            metrics = {"loss": value, "accuracy": jnp.mean(scores.argmax(-1) == pid)}
            return value, {"net": changed["batch_stats"]}, metrics, f

        new, metrics, f = self.descend(loss, state, self.tx)
        f, pid = (batches.gather(x, self.axis) for x in (f, pid))
        centroids = contrast.moved(memory["centroids"], f, pid, fields.momentum, fields.hard)
        new = new._replace(memory={**memory, "centroids": centroids})
        return new, metrics | {"lr": self.rate(state.step)}

    def embed(self, state, image, net):
        """Test features at unit length."""
        return self.network.apply(state.nets[net], self.plain(image), False)


def _trained(params):
    """All but the frozen bias of the neck."""
    mask = {name: True for name in params}
    return {**mask, "neck": {**{name: True for name in params["neck"]}, "bias": False}}


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
