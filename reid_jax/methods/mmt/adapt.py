"""Rounds of clustering and of learning from clusters and teachers, on the target alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.methods import Method, Part, _steps
from reid_jax.methods.mmt import labels as labelling
from reid_jax.methods.mmt import networks, terms
from reid_jax.models import heads


class Adapt(Method):
    """Stage "adapt": a part in each round. Network "mean" is the sum of the teachers' unit features.

    Where these have different lengths they are joined. Without teachers the students stand for them.
    """

    warm_start = None
    sources = 0  # classes of a source before those of the target

    def __init__(self, config, info):
        fields, self.rounds = config.mmt, config.mmt.rounds
        self.count = len(fields.backbones)
        numbers = range(1, self.count + 1)
        self.students = tuple(f"student{i}" for i in numbers)
        self.teachers = tuple(f"teacher{i}" for i in numbers if fields.teachers)
        self.speakers = self.teachers or self.students
        self.nets = ("mean", *self.teachers, *self.students)
        super().__init__(config, info)
        networks.check(config, info, bool(self.teachers))
        labelling.check(config.mmt, None if info.unlabelled is None else info.num_images)
        built = [self.build(networks.with_backbone(config, i).model) for i in range(self.count)]
        self.encoders = [heads.encoder(network) for network in built]
        self.network, self.encoder = built[0], self.encoders[0]
        self.tx = {
            s: _steps.optimiser(config.optim, self.info, network)
            for s, network in zip(self.students, built, strict=True)
        }
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def build(self, model):
        """A network, with a classifier for the most clusters that there can be."""
        return heads.build(model, self.config.mmt.clusters, self.axis)

    @property
    def pairs(self):
        """(student, teacher) names."""
        return tuple(zip(self.students, self.teachers, strict=False))

    @property
    def shares(self):
        """(a, b): how much of the losses comes from other networks."""
        alone = self.count == 1 or not self.teachers
        return (0.0, 0.0) if alone else (self.config.mmt.soft_ce, self.config.mmt.soft_triplet)

    def measured(self, info):
        """The schedule is that of a round, which each begins anew."""
        return info._replace(steps_per_epoch=self.config.mmt.steps, total_steps=self.config.mmt.steps)

    def init(self, key):
        nets = {}
        for i, (student, k) in enumerate(zip(self.students, jax.random.split(key, self.count), strict=True)):
            nets[student] = self.encoders[i].init(k, self.blank())
        nets |= {teacher: jax.tree.map(jnp.copy, nets[student]) for student, teacher in self.pairs}
        memory = {"labels": jnp.full(self.info.num_images, -1, jnp.int32), "used": jnp.int32(0)}
        memory |= {"eps": jnp.float32(0), "authority": jnp.ones(self.count)}
        return self.fresh(nets, self.tx, memory)

    def inherit(self, state, load, extract):
        """Students and teachers are the networks of the source stages, without their classifiers."""
        nets = dict(state.nets)
        for i, student in enumerate(self.students, 1):
            trained, fresh = load(f"source{i}", "net"), nets[student]["params"]["classifier"]
            nets[student] = {**trained, "params": {**trained["params"], "classifier": fresh}}
        nets |= {teacher: jax.tree.map(jnp.copy, nets[student]) for student, teacher in self.pairs}
        return state._replace(nets=nets)

    def part(self, i):
        if i >= self.rounds:
            return None
        streams, steps = functools.partial(self.streams, i=i), self.config.mmt.steps
        seen = self.teachers if self.config.mmt.authority else ()
        options = dict(features=seen, of_source=self.config.mmt.lambda_value > 0, round=i + 1)
        return Part("train", self.step, streams, steps, begin=self.begin, **options)

    def streams(self, state, i):
        """Groups of the clusters of round i; every network has a view of its own."""
        from reid_jax.data import streams

        seed, labels = _steps.part_seed(self.config.seed, i), state.memory["labels"]
        options = dict(labels=labels, views=("strong",) * self.count)
        return {"target": streams.gallery(self.info.unlabelled, self.config.data, seed, **options)}

    def begin(self, state, features):
        """New clusters; all classifiers hold their centres, and the optimisers begin anew.

        features: those of "mean", or of each teacher, which are then weighed; with mmt.lambda_value a pair,
        the second of the source.
        """
        fields, seed, authority = self.config.mmt, self.config.seed, state.memory["authority"]
        features, source = features if fields.lambda_value else (features, None)
        if isinstance(features, dict):
            features, *apart = labelling.joined_units(features)
            source = source and labelling.joined_units(source)[0]
            authority = labelling.weighed(apart, fields, seed)
        options = dict(eps=float(state.memory["eps"]), source=source)
        labels, centres, eps = labelling.find_labels(features, fields, seed, **options)
        nets = jax.tree.map(np.array, state.nets)
        kernels = labelling.apart_by(
            [nets[s]["params"]["classifier"]["kernel"].shape[0] for s in self.students], centres
        )
        for names in (self.students, self.teachers):
            for name, rows in zip(names, kernels, strict=False):
                kernel = nets[name]["params"]["classifier"]["kernel"][:, self.sources :]
                kernel[:, : len(rows)] = rows.T
        memory = {"labels": labels, "used": np.int32(len(centres))}
        memory |= {"eps": np.float32(eps), "authority": np.asarray(authority, np.float32)}
        return self.fresh(nets, self.tx, memory)._replace(step=state.step)

    def step(self, state, batch):
        """One training step; pid i32[B]: clusters from 0 on. Student and teacher i see view i."""
        memory, fields, (views, pid) = state.memory, self.config.mmt, self.rows(batch)
        decay = _steps.ema_decay(state.step, fields.alpha, fields.ema_ramp)
        state = self.averaged(state, decay) if fields.teacher_first else state
        taught, stats = self.forward(state.nets, self.teachers, views, memory["used"])
        loss = functools.partial(self.loss, taught=taught, views=views, pid=pid, memory=memory)
        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        for teacher in self.teachers:
            new.nets[teacher] = {**new.nets[teacher], "batch_stats": _steps.pmean(stats[teacher], self.axis)}
        new = new if fields.teacher_first else self.averaged(new, decay)
        return new, metrics | {"lr": self.rate((new.step - 1) % fields.steps)}

    def rows(self, batch):
        """(a view of the rows for each network, their classes i32[B])."""
        batch = batch["target"]
        return tuple(self.view(batch, i) for i in range(self.count)), batch["pid"]

    def averaged(self, state, decay):
        """The state with its teachers moved towards their students."""
        nets = dict(state.nets)
        for student, teacher in self.pairs:
            mean = _steps.ema(nets[teacher]["params"], nets[student]["params"], decay)
            nets[teacher] = {**nets[teacher], "params": mean}
        return state._replace(nets=nets)

    def forward(self, nets, names, views, used):
        """({name: Branches}, {name: batch_stats}) in training; places not in use have no probability."""
        outs, stats, place = {}, {}, jnp.arange(self.sources + self.config.mmt.clusters)
        for i, name in enumerate(names):
            out, stats[name] = self.encoders[i].apply(nets[name], views[i], True)
            logits = jnp.where(place < self.sources + used, out.logits[0], terms.NEVER)
            outs[name] = out._replace(logits=(logits,))
        return outs, stats

    def loss(self, nets, taught, views, pid, memory):
        """(loss, {student: batch_stats}, metrics, the terms: (`hard` of each f[K,2], `soft` f[K,K,2]))."""
        outs, stats = self.forward(nets, self.students, views, memory["used"])
        options = dict(loss=self.config.loss, axis_name=self.axis)
        hard = jnp.stack([terms.by_labels(out, pid, **options) for out in outs.values()])
        soft = terms.by_teachers([*outs.values()], [*taught.values()], pid, **options)
        said = jnp.einsum("i,ijt->t", memory["authority"].astype(soft.dtype), soft) / max(self.count - 1, 1)
        (a, b), values = self.shares, jnp.concatenate([hard.sum(0), said])
        total = values @ jnp.array([1 - a, 1 - b, a, b], values.dtype)
        metrics = dict(zip(terms.TERMS, values, strict=True)) | {"loss": total}
        metrics["accuracy"] = sum(_steps.accuracy(out, pid) for out in outs.values()) / len(outs)
        return total, stats, metrics, (hard, soft)

    def embed(self, state, image, net):
        if net == "mean":
            return labelling.joined([_steps.unit(self.embed(state, image, name)) for name in self.speakers])
        encoder = self.encoders[int(net[-1]) - 1]
        return encoder.apply(state.nets[net], self.plain(image), False)[0].test
