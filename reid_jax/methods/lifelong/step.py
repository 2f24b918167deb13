"""A step on one set: finetuning, and LwF's distillation of what the last step's network says."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.losses import lifelong
from reid_jax.methods import Method, _steps
from reid_jax.models import heads


class Step(Method):
    """Step `number` of the sets `names`. Classes of earlier sets come first in the classifier.

    Nothing but the number of their identities is known of earlier sets, and nothing at all of later ones.
    """

    def __init__(self, config, info, names, number):
        self.fields, self.names, self.number = config.lifelong, names, number
        self.check(config)
        counts = class_counts(info, len(names), self.fields.ids)
        self.first, self.classes = sum(counts[:number]), sum(counts[: number + 1])
        super().__init__(config, self.of_step(info, counts))
        self.network, self.encoder = self.build(self.classes)
        self.old_encoder = self.build(self.first)[1] if number else None
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)
        if number:
            self.warm_start = None
        else:
            self.inherit = None

    def check(self, config):
        """ConfigError for fields that cannot be together."""
        fields = self.fields
        within("lifelong", fields, ids=(0, None), epoch_steps=(0, None), smooth_classes=(0, None))
        within("lifelong", fields, distill=(0, None), stability=(0, None), vertices=(1, None), dropout=(0, 1))
        within("lifelong", fields, replay_ids=(1, None), replay_images=(1, None), replay_batch=(2, None))
        choice("lifelong.classes", fields.classes, ("step", "all"))
        choice("lifelong.old_norms", fields.old_norms, ("running", "batch"))
        if fields.temperature <= 0:
            raise ConfigError(f"config.lifelong.temperature is {fields.temperature}; it must be above 0")
        if config.data.domains != "set":
            raise ConfigError(
                f"config.data.domains is {config.data.domains!r}, but the steps are sets: leave it at 'set'"
            )
        if config.data.batches == "domains" and self.number is not None and len(self.names) > 1:
            raise ConfigError(
                "config.data.batches is 'domains', but a step has one set: use pk, gallery or shuffled"
            )

    def of_step(self, info, counts):
        """What a step knows: its own rows, classes and cameras so far."""
        info = info._replace(num_pids=self.classes)
        if info.labelled is None:
            return info
        rows = of_sets(info.labelled, counts, range(self.number, self.number + 1))
        return info._replace(labelled=rows, num_images=len(rows.pid), num_cams=rows.num_cams)

    def measured(self, info):
        info = super().measured(info)
        steps = self.fields.epoch_steps
        if not steps or info.labelled is None:
            return info
        total = self.config.train.steps or math.ceil(self.config.train.epochs * steps)
        return info._replace(steps_per_epoch=steps, total_steps=total)

    def build(self, classes):
        """(network, Encoder) with so many classes."""
        network = heads.build(self.config.model, classes, self.axis, num_cams=self.info.num_cams)
        return network, heads.encoder(network)

    @property
    def remembers(self):
        """Whether the last step's network teaches."""
        return bool(self.number and self.fields.mode != "finetune" and self.fields.distill)

    def init(self, key):
        nets = {"net": self.encoder.init(key, self.blank())}
        if self.remembers:
            nets["old"] = self.old_encoder.init(key, self.blank())
        return self.fresh(nets, self.tx)

    def inherit(self, state, load, extract):
        """Begins with the last step's network, whose classifier gets fresh columns for the new classes."""
        before = load(self.names[self.number - 1], "net")
        nets = {**state.nets, "net": grown(before, state.nets["net"])}
        return state._replace(nets=nets | ({"old": before} if self.remembers else {}))

    def step(self, state, batch):
        batch, key = batch["train"], self.key(state)
        image, pid = self.view(batch), batch["pid"]
        said = self.old_scores(state, image)

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, key, batch.get("camid"))
            total, metrics = self.identity(out, pid)
            if said is not None:
                metrics["distill"] = self.fields.distill * self.distillation(out, said)
                total += metrics["distill"]
            return total, {"net": stats}, {"loss": total, **metrics}, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def old_scores(self, state, image):
        """Logits f[B,O] of the last step's network for its own classes; None where it does not teach."""
        if not self.remembers:
            return None
        train = self.fields.old_norms == "batch"
        return self.old_encoder.apply(state.nets["old"], image, train)[0].logits[0]

    def distillation(self, out, said):
        """What moves the scores away from the old ones, f[]."""
        options = dict(temperature=self.fields.temperature, axis_name=self.axis)
        return lifelong.distillation(out.logits[0], said, **options)

    def identity(self, out, pid):
        """(loss, metrics): cross entropy and metric losses of Branches against classes i32[B]."""
        first = self.first if self.fields.classes == "step" else 0
        among = out._replace(logits=tuple(x[:, first:] for x in out.logits))
        ce, terms, _ = _steps.identity_terms(self.config.loss, among, pid - first, self.axis)
        if self.fields.smooth_classes:
            options = dict(label_smooth=self.config.loss.label_smooth, axis_name=self.axis)
            ce = lifelong.smoothed_by(among.logits[0], pid - first, self.fields.smooth_classes, **options)
        accuracy = _steps.accuracy(among, pid - first)
        return sum(terms.values(), ce), {"ce": ce, **terms, "accuracy": accuracy}


class Joint(Step):
    """All sets at once, which no lifelong method may do: the upper bound."""

    def of_step(self, info, counts):
        self.first, self.classes = 0, sum(counts)
        info = info._replace(num_pids=self.classes)
        if info.labelled is None:
            return info
        return info._replace(labelled=of_sets(info.labelled, counts, range(len(counts))))


def class_counts(info, steps, ids):
    """Identities of each set that train, at most `ids` where that is not 0."""
    counts = list(info.domains) or [info.num_pids]
    if len(counts) < steps:
        raise ConfigError(f"the steps are {steps} sets, but the identities are of {len(counts)}")
    return [min(ids, c) if ids else c for c in counts]


def of_sets(rows, counts, domains):
    """Rows of a contiguous range of domains, their identities as classes: behind those of all sets before.

    counts: classes of every set; identities beyond are left out, as -1.
    """
    chosen = np.flatnonzero((rows.domain >= domains.start) & (rows.domain < domains.stop))
    part = slice(int(chosen[0]), int(chosen[-1]) + 1)
    domain, pid = rows.domain[part], rows.pid[part].astype(np.int32)
    labels = np.full(len(pid), -1, np.int32)
    for d in domains:
        mine = domain == d
        place = np.searchsorted(np.unique(pid[mine]), pid[mine])
        labels[mine] = np.where(place < counts[d], sum(counts[:d]) + place, -1)
    extras = {name: values[part] for name, values in rows.extras.items()}
    return rows._replace(
        start=rows.start + part.start,
        pid=labels,
        camid=rows.camid[part],
        domain=(domain - domains.start).astype(np.int32),
        extras=extras,
    )


def grown(before, fresh):
    """Variables `fresh` with the values of smaller ones; what is longer at its end keeps its own there."""

    def fill(old, new):
        return old if old.shape == new.shape else jnp.concatenate([old, new[..., old.shape[-1] :]], -1)

    return jax.tree.map(fill, before, fresh)
