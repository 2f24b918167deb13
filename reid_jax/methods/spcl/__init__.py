"""SpCL: self-paced contrastive learning with a hybrid memory (Ge et al., NeurIPS 2020), by its code.

A memory holds a feature of every source class and of every target image. Rounds of clustering give the
target's images classes; clusters that are not reliable, and outliers, are taken apart into classes of one
image. Features are learned against the means of all classes in the memory. Without a source it is
unsupervised; with one, source and target rows have norms of their own (DSBN).
"""

import functools

import jax.numpy as jnp
import numpy as np

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import batch as batches
from reid_jax.losses import contrast
from reid_jax.methods import Method, Part, _rounds, _steps
from reid_jax.methods.spcl.memory import classes, hybrid, in_use, joined, singles, start
from reid_jax.models import heads

TITLE = "SpCL"
FIELDS = dict(
    rounds=50,  # of clustering and training
    steps=400,  # of a round; 800 on MSMT17
    k1=30,  # Jaccard distance: length of the neighbour lists,
    k2=6,  # images a set is averaged over
    eps=0.6,  # DBSCAN: radius,
    gap=0.02,  # by which that of the tight clustering is smaller and of the loose one larger,
    min_samples=4,  # images within it, itself included, that make a core
    reliability="both",  # both | independence | compactness | none: what a cluster must have to be kept
    share=0.9,  # of the first round's clusters, the most independent ones, that set the threshold
    outliers="single",  # single (classes of their own) | drop (they sit out the round)
    memory="instance",  # instance (a place an image of the target) | cluster (one a class, new each round)
    temperature=0.05,
    momentum=0.2,  # m of v <- m v + (1 - m) f
    source_weight=1.0,  # of the source's loss; 0: the source only moves its places
    dsbn=True,  # norms of their own for source and target
    dsbn_neck_bias=False,  # with them, the neck's bias is trained, as in SpCL's code
)
METRICS = {
    "source": "Source contrast",
    "target": "Target contrast",
    "accuracy": "Accuracy on classes",
    "threshold": "Largest independence score kept",
    "singles": "Classes of one image",
}
LABELS = "source"
CAMERAS = _rounds.crosses_cameras
SETTINGS = ("unsupervised", "domain adaptation")
NETS = ("net", "source")  # test mode by the norms of the target, of the source


class Spcl(Method):
    """The only stage: in each round one part, config.spcl.steps long."""

    def __init__(self, config, info):
        fields = config.spcl
        self.rounds, self.sources = fields.rounds, info.num_pids
        super().__init__(config, info)
        self.check()
        self.by_domain = bool(self.sources and fields.dsbn)
        self.nets = NETS if self.by_domain else NETS[:1]
        self.by_class = fields.memory == "cluster"
        self.networks = {net: self.build(domain) for net, domain in zip(NETS, (1, 0), strict=True)}
        self.network = self.networks["net"]
        self.encoders = {net: heads.encoder(network) for net, network in self.networks.items()}
        self.encoder = self.encoders["net"]
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def check(self):
        """ConfigError for fields that cannot be."""
        fields = self.config.spcl
        choice("spcl.reliability", fields.reliability, ("both", "independence", "compactness", "none"))
        choice("spcl.outliers", fields.outliers, ("single", "drop"))
        choice("spcl.memory", fields.memory, ("instance", "cluster"))
        choice("model.head", self.config.model.head, ("contrast",))
        within("spcl", fields, rounds=(1, None), steps=(1, None), share=(0, 1), momentum=(0, 1))
        _steps.check_dbscan("spcl", fields)
        if not 0 <= fields.gap < min(fields.eps, 1 - fields.eps):
            raise ConfigError(
                f"config.spcl.gap is {fields.gap}; eps - gap and eps + gap, around config.spcl.eps="
                f"{fields.eps}, must lie between 0 and 1"
            )
        self.check_sizes()
        if not fields.temperature > 0:
            raise ConfigError(f"config.spcl.temperature is {fields.temperature}; it must lie above 0")

    def check_sizes(self):
        """ConfigError for batches of source and target that norms by domain cannot tell apart."""
        from reid_jax.data import streams

        source, data = streams.sizes(self.config.data, "source"), self.config.data
        sizes = source["ids"] * source["instances"], data.ids * data.instances
        if self.sources and self.config.spcl.dsbn and len(set(sizes)) > 1:
            raise ConfigError(
                f"config.data.source_ids x source_instances are {sizes[0]} images, ids x instances {sizes[1]}"
                ", and config.spcl.dsbn needs as many of either: set the source's to 0, or dsbn=False"
            )

    def build(self, domain):
        """The network, in test mode with the norms of a domain: 0 the source, 1 the target."""
        by_domain = dict(domains=2, test_domain=domain) if self.by_domain else {}
        network = heads.build(self.config.model, 0, self.info.axis_name, **by_domain)
        bias = self.by_domain and self.config.spcl.dsbn_neck_bias
        return network.clone(top=network.top.clone(bias=True)) if bias else network

    def measured(self, info):
        """An epoch of the schedule is a round."""
        steps = self.config.spcl.steps
        return info._replace(steps_per_epoch=steps, total_steps=steps * self.rounds)

    def init(self, key):
        """The memory is empty until `inherit`."""
        net = self.encoder.init(key, self.blank())
        size = self.encoder.apply(net, self.blank(), False)[0].test.shape[1]
        memory = {
            "features": jnp.zeros((self.sources + self.info.num_images, size)),
            "labels": jnp.full(self.info.num_images, -1, jnp.int32),  # of the target, from 0
            "threshold": jnp.float32(-1),  # below 0: not set
        }
        return self.fresh({"net": net}, self.tx, memory)

    def inherit(self, state, load, extract):
        """The memory holds the features that the first weights give."""
        del load
        target = extract(functools.partial(self.feature, net="net"), state.nets["net"])
        source, pid = np.zeros((0, target.shape[1])), np.zeros(0, int)
        if self.sources:
            source = extract(functools.partial(self.feature, net="source"), state.nets["net"], labelled=True)
            pid = self.info.labelled.pid
        features = start(source, pid, target, self.sources)
        return state._replace(memory={**state.memory, "features": features})

    def feature(self, variables, image, net):
        """Unit features f[B,D] of test images."""
        return self.encoders[net].apply(variables, self.plain(image), False)[0].test

    def embed(self, state, image, net):
        return self.feature(state.nets["net"], image, net)

    def part(self, i):
        if i >= self.rounds:
            return None
        streams, steps = functools.partial(self.streams, i=i), self.config.spcl.steps
        seen = () if self.by_class else None
        fields = dict(begin=self.begin, features=seen, round=i + 1, singles=False)
        return Part("train", self.step, streams, steps, **fields)

    def streams(self, state, i):
        """Groups of the target's classes of round i; groups of the source's identities."""
        from reid_jax.data import streams

        data, seed, labels = self.config.data, _steps.part_seed(self.config.seed, i), state.memory["labels"]
        by_name = {"target": streams.gallery(self.info.unlabelled, data, seed, labels=labels)}
        if self.sources:
            by_name["source"] = streams.gallery(
                self.info.labelled, data, seed, **streams.sizes(data, "source")
            )
        return by_name

    def begin(self, state, features):
        """New classes of the target's images, from their features in the memory.

        features: None; or, where places are of classes, the images' f[N,D], whose means fill them anew.
        """
        from reid_jax.methods.spcl.labels import find_labels  # scikit-learn is not needed for the steps

        memory, fields, places = state.memory, self.config.spcl, state.memory["features"]
        target = features if self.by_class else places[self.sources :]
        labels, threshold = find_labels(target, fields, float(memory["threshold"]))
        if self.by_class:
            means = contrast.centroids(target, labels, len(labels))
            places = np.concatenate([places[: self.sources], means])
        memory = {"features": places, "labels": labels.astype(np.int32), "threshold": np.float32(threshold)}
        return state._replace(memory=memory)

    def step(self, state, batch):
        """One training step; source rows by pid, target rows by index, their images' numbers, or by class.

        All losses see the memory before the step; the rows of all devices then move their places.
        """
        memory, rows = state.memory, self.rows(batch)
        loss = functools.partial(self.loss, rows=rows, memory=memory, key=self.key(state))
        new, metrics, f = _steps.descend(loss, state, self.tx, self.axis)
        f, place = (batches.gather(x, self.axis) for x in (f, rows[1]))
        features = contrast.moved(memory["features"], f, place, self.config.spcl.momentum)
        metrics |= {"threshold": memory["threshold"], "singles": singles(memory["labels"])}
        new = new._replace(memory={**memory, "features": features})
        return new, metrics | {"lr": self.rate(state.step)}

    def rows(self, batch):
        """(images, places i32[B], number of source rows) of the source's rows and then the target's."""
        parts = [batch[name] for name in ("source", "target") if name in batch]
        places = [self.sources + batch["target"]["pid" if self.by_class else "index"]]
        places = [batch["source"]["pid"], *places] if self.sources else places
        count = len(places[0]) if self.sources else 0
        return joined([self.view(part) for part in parts]), joined(places), count

    def loss(self, nets, rows, memory, key):
        """(loss, {"net": batch_stats}, metrics, features f[B,D] of the rows)."""
        (image, place, count), fields = rows, self.config.spcl
        out, stats = self.encoder.apply(nets["net"], image, True, key)
        label = classes(in_use(memory["labels"]) if self.by_class else memory["labels"], self.sources)
        losses, right = hybrid(out.test, memory["features"], label, place, fields.temperature)
        terms = {"source": losses[:count].mean()} if count else {}
        terms["target"] = losses[count:].mean()
        total = terms["target"] + fields.source_weight * terms.get("source", 0)
        return total, {"net": stats}, {"loss": total, "accuracy": right.mean()} | terms, out.test


STAGES = {"train": Spcl}
