"""PPLR: part-based pseudo label refinement (Cho et al., CVPR 2022), unsupervised, by its code.

Rounds of clustering by the global feature. How far an image's neighbours by the global feature and by a
part's agree says how much the part is trusted: the parts' predictions refine the global label, and where a
part disagrees its label is smoothed. With cameras, fixed proxies of every camera join.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import sparse

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import contrast, identity, triplet
from reid_jax.methods import Method, Part, _rounds, _steps
from reid_jax.models import heads

TITLE = "PPLR"
FIELDS = dict(
    rounds=50,  # of clustering and training
    steps=400,  # of a round
    k1=30,  # Jaccard distance: length of the neighbour lists,
    k2=6,  # images a set is averaged over
    eps=0.5,  # DBSCAN: radius; 0.4 with cameras,
    min_samples=4,  # images within it, itself included, that make a core
    max_clusters=3000,  # places in the classifiers; a round that finds more keeps the largest clusters
    neighbours=20,  # of an image, by the global and by a part's feature, that are compared
    beta=0.5,  # share of the cluster's label in the refined one
    smooth_rounds=5,  # first rounds, in which the parts' labels are smoothed by label_smooth alone
    cameras=False,  # whether proxies of every camera join
    max_proxies=0,  # places for them; 0: an image each, always enough
    camera_weight=0.5,
    camera_temperature=0.07,
    hard=50,  # nearest proxies of other clusters
)
METRICS = {
    "refined": "Cross entropy on refined labels",
    "triplet": "Softmax triplet",
    "parts": "Smoothed cross entropy of parts",
    "camera": "Loss between cameras",
    "accuracy": "Accuracy on pseudo labels",
}
LABELS = "none"


def reads_cameras(config):
    """By the sampler, and by proxies of cameras."""
    return _rounds.crosses_cameras(config) or config.pplr.cameras


CAMERAS = reads_cameras


class Pplr(Method):
    """The only stage: a part in each round. Network "all" gives the global and the parts' features."""

    nets = ("net", "all")

    def __init__(self, config, info):
        fields, self.rounds = config.pplr, config.pplr.rounds
        super().__init__(config, info)
        check(fields)
        choice("model.head", config.model.head, ("necks",))
        self.places = (fields.max_proxies or info.num_images) if fields.cameras else 0
        self.network = heads.build(config.model, fields.max_clusters, info.axis_name)
        self.encoder = heads.encoder(self.network)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def measured(self, info):
        """An epoch of the schedule is a round."""
        steps = self.config.pplr.steps
        return info._replace(steps_per_epoch=steps, total_steps=steps * self.rounds)

    def init(self, key):
        """The memory is empty until the first round; proxies [1 + parts, places, D]."""
        net, parts = self.encoder.init(key, self.blank()), self.network.top.parts
        size = self.encoder.apply(net, self.blank(), False)[0].test.shape[1]
        count = self.info.num_images
        memory = {"labels": jnp.full(count, -1, jnp.int32), "used": jnp.int32(0), "round": jnp.int32(0)}
        memory["agreement"] = jnp.zeros((count, parts))
        if self.places:
            unused = jnp.full(self.places, -1, jnp.int32)
            memory |= {"proxy_cluster": unused, "proxy_camera": unused}
            memory["proxies"] = jnp.zeros((parts + 1, self.places, size))
        return self.fresh({"net": net}, self.tx, memory)

    def part(self, i):
        if i >= self.rounds:
            return None
        streams, begin = functools.partial(self.streams, i=i), functools.partial(self.begin, i=i)
        steps = self.config.pplr.steps
        return Part("train", self.step, streams, steps, begin=begin, features=("all",), round=i + 1)

    def streams(self, state, i):
        """Groups of the clusters of round i."""
        from reid_jax.data import streams

        seed, labels = _steps.part_seed(self.config.seed, i), state.memory["labels"]
        options = dict(labels=labels, views=("strong",))
        return {"train": streams.gallery(self.info.unlabelled, self.config.data, seed, **options)}

    def begin(self, state, features, i):
        """New clusters, agreements, proxies; every classifier holds the unit means of its features."""
        fields, camid = self.config.pplr, self.info.unlabelled.camid
        apart = np.split(features["all"], self.network.top.parts + 1, 1)
        labels = _rounds.clusters(apart[0], fields, "pplr")
        used, nets = labels.max(initial=-1) + 1, jax.tree.map(np.array, state.nets)
        for name, f in zip(self.network.top.classifiers, apart, strict=True):
            nets["net"]["params"][name]["kernel"][:, :used] = contrast.centroids(f, labels, used).T
        memory = {"labels": labels, "used": np.int32(used), "round": np.int32(i)}
        memory["agreement"] = agreement(apart[0], apart[1:], fields.neighbours)
        if self.places:
            proxies = [_rounds.proxies(f, labels, camid, self.places, "pplr") for f in apart]
            memory |= proxies[0] | {"proxies": np.stack([x["proxies"] for x in proxies])}
        return state._replace(nets=nets, memory=memory)

    def step(self, state, batch):
        """One training step; pid i32[B]: clusters from 0 on, index i32[B]: rows of the set."""
        batch, key = batch["train"], self.key(state)
        image = self.view(batch)

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, key)
            terms = self.losses(out, batch, state.memory)
            value, right = sum(terms.values()), known(out.logits[0], state.memory).argmax(-1) == batch["pid"]
            return value, {"net": stats}, terms | {"loss": value, "accuracy": jnp.mean(right)}, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def losses(self, out, batch, memory):
        """{term: f[]} of a batch; out: Branches, the global one first."""
        fields, pid, used = self.config.pplr, batch["pid"], memory["used"]
        trust, parts = memory["agreement"][batch["index"]], jnp.stack(out.logits[1:])
        plain = [
            identity.cross_entropy_used(x, pid, used, label_smooth=self.config.loss.label_smooth)
            for x in out.logits[1:]
        ]
        first = memory["round"] < fields.smooth_rounds
        terms = {
            "refined": refined(out.logits[0], parts, trust, pid, used, fields.beta),
            "triplet": triplet.batch_hard(
                out.after_bn[0], pid, distance="softmax", margin=0.0, axis_name=self.axis
            )[0],
            "parts": jnp.where(first, sum(plain) / len(plain), smoothed(parts, trust, pid, used)),
        }
        if self.places:
            units = [_steps.unit(f) for f in out.after_bn]
            told = [
                cameras(f, memory | {"proxies": proxies}, pid, batch["camid"], fields)
                for f, proxies in zip(units, memory["proxies"], strict=True)
            ]
            terms["camera"] = fields.camera_weight * (told[0] + sum(told[1:]) / len(told[1:]))
        return terms

    def embed(self, state, image, net):
        if net == "net":
            return super().embed(state, image, net)
        out, _ = self.encoder.apply(state.nets["net"], self.plain(image), False)
        return jnp.concatenate(out.after_bn, 1)


def check(fields):
    """ConfigError for fields of config.pplr that cannot be."""
    within("pplr", fields, rounds=(1, None), steps=(1, None), max_clusters=(1, None), max_proxies=(0, None))
    within("pplr", fields, neighbours=(1, None), beta=(0, 1), smooth_rounds=(0, None), hard=(1, None))
    _steps.check_dbscan("pplr", fields)
    if fields.camera_temperature <= 0:
        raise ConfigError(
            f"config.pplr.camera_temperature is {fields.camera_temperature}; it must lie above 0"
        )


def known(logits, memory):
    """Logits f[B,K] with -inf for classes not in use."""
    return jnp.where(jnp.arange(logits.shape[1]) < memory["used"], logits, -jnp.inf)


def agreement(features, parts, k):
    """How far an image's k nearest others by the global and by a part's feature are the same: f32[N,P].

    features f[N,D], parts: P arrays f[N,D]; intersection over union. Nothing is N x N.
    """
    by_global = near(features, k)
    shared = np.stack([np.asarray(by_global.multiply(near(part, k)).sum(1)).ravel() for part in parts], 1)
    sizes = np.asarray(by_global.sum(1))
    return (shared / (2 * sizes - shared)).astype(np.float32)


def near(features, k):
    """The k nearest other images of every image as ones of a sparse f32[N,N]."""
    from reid_jax.eval import neighbours

    index = neighbours.search(features, k + 1).index
    itself = index == np.arange(len(index))[:, None]
    itself[~itself.any(1), -1] = True  # copies of it take its place
    rows, columns = np.nonzero(~itself)[0], index[~itself]
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(index),) * 2)


def refined(logits, parts, agreement, label, used, beta):
    """Cross entropy of logits f[B,K] against labels that the parts' predictions f[P,B,K] refine, f[]."""
    said = jnp.exp(identity.log_softmax_used(parts, used)) * (jnp.arange(logits.shape[1]) < used)
    said = jnp.einsum("bp,pbk->bk", jax.nn.softmax(agreement), said)
    target = beta * jax.nn.one_hot(label, logits.shape[1], dtype=said.dtype) + (1 - beta) * said
    return -(lax.stop_gradient(target) * identity.log_softmax_used(logits, used)).sum(1).mean()


def smoothed(parts, agreement, label, used):
    """Mean over parts f[P,B,K] of a CE + (1 - a) KL(uniform || prediction), f[]; a: agreement f[B,P]."""
    log_p, trust = identity.log_softmax_used(parts, used), agreement.T
    ce = -jnp.take_along_axis(log_p, label[None, :, None], 2)[..., 0]
    away = -jnp.log(used) - log_p.sum(2) / used
    return (trust * ce + (1 - trust) * away).mean()


def cameras(f, memory, label, camid, fields):
    """Unit features f[B,D] against the fixed proxies: those of their cluster by other cameras, f[]."""
    scores = f @ memory["proxies"].T / fields.camera_temperature
    same = memory["proxy_cluster"] == label[:, None]
    negative = ~same & (memory["proxy_cluster"] >= 0)
    positive = same & (memory["proxy_camera"] != camid[:, None])
    return contrast.inter_camera(scores, positive, negative, fields.hard).mean()


STAGES = {"train": Pplr}
