"""ICE: inter-instance contrastive encoding (Chen, Lagadec, Bremond, ICCV 2021), unsupervised, by its code.

A mean network labels the images in rounds of clustering. The network learns from the centres of the clusters,
from the hardest view of its cluster's images by the mean network, from how alike plain pictures of a batch
are to the mean network, and from the proxies that every camera has of a cluster.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import batch as batches
from reid_jax.losses import contrast, distill, identity
from reid_jax.methods import Method, Part, _rounds, _steps
from reid_jax.models import heads

TITLE = "ICE"
FIELDS = dict(
    rounds=40,  # of clustering and training
    steps=400,  # of a round
    # every_camera (the published code's: groups of one image of each camera, then others; data.cross_camera)
    # | gallery (the others of a group by other cameras than its first)
    sampler="every_camera",
    k1=30,  # Jaccard distance: length of the neighbour lists,
    k2=6,  # images a set is averaged over
    eps=0.55,  # DBSCAN: radius,
    min_samples=4,  # images within it, itself included, that make a core
    max_clusters=2000,  # places for centres; a round that finds more keeps the largest clusters
    max_proxies=0,  # places for proxies; 0: an image each, always enough
    alpha=0.999,  # EMA decay of the mean network
    centre_temperature=0.5,
    hard_temperature=0.1,  # of the hardest positive view against all negatives
    alike_temperature=0.4,  # of how alike the images of a batch are
    camera_temperature=0.07,
    hard_weight=1.0,
    alike_weight=10.0,
    camera_weight=0.5,  # 0: no cameras but in the sampler
    hard=50,  # nearest proxies of other clusters
    blur=0.5,  # probability that a view is blurred,
    blur_sigma=(0.1, 2.0),  # by a Gaussian of this width in pixels
)
METRICS = {
    "proxy_ce": "Cross entropy on centres",
    "hard_instance": "Hardest view of the cluster",
    "consistency": "Likeness within the batch",
    "camera": "Loss between cameras",
    "accuracy": "Accuracy on pseudo labels",
}
LABELS = "none"


def reads_cameras(config):
    """By the sampler, and by the loss between cameras."""
    return _rounds.crosses_cameras(config) or config.ice.camera_weight > 0


CAMERAS = reads_cameras


class Ice(Method):
    """The only stage: a part in each round."""

    nets = ("mean", "net")

    def __init__(self, config, info):
        fields, self.rounds = config.ice, config.ice.rounds
        super().__init__(config, info)
        check(fields)
        self.proxies = fields.max_proxies or info.num_images
        self.network = heads.build(config.model, 0, info.axis_name)
        self.encoder = heads.encoder(self.network)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def measured(self, info):
        """An epoch of the schedule is a round."""
        steps = self.config.ice.steps
        return info._replace(steps_per_epoch=steps, total_steps=steps * self.rounds)

    def init(self, key):
        """The memory is empty until the first round."""
        net = self.encoder.init(key, self.blank())
        size = self.encoder.apply(net, self.blank(), False)[0].test.shape[1]
        unused = jnp.full(self.proxies, -1, jnp.int32)
        memory = {
            "labels": jnp.full(self.info.num_images, -1, jnp.int32),
            "used": jnp.int32(0),
            "centres": jnp.zeros((self.config.ice.max_clusters, size)),
            "proxies": jnp.zeros((self.proxies, size)),
            "proxy_cluster": unused,
            "proxy_camera": unused,
        }
        return self.fresh({"net": net, "mean": jax.tree.map(jnp.copy, net)}, self.tx, memory)

    def warm_start(self, state, load):
        nets = {"net": load("net", state.nets["net"], "mean")}
        return state._replace(nets=nets | {"mean": jax.tree.map(jnp.copy, nets["net"])})

    def part(self, i):
        streams, steps = functools.partial(self.streams, i=i), self.config.ice.steps
        part = Part("train", self.step, streams, steps, begin=self.begin, round=i + 1)
        return part if i < self.rounds else None

    def streams(self, state, i):
        """Groups of the clusters of round i."""
        from reid_jax.data import streams

        seed, labels = _steps.part_seed(self.config.seed, i), state.memory["labels"]
        stream = {"every_camera": streams.every_camera, "gallery": streams.gallery}[self.config.ice.sampler]
        return {"train": stream(self.info.unlabelled, self.config.data, seed, labels=labels)}

    def begin(self, state, features):
        """New clusters, centres (means of unit features) and proxies."""
        fields = self.config.ice
        f = np.asarray(_steps.unit(features), np.float32)
        labels = _rounds.clusters(f, fields, "ice")
        count = np.bincount(labels[labels >= 0], minlength=fields.max_clusters)
        centres = np.zeros((fields.max_clusters, f.shape[1]), np.float32)
        np.add.at(centres, labels[labels >= 0], f[labels >= 0])
        memory = {"labels": labels, "used": np.int32(labels.max(initial=-1) + 1)}
        memory |= {"centres": centres / np.maximum(count, 1)[:, None].astype(np.float32)}
        memory |= _rounds.proxies(f, labels, self.info.unlabelled.camid, self.proxies, "ice")
        return state._replace(memory=memory)

    def step(self, state, batch):
        """One training step; pid i32[B]: clusters from 0 on. The mean network sees view 1 and the picture."""
        batch, key = batch["train"], self.key(state)
        seen, stats = self.taught(state.nets["mean"], batch, key)

        def loss(nets):
            image = self.view(self.blurred(batch, key, 0), 0)
            out, net_stats = self.encoder.apply(nets["net"], image, True, key)
            terms, scores = self.losses(out.after_bn[0], seen, batch, state.memory)
            value = sum(terms.values())
            metrics = terms | {"loss": value, "accuracy": jnp.mean(scores.argmax(-1) == batch["pid"])}
            return value, {"net": net_stats}, metrics, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        params = _steps.ema(state.nets["mean"]["params"], new.nets["net"]["params"], self.config.ice.alpha)
        new.nets["mean"] = {"params": params, "batch_stats": _steps.pmean(stats, self.axis)}
        return new, metrics | {"lr": self.rate(state.step)}

    def taught(self, mean, batch, key):
        """((unit features of view 1, of the plain picture), batch_stats after both) of the mean network."""
        image = self.view(self.blurred(batch, key, 1), 1)
        other, stats = self.encoder.apply(mean, image, True, key)
        variables = {**mean, "batch_stats": stats}
        weak, stats = self.encoder.apply(variables, self.plain(batch["image"]), True, key)
        return (other.after_bn[0], weak.after_bn[0]), stats

    def blurred(self, batch, key, view):
        """The batch with its pictures blurred for one view, the same ones on any number of devices."""
        fields, image = self.config.ice, batch["image"]
        if not fields.blur:
            return batch
        rows = batches.first_row(image, self.axis) + jnp.arange(len(image))
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, view), row))(rows)
        chosen, sigma = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys).T
        low, high = fields.blur_sigma
        soft = gaussian(jnp.asarray(image, jnp.float32), low + (high - low) * sigma, math.ceil(3 * high))
        chosen = (chosen < fields.blur).reshape(-1, *[1] * (image.ndim - 1))
        return {**batch, "image": jnp.where(chosen, soft, image)}

    def losses(self, f, seen, batch, memory):
        """({term: weighted f[]}, similarities to the centres f[B,M]) of the network's features f[B,D]."""
        fields, pid = self.config.ice, batch["pid"]
        q, (k, w) = _steps.unit(f), map(_steps.unit, seen)
        terms, scores = {}, f @ memory["centres"].T.astype(f.dtype) / fields.centre_temperature
        smooth = self.config.loss.label_smooth
        ce = identity.cross_entropy_used(scores, pid, memory["used"], label_smooth=smooth)
        hard, alike = instances(q, k, w, pid, fields, self.axis)
        terms |= {"proxy_ce": ce, "hard_instance": fields.hard_weight * hard}
        terms["consistency"] = fields.alike_weight * alike
        if fields.camera_weight:
            terms["camera"] = fields.camera_weight * cameras(q, batch, memory, fields, self.axis)
        scores = jnp.where(jnp.arange(scores.shape[1]) < memory["used"], scores, -jnp.inf)
        return terms, scores


def check(fields):
    """ConfigError for fields of config.ice that cannot be."""
    within("ice", fields, rounds=(1, None), steps=(1, None), max_clusters=(1, None), max_proxies=(0, None))
    within("ice", fields, alpha=(0, 1), blur=(0, 1), hard=(1, None), camera_weight=(0, None))
    choice("ice.sampler", fields.sampler, ("every_camera", "gallery"))
    _steps.check_dbscan("ice", fields)
    for name in ("centre", "hard", "alike", "camera"):
        if getattr(fields, f"{name}_temperature") <= 0:
            raise ConfigError(f"config.ice.{name}_temperature must lie above 0")


def instances(q, k, w, pid, fields, axis_name=None):
    """(hardest view of the cluster against all others, how unlike likenesses of the batch are): f[], f[].

    Unit features [B,D]: q of the network, k and w of the mean network on view 1 and on the plain picture.
    """
    k, w = lax.stop_gradient((k, w))
    others, plains, pids = (batches.gather(x, axis_name) for x in (k, w, pid))
    scores, same = q @ others.T, pid[:, None] == pids
    least = jnp.where(same, scores, jnp.inf).min(1) / fields.hard_temperature
    negatives = jnp.where(same, -jnp.inf, scores / fields.hard_temperature)
    hard = jax.nn.logsumexp(jnp.concatenate([least[:, None], negatives], 1), 1) - least
    wanted, actual = (x / fields.alike_temperature for x in (w @ plains.T, scores))
    return hard.mean(), distill.kl(wanted, actual)


def cameras(q, batch, memory, fields, axis_name=None):
    """CAP's loss between cameras of unit features q f[B,D] against the fixed proxies."""
    scores = q @ memory["proxies"].T / fields.camera_temperature
    positive = memory["proxy_cluster"] == batch["pid"][:, None]
    negative = ~positive & (memory["proxy_cluster"] >= 0)
    values, camid = contrast.inter_camera(scores, positive, negative, fields.hard), batch["camid"]
    everywhere = batches.gather(camid, axis_name)
    share = len(everywhere) / len(q) / (camid[:, None] == everywhere).sum(1)  # devices are averaged
    return (share * values).sum()


def gaussian(image, sigma, radius):
    """Pictures f[B,...,H,W,3] blurred by widths sigma f[B], over 2 radius + 1 pixels; edges repeated."""
    offset = jnp.arange(-radius, radius + 1)
    kernel = jax.nn.softmax(-(offset**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel.T.reshape(len(offset), -1, *[1] * (image.ndim - 1))
    for axis in (-3, -2):
        rows = jnp.arange(image.shape[axis])
        near = [jnp.take(image, jnp.clip(rows + o, 0, rows[-1]), axis) for o in range(-radius, radius + 1)]
        image = sum(k * x for k, x in zip(kernel, near, strict=True))
    return image


STAGES = {"train": Ice}
