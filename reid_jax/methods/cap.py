"""CAP: camera-aware proxies (Wang et al., AAAI 2021), unsupervised; its published code's rules.

Rounds of clustering (DBSCAN on Jaccard distances, outliers left out). What a camera shows of a cluster is a
proxy, the unit mean of its features. A feature is told from the other proxies of its camera, later also drawn
to all proxies of its cluster against the nearest others, and then moves its own proxy.
"""

import functools
import logging

import jax.numpy as jnp
import numpy as np
import optax

from reid_jax.errors import ConfigError, DataError
from reid_jax.fields import within
from reid_jax.losses import batch as batches
from reid_jax.losses import contrast
from reid_jax.methods import Method, Part, _steps
from reid_jax.models import heads

log = logging.getLogger(__name__)

TITLE = "CAP"
FIELDS = dict(
    rounds=50,  # of clustering and of as many steps as labelled images fill batches
    k1=20,  # Jaccard distance: length of the neighbour lists,
    k2=6,  # images a set is averaged over
    eps=0.5,  # DBSCAN: radius,
    min_samples=4,  # images within it, itself included, that make a core
    max_proxies=0,  # places in the memory, the largest clusters are kept; 0: an image each, always enough
    momentum=0.2,  # m of v <- m v + (1 - m) f
    temperature=0.07,
    intra=True,  # the loss within cameras
    inter_from=5,  # the round, from 0, in which the loss between cameras begins; -1: never
    inter_weight=0.5,
    hard=50,  # nearest proxies of other clusters it sees
    camera_sampler=True,  # batches by proxies; False: by clusters, over several cameras
)
METRICS = {"intra": "Loss within cameras", "inter": "Loss between cameras", "accuracy": "Accuracy in camera"}
LABELS = "none"
CAMERAS = True


class Cap(Method):
    """The only stage: a part in each round, as long as its labels make it."""

    def __init__(self, config, info):
        self.rounds = config.cap.rounds
        super().__init__(config, info)
        check(config.cap)
        self.places = config.cap.max_proxies or info.num_images
        self.network = heads.build(config.model, 0, info.axis_name)
        self.encoder = heads.encoder(self.network)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def measured(self, info):
        """An epoch of the schedule is a round; here as long as it would be if all images had labels."""
        steps = max(info.num_images // (self.config.data.ids * self.config.data.instances), 1)
        return info._replace(steps_per_epoch=steps, total_steps=steps * self.rounds)

    def init(self, key):
        """The memory is empty until the first round."""
        net = self.encoder.init(key, self.blank())
        size = self.encoder.apply(net, self.blank(), False)[0].test.shape[1]
        unused, nothing = jnp.full(self.places, -1, jnp.int32), jnp.full(self.info.num_images, -1, jnp.int32)
        memory = {"proxies": jnp.zeros((self.places, size)), "cluster": unused, "camera": unused}
        memory |= {"place": nothing, "labels": nothing, "round": jnp.int32(0), "begun": jnp.int32(0)}
        return self.fresh({"net": net}, self.tx, memory)

    def part(self, i):
        if i >= self.rounds:
            return None
        streams, begin = functools.partial(self.streams, i=i), functools.partial(self.begin, i=i)
        return Part("train", self.step, streams, self.steps, begin=begin, round=i + 1)

    def steps(self, state):
        """Batches that the labelled images fill."""
        labelled = np.count_nonzero(state.memory["labels"] >= 0)
        return int(labelled) // (self.config.data.ids * self.config.data.instances)

    def streams(self, state, i):
        """P proxies x K images of round i; DataError where nothing can be learned of the labels."""
        from reid_jax.data import streams

        labels, rows = state.memory["labels"], self.info.unlabelled
        if labels.max(initial=-1) < 1:
            raise DataError(f"{labels.max(initial=-1) + 1} clusters: change config.cap.eps")
        seed = _steps.part_seed(self.config.seed, i)
        if not self.config.cap.camera_sampler:
            return {"train": streams.gallery(rows, self.config.data, seed, labels=labels)}
        _, _, place = places_of(labels, rows.camid)
        return {"train": streams.uniform(rows, self.config.data, seed, labels=labels, groups=place)}

    def begin(self, state, features, i):
        """New clusters and proxies; the learning rate is that of round i, whatever the earlier ones took."""
        camid = self.info.unlabelled.camid
        labels = find_labels(features, self.config.cap, progress=True)
        labels = fitting(labels, camid, self.places)
        memory = proxies_of(features, labels, camid, self.places)
        memory |= {"labels": labels, "round": np.int32(i), "begun": np.asarray(state.step, np.int32)}
        opt = _steps.at_count(state.opt, i * self.info.steps_per_epoch)
        return state._replace(memory=memory, opt=opt)

    def step(self, state, batch):
        """One training step; index i32[B]: rows of the set. All devices' features move the proxies."""
        fields, memory, batch = self.config.cap, state.memory, batch["train"]
        image, place = self.view(batch), memory["place"][batch["index"]]
        late = (memory["round"] >= fields.inter_from) & (fields.inter_from >= 0)

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, self.key(state))
            intra, inter, right = losses(out.test, memory, place, fields, self.axis)
            value = fields.intra * intra + jnp.where(late, fields.inter_weight * inter, 0)
            metrics = {"loss": value, "intra": intra, "inter": inter, "accuracy": right}
            return value, {"net": stats}, metrics, out.test

        new, metrics, f = _steps.descend(loss, state, self.tx, self.axis)
        f, place = (batches.gather(x, self.axis) for x in (f, place))
        proxies = contrast.moved(memory["proxies"], f, place, fields.momentum)
        new = new._replace(memory={**memory, "proxies": proxies})
        count = memory["round"] * self.info.steps_per_epoch + state.step - memory["begun"]
        return new, metrics | {"lr": self.rate(count)}


def check(fields):
    """ConfigError for fields of config.cap that cannot be."""
    within("cap", fields, rounds=(1, None), max_proxies=(0, None), hard=(1, None), inter_from=(-1, None))
    _steps.check_dbscan("cap", fields)
    if not (fields.temperature > 0 and 0 <= fields.momentum <= 1):
        raise ConfigError(
            f"config.cap.temperature is {fields.temperature} and momentum {fields.momentum}; the one must "
            "lie above 0, the other between 0 and 1"
        )
    if not fields.intra and fields.inter_from:
        raise ConfigError(
            f"config.cap.intra is False and inter_from {fields.inter_from}: there are rounds without any "
            "loss; set config.cap.inter_from=0"
        )


def losses(f, memory, place, fields, axis_name=None):
    """(loss within cameras, loss between cameras, accuracy within cameras) of unit features f[B,D].

    place: i32[B] of their proxies. Losses are sums over the batch's cameras of their images' means; the mean
    over devices is that of the global batch.
    """
    scores, cluster = f @ memory["proxies"].T / fields.temperature, memory["cluster"]
    camera, used = memory["camera"][place], cluster >= 0
    intra_scores = jnp.where(used & (memory["camera"] == camera[:, None]), scores, -jnp.inf)
    intra = optax.softmax_cross_entropy_with_integer_labels(intra_scores, place)
    positive = used & (cluster == cluster[place][:, None])
    inter = contrast.inter_camera(scores, positive, used & ~positive, fields.hard)
    everywhere = batches.gather(camera, axis_name)
    weight = len(everywhere) / len(f) / (camera[:, None] == everywhere).sum(1)  # devices are averaged
    return (weight * intra).sum(), (weight * inter).sum(), jnp.mean(intra_scores.argmax(1) == place)


# ---- labels and proxies, on the host


def find_labels(features, fields, progress=False) -> np.ndarray:
    """Labels i32[N] of features f[N,D]: DBSCAN on the Jaccard distance; -1: outlier. fields: config.cap."""
    from reid_jax.eval import cluster  # scikit-learn is not needed for the steps

    distances = cluster.jaccard(features, k1=fields.k1, k2=fields.k2, progress=progress)
    return cluster.dbscan(distances, fields.eps, fields.min_samples).astype(np.int32)


def places_of(labels, camid):
    """(cluster i32[M], camera i32[M], place i32[N], -1: none): a place for each camera of each cluster.

    labels i[N] (-1: none), camid i[N] from 0. Places are sorted by camera, then by cluster.
    """
    clustered, clusters = labels >= 0, labels.max(initial=0) + 1
    keys, inverse = np.unique(np.where(clustered, camid * clusters + labels, -1), return_inverse=True)
    keys, place = (keys[1:], inverse - 1) if len(keys) and keys[0] < 0 else (keys, inverse)
    camera, cluster = np.divmod(keys, clusters)
    return cluster.astype(np.int32), camera.astype(np.int32), place.astype(np.int32)


def fitting(labels, camid, places):
    """Labels i32[N] of the largest clusters whose proxies all find a place; -1 for others, with a warning."""
    cluster, _, _ = places_of(labels, camid)
    if len(cluster) <= places:
        return labels
    order = np.argsort(-np.bincount(labels[labels >= 0]), kind="stable")
    largest = order[np.cumsum(np.bincount(cluster)[order]) <= places]
    text = "%d proxies; those of the %d largest clusters are kept (config.cap.max_proxies)"
    log.warning(text, len(cluster), len(largest))
    number = np.full(len(order) + 1, -1, np.int32)  # the last place is that of -1
    number[np.sort(largest)] = np.arange(len(largest))
    return number[labels]


def proxies_of(features, labels, camid, places):
    """The memory of labels i[N]: proxies f32[places,D], cluster, camera i32[places] (-1: unused), place."""
    cluster, camera, place = places_of(labels, camid)
    empty = (0, places - len(cluster))
    cluster, camera = (np.pad(x, empty, constant_values=-1) for x in (cluster, camera))
    proxies = contrast.centroids(features, place, places)
    return {"proxies": proxies, "cluster": cluster, "camera": camera, "place": place}


STAGES = {"train": Cap}
