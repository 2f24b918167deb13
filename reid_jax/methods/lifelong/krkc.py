"""KRKC (Yu et al., AAAI 2023), by its code: a memory network that goes on learning, and replayed pictures.

From the second step on two networks learn from the new set and from each other, and both see some pictures
of the old sets. The next step begins with their mean. Tests join the features of both. The pictures that are
kept of a set are chosen when the next step begins, by the working network before the mean is taken.
"""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import ConfigError, DataError
from reid_jax.losses import lifelong, triplet
from reid_jax.methods import _steps
from reid_jax.methods.lifelong.step import Step, grown, of_sets


class Krkc(Step):
    """memory["labels"] i32[N] of the rows of all earlier sets: classes of what is replayed, -1 of all others.

    What is kept of the last set is chosen by the last step's network when a step begins.
    """

    def __init__(self, config, info, names, number):
        self.seen = None  # Rows of the earlier sets, of which only what memory["labels"] keeps is read
        super().__init__(config, info, names, number)
        if number:
            self.nets = ("both", "net", "memory")
            rate = config.optim.lr * self.fields.memory_lr
            self.tx |= {"memory": _steps.optimiser(config.optim, self.info, self.network, lr=rate)}

    def of_step(self, info, counts):
        new = super().of_step(info, counts)
        if info.labelled is None or not self.number:
            return new
        self.seen = of_sets(info.labelled, counts, range(self.number))
        self.last = of_sets(info.labelled, counts, range(self.number - 1, self.number))
        return new._replace(num_images=len(self.seen.pid))

    def init(self, key):
        net = self.encoder.init(key, self.blank())
        if not self.number:
            return self.fresh({"net": net}, self.tx)
        nets = {"net": net, "memory": jax.tree.map(jnp.copy, net)}
        return self.fresh(nets, self.tx, {"labels": jnp.full(self.info.num_images, -1, jnp.int32)})

    def inherit(self, state, load, extract):
        """Both networks begin as the mean of the last step's, new classes at their mean unit features."""
        last, number = self.names[self.number - 1], self.number
        net = load(last, "net")
        kept = load(last, "")["labels"] if number > 1 else jnp.zeros(0, jnp.int32)
        labels = jnp.concatenate([kept, self.kept(extract(self.old_feature, net, rows=self.last))])
        if number > 1:
            share = 1 / number
            net = jax.tree.map(lambda w, m: share * w + (1 - share) * m, net, load(last, "memory"))
        new = grown(net, state.nets["net"])
        centres = self.centres(extract(self.feature, new, labelled=True))
        kernel = jnp.asarray(new["params"]["classifier"]["kernel"]).at[:, self.first :].set(centres.T)
        params = {**new["params"], "classifier": {**new["params"]["classifier"], "kernel": kernel}}
        new = {**new, "params": params}
        nets = {"net": new, "memory": jax.tree.map(jnp.copy, new)}
        return state._replace(nets=nets, memory={"labels": labels.astype(jnp.int32)})

    def kept(self, features):
        """i32[N] of the last set's rows f[N,D]: classes of those that are kept, -1 of the others."""
        pid, fields = self.last.pid, self.fields
        rng = np.random.default_rng([self.config.seed % 2**64, self.number])
        drawn = np.unique(rng.choice(np.unique(pid[pid >= 0]), fields.replay_ids))
        return jnp.where(least_alike(features, pid, drawn, fields.replay_images), pid, -1)

    def centres(self, features):
        """Unit means f[K,D] of the unit features f[N,D] of the set's classes."""
        pid = self.info.labelled.pid
        known = jnp.where(pid[:, None] < 0, 0, _steps.unit(features))
        return _steps.unit(jax.ops.segment_sum(known, pid - self.first, self.classes - self.first))

    def old_feature(self, variables, image):
        """Test features of a network of the last step."""
        return self.old_encoder.apply(variables, self.plain(image), False)[0].test

    def feature(self, variables, image):
        """Test features of one network."""
        return self.encoder.apply(variables, self.plain(image), False)[0].test

    def embed(self, state, image, net):
        if net != "both":
            return self.feature(state.nets[net], image)
        return jnp.concatenate([self.feature(state.nets[n], image) for n in ("net", "memory")], -1)

    def streams(self, state):
        """The set's own; from the second step on replayed pictures of the others beside it."""
        from reid_jax.data import streams
        from reid_jax.data.samplers.identities import PK

        made, fields, seed = super().streams(state), self.fields, self.config.seed
        if not self.number or state is None:
            return made
        labels = np.asarray(state.memory["labels"])
        try:
            sampler = PK(labels, fields.replay_batch, fields.replay_images, seed, distinct=False)
        except DataError as error:
            raise ConfigError(
                f"config.lifelong.replay_batch is {fields.replay_batch}, more than the people that are kept "
                f"({len(np.unique(labels[labels >= 0]))}): lower it, or keep more (replay_ids)"
            ) from error
        return made | {"replay": streams.build(self.seen, sampler, seed, labels, streams.VIEWS)}

    # ---- a step

    def step(self, state, batch):
        if not self.number:
            return super().step(state, batch)
        new, old, key = batch["train"], batch["replay"], self.key(state)
        given = (self.view(new), new["pid"]), (self.view(old), old["pid"])

        def loss(nets):
            outs = {name: self.seen_by(nets[name], given, key) for name in ("net", "memory")}
            logits = {name: out.logits[0] for name, (_, out, _, _) in outs.items()}
            total, stats, metrics = 0.0, {}, {}
            for name, other, prefix in (("net", "memory", ""), ("memory", "net", "memory_")):
                value, _, stats[name], terms = outs[name]
                agree = lifelong.agreement(logits[other], logits[name], self.fields.temperature, self.axis)
                metrics |= {prefix + k: v for k, v in (terms | {"agree": agree}).items()}
                total += value + agree
            metrics.pop("memory_accuracy")
            return total, stats, {"loss": total, **metrics}, None

        state, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return state, metrics | {"lr": self.rate(state.step - 1)}

    def seen_by(self, variables, given, key):
        """(loss, Branches of the new pictures, batch_stats, metrics) of a network on new and old ones."""
        (image, pid), (old, old_pid) = given
        out, stats = self.encoder.apply(variables, image, True, key)
        replayed, stats = self.encoder.apply({**variables, "batch_stats": stats}, old, True, key)
        total, metrics = self.identity(out, pid)
        feature = _steps.select_feature(self.config.loss, replayed)
        options = dict(distance="euclidean", margin=self.fields.replay_margin, axis_name=self.axis)
        metrics["replay"] = triplet.batch_hard(feature, old_pid, **options)[0]
        return total + metrics["replay"], out, stats, metrics


def least_alike(features, labels, classes, count):
    """bool[N]: the `count` rows of each of `classes` whose unit features f[N,D] are least like their mean.

    labels: i32[N], not traced.
    """
    unit, names = _steps.unit(features), np.unique(labels)
    group = np.searchsorted(names, labels)
    centre = _steps.unit(jax.ops.segment_sum(unit, group, len(names)))
    cosine = (unit * centre[group]).sum(1)
    order = jnp.lexsort((cosine, group))  # by class, the least like first
    first = np.searchsorted(np.sort(group), np.arange(len(names)))
    place = jnp.zeros(len(labels), int).at[order].set(np.arange(len(labels)) - first[np.sort(group)])
    return (place < count) & np.isin(labels, classes)
