"""MMT: mutual mean teaching for unsupervised domain adaptation (Ge, Chen, Li, ICLR 2020), by its code.

Two networks learn from the labelled source, each in a stage. Then they adapt to the target: its images are
clustered in rounds, and two students learn from the clusters and from each other's teacher, a moving average.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import contrast, distill, identity, triplet
from reid_jax.methods import Method, Part, _steps
from reid_jax.methods.baseline import Baseline
from reid_jax.models import heads

TITLE = "MMT"
FIELDS = dict(
    source_sees_target=True,  # images of the target move the running statistics of the source stages
    rounds=40,  # of clustering and training
    steps=400,  # of a round
    cluster="kmeans",  # kmeans | dbscan: how the target is labelled
    clusters=500,  # kmeans: their number; dbscan: places in the classifiers, the largest clusters are kept
    restarts=10,  # kmeans: times it is begun anew
    k1=30,  # dbscan on Jaccard distances: length of the neighbour lists,
    k2=6,  # images a set is averaged over,
    eps=0.6,  # radius,
    min_samples=4,  # images within it, itself included, that make a core
    soft_ce=0.5,  # a: weight of the teachers' predictions, against 1 - a of the labels
    soft_triplet=0.8,  # b: the same for the triplets
    alpha=0.999,  # EMA decay of the teachers
    ema_ramp=True,  # decay min(1 - 1 / (step + 1), alpha)
)
TERMS = {
    "ce": "Cross entropy on labels",
    "triplet": "Softmax triplet",
    "soft_ce": "Cross entropy to the other teacher",
    "soft_triplet": "Triplet to the other teacher",
}
METRICS = TERMS | {"accuracy": "Accuracy on labels"}
LABELS = "source"
PAIRS = (("student1", "teacher1"), ("student2", "teacher2"))
STUDENTS, TEACHERS = zip(*PAIRS, strict=True)
_NEVER = -1e4  # logit of a place without a cluster: probability 0, but a finite logarithm


class Source(Baseline):
    """Stages "source1" and "source2": the baseline on the source, without erasing."""

    def streams(self, state):
        """Groups of the source's identities; every image of the target once an epoch."""
        from reid_jax.data import streams

        if self.info.labelled is None or self.info.unlabelled is None:
            raise ConfigError("set config.data.name=SOURCE+TARGET and config.data.target=TARGET")
        rest = dict(data=self.config.data, seed=self.config.seed, views=("weak",))
        size = streams.sizes(self.config.data, "source")
        source = streams.gallery(self.info.labelled, **rest, **size)
        return {"source": source, "target": streams.shuffled(self.info.unlabelled, **rest)}

    def step(self, state, batch):
        """The baseline's on the source; a pass over the target then moves the running statistics alone."""
        new, metrics = super().step(state, {"train": batch["source"]})
        if not self.config.mmt.source_sees_target:
            return new, metrics
        net = state.nets["net"] | {"batch_stats": new.nets["net"]["batch_stats"]}
        _, stats = self.encoder.apply(net, self.view(batch["target"]), True, self.key(state))
        net = new.nets["net"] | {"batch_stats": _steps.pmean(stats, self.axis)}
        return new._replace(nets={"net": net}), metrics


class Adapt(Method):
    """Stage "adapt": a part in each round. Network "mean" is the sum of the teachers' unit features."""

    nets = ("mean", *TEACHERS, *STUDENTS)
    warm_start = None

    def __init__(self, config, info):
        self.rounds = config.mmt.rounds
        super().__init__(config, info)
        self.check_labels()
        choice("model.neck", config.model.neck, ("bnneck",))  # classifiers become centres, without bias
        self.network = heads.build(config.model, config.mmt.clusters, info.axis_name)
        self.encoder = heads.encoder(self.network)
        self.tx = {s: _steps.optimiser(config.optim, self.info, self.network) for s in STUDENTS}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def check_labels(self):
        """ConfigError for fields of which no labels can be made."""
        fields = self.config.mmt
        choice("mmt.cluster", fields.cluster, ("kmeans", "dbscan"))
        within("mmt", fields, rounds=(1, None), steps=(1, None), restarts=(1, None), clusters=(1, None))
        _steps.check_dbscan("mmt", fields)
        if self.info.unlabelled is not None:
            check_clusters(fields, self.info.num_images)

    def measured(self, info):
        """The schedule is that of a round, which each begins anew."""
        return info._replace(steps_per_epoch=self.config.mmt.steps, total_steps=self.config.mmt.steps)

    def init(self, key):
        nets = {}
        for (student, teacher), k in zip(PAIRS, jax.random.split(key), strict=True):
            nets[student] = self.encoder.init(k, self.blank())
            nets[teacher] = jax.tree.map(jnp.copy, nets[student])
        memory = {"labels": jnp.full(self.info.num_images, -1, jnp.int32), "used": jnp.int32(0)}
        return self.fresh(nets, self.tx, memory)

    def inherit(self, state, load, extract):
        """Students and teachers are the networks of the source stages, without their classifiers."""
        nets = dict(state.nets)
        for i, (student, teacher) in enumerate(PAIRS, 1):
            trained, fresh = load(f"source{i}", "net"), nets[student]["params"]["classifier"]
            nets[student] = {**trained, "params": {**trained["params"], "classifier": fresh}}
            nets[teacher] = jax.tree.map(jnp.copy, nets[student])
        return state._replace(nets=nets)

    def part(self, i):
        streams, steps = functools.partial(self.streams, i=i), self.config.mmt.steps
        part = Part("train", self.step, streams, steps, begin=self.begin, round=i + 1)
        return part if i < self.rounds else None

    def streams(self, state, i):
        """Groups of the clusters of round i."""
        from reid_jax.data import streams

        seed, labels = _steps.part_seed(self.config.seed, i), state.memory["labels"]
        return {"target": streams.gallery(self.info.unlabelled, self.config.data, seed, labels=labels)}

    def begin(self, state, features):
        """New clusters; all four classifiers hold their centres, and the optimisers begin anew."""
        labels, centres = find_labels(features, self.config.mmt, self.config.seed)
        nets = jax.tree.map(np.array, state.nets)
        for net in nets.values():
            net["params"]["classifier"]["kernel"][:, : len(centres)] = centres.T
        memory = {"labels": labels, "used": np.int32(len(centres))}
        return self.fresh(nets, self.tx, memory)._replace(step=state.step)

    def step(self, state, batch):
        """One training step; pid i32[B]: clusters from 0 on. Student and teacher i see view i."""
        batch, used, fields = batch["target"], state.memory["used"], self.config.mmt
        views, pid = (self.view(batch, 0), self.view(batch, 1)), batch["pid"]
        taught, stats = self.forward(state.nets, TEACHERS, views, used)
        loss = functools.partial(self.loss, taught=taught, views=views, pid=pid, used=used)
        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        decay = _steps.ema_decay(state.step, fields.alpha, fields.ema_ramp)
        for student, teacher in PAIRS:
            mean = _steps.ema(state.nets[teacher]["params"], new.nets[student]["params"], decay)
            new.nets[teacher] = {"params": mean, "batch_stats": _steps.pmean(stats[teacher], self.axis)}
        return new, metrics | {"lr": self.rate(state.step % fields.steps)}

    def forward(self, nets, names, views, used):
        """({name: Branches}, {name: batch_stats}) in training; places not in use have no probability."""
        outs, stats, place = {}, {}, jnp.arange(self.config.mmt.clusters)
        for name, view in zip(names, views, strict=True):
            out, stats[name] = self.encoder.apply(nets[name], view, True)
            outs[name] = out._replace(logits=(jnp.where(place < used, out.logits[0], _NEVER),))
        return outs, stats

    def loss(self, nets, taught, views, pid, used):
        """(loss, {student: batch_stats}, metrics, the students' four terms f[2,4])."""
        outs, stats = self.forward(nets, STUDENTS, views, used)
        others = zip(outs.values(), reversed(taught.values()), strict=True)
        terms = jnp.stack([self.terms(out, teacher, pid) for out, teacher in others])
        a, b = self.config.mmt.soft_ce, self.config.mmt.soft_triplet
        total = terms.sum(0) @ jnp.array([1 - a, 1 - b, a, b], terms.dtype)
        metrics = dict(zip(TERMS, terms.sum(0), strict=True)) | {"loss": total}
        metrics["accuracy"] = sum(_steps.accuracy(out, pid) for out in outs.values()) / len(outs)
        return total, stats, metrics, terms

    def terms(self, out, teacher, pid):
        """f[4] of a student, see TERMS; teacher: the other one's Branches."""
        smooth, (logits,) = self.config.loss.label_smooth, out.logits
        f, g = (_steps.select_feature(self.config.loss, branches) for branches in (out, teacher))
        uniform = jnp.where(logits > _NEVER, 0, _NEVER)  # over the places in use
        ce = (1 - smooth) * identity.cross_entropy(logits, pid)
        ce += smooth * distill.soft_cross_entropy(uniform, logits)
        hard, _ = triplet.batch_hard(f, pid, distance="softmax", margin=0.0, axis_name=self.axis)
        soft_ce = distill.soft_cross_entropy(teacher.logits[0], logits)
        return jnp.stack([ce, hard, soft_ce, triplet.softmax_soft(f, g, pid, axis_name=self.axis)])

    def embed(self, state, image, net):
        if net == "mean":
            return sum(_steps.unit(self.embed(state, image, teacher)) for teacher in TEACHERS)
        return super().embed(state, image, net)


def check_clusters(fields, images):
    """ConfigError when so many images cannot be so many clusters."""
    if fields.cluster == "kmeans" and not 1 <= fields.clusters <= images:
        raise ConfigError(f"config.mmt.clusters is {fields.clusters}; the target has {images} images")


def find_labels(features, fields, seed):
    """(labels i32[N], -1: none; unit centres f32[M,D]) of the target's features f[N,D], on the host."""
    from sklearn.cluster import KMeans

    from reid_jax.eval import cluster

    if fields.cluster == "dbscan":
        distances = cluster.jaccard(features, k1=fields.k1, k2=fields.k2)
        labels = cluster.dbscan(distances, fields.eps, fields.min_samples)
        labels = cluster.largest(labels, fields.clusters, "config.mmt.clusters").astype(np.int32)
        return labels, contrast.centroids(features, labels, labels.max() + 1)
    check_clusters(fields, len(features))
    model = KMeans(fields.clusters, n_init=fields.restarts, random_state=seed % 2**32).fit(features)
    return model.labels_, np.asarray(_steps.unit(model.cluster_centers_))


STAGES = {"source1": Source, "source2": Source, "adapt": Adapt}
