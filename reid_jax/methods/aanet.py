"""AANet (Tay, Roy and Yap, CVPR 2019), after its description: parts, attributes and where these are seen.

    global     mean -> vector -> identity
    part       mean over bands of rows around peaks of activation -> vector -> identity, for each band
    attribute  mean over the rows where an attribute is seen -> its class (data.attributes)
    aam        mean weighted by the attributes' class activation maps -> vector -> identity
    L = sum over tasks t of exp(-s_t) L_t + s_t / 2, with trained s_t

There is no public code. What nobody says is a field below.
"""

import functools

import jax
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.losses import identity
from reid_jax.methods import Method, _steps
from reid_jax.models import backbones
from reid_jax.models.heads import encoder
from reid_jax.models.heads.regions import REGIONS, AttributeNet
from reid_jax.models.layers import BatchNorm

TITLE = "AANet"
TASKS = ("global", "part", "attribute", "aam")
FIELDS = dict(
    tasks=TASKS,  # those built; aam needs attribute
    attributes=(),  # (name, classes, region) of each column of the table, region: whole, top, middle, lower
    parts=6,  # bands
    reach=1 / 6,  # of a band above and below its peak, share of the map's height
    dim=512,  # numbers of the vectors of global, attribute and aam
    part_dim=256,
    aam_threshold=0.3,  # share of the map's maximum below which it is 0
    aam_gradient=False,  # whether the map's weights are trained by the identity loss behind them
    weighted=True,  # False: s_t stays 0, the plain sum
)
METRICS = {
    "global": "Identity cross entropy of the whole",
    "part": "Identity cross entropy, mean of the bands",
    "attribute": "Cross entropy of the attributes, mean",
    "aam": "Identity cross entropy of the attention",
    "accuracy": "Identity accuracy",
    "attribute_accuracy": "Accuracy of the attributes",
}
LABELS = "all"


class AaNet(Method):
    """The only stage."""

    def __init__(self, config, info):
        super().__init__(config, info)
        self.own = check(config, info)
        axis = backbones.group_axis(config.model, self.axis)
        norm = functools.partial(BatchNorm, axis_name=axis, rows=config.model.bn_rows)
        base = backbones.build(config.model, self.axis)
        self.network = AttributeNet(base, self.own, info.num_pids, norm)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)
        self.encoder = encoder(self.network)

    def init(self, key):
        return self.fresh({"net": self.encoder.init(key, self.blank())}, self.tx)

    def streams(self, state):
        """data.ids * data.instances images a batch, each once an epoch."""
        from reid_jax.data import streams

        del state
        return {"train": streams.shuffled(self.info.labelled, self.config.data, self.config.seed)}

    def step(self, state, batch):
        image, pid = self.view(batch["train"]), batch["train"]["pid"]
        table = None if self.info.attributes is None else jnp.asarray(self.info.attributes)[pid]

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, self.key(state))
            metrics = self.losses(out["logits"], pid, table)
            s = nets["net"]["params"]["log_variance"] * bool(self.own.weighted)
            each = jnp.stack([metrics[task] for task in self.own.tasks])
            metrics["loss"] = jnp.sum(jnp.exp(-s) * each + s / 2)
            return metrics["loss"], {"net": stats}, metrics, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def losses(self, logits, pid, table):
        """{task: loss f[], accuracy: f[]} of `AttributeNet`'s logits; table i32[B,A], -1: not known."""
        figures = {}
        for task, outputs in logits.items():
            if task == "attribute":
                figures |= self.attribute_losses(outputs, table)
            else:
                figures[task] = sum(identity.cross_entropy(x, pid) for x in outputs) / len(outputs)
        scores = sum(
            jax.nn.log_softmax(x) for t, outputs in logits.items() if t != "attribute" for x in outputs
        )
        return figures | {"accuracy": jnp.mean(scores.argmax(-1) == pid)}

    def attribute_losses(self, outputs, table):
        """Means over the attributes of cross entropy and accuracy, over the rows that are known."""
        values, right = [], []
        for number, logits in enumerate(outputs):
            label, known = table[:, number], table[:, number] >= 0
            values.append(identity.cross_entropy(logits, label, mask=known, axis_name=self.axis))
            right.append(jnp.where(known, logits.argmax(-1) == label, 0).sum() / jnp.maximum(known.sum(), 1))
        return {"attribute": sum(values) / len(values), "attribute_accuracy": sum(right) / len(right)}

    def embed(self, state, image, net):
        """The vectors of all branches, each at unit length, one behind the other."""
        out, _ = self.encoder.apply(state.nets[net], self.plain(image), False)
        return jnp.concatenate([_steps.unit(v) for v in out["vectors"]], -1)


def check(config, info):
    """config.aanet; ConfigError for fields or a table of attributes that do not fit."""
    fields, table = config.aanet, info.attributes
    within("aanet", fields, parts=(1, None), dim=(1, None), part_dim=(1, None))
    within("aanet", fields, reach=(0, 1), aam_threshold=(0, 1))
    for task in fields.tasks:
        choice("aanet.tasks", task, TASKS)
    if not set(fields.tasks) - {"attribute"} or len(set(fields.tasks)) < len(fields.tasks):
        raise ConfigError(f"config.aanet.tasks is {fields.tasks}; an identity task is needed, each task once")
    if "aam" in fields.tasks and "attribute" not in fields.tasks:
        raise ConfigError(f"config.aanet.tasks is {fields.tasks}; aam needs attribute")
    if config.data.frames:
        raise ConfigError(f"config.data.frames is {config.data.frames}, but AANet is for pictures")
    for name, _, region in fields.attributes:
        choice(f"aanet.attributes: region of {name}", region, tuple(REGIONS))
    if "attribute" not in fields.tasks or info.labelled is None:
        return fields
    if table is None:
        raise ConfigError(
            "config.data.attributes is empty, and AANet learns attributes: name market_attribute.mat or "
            "duke_attribute.mat, or 'true' with synthetic pictures; or set config.aanet.tasks=('global',)"
        )
    most, classes = table.max(0, initial=-1), [int(n) for _, n, _ in fields.attributes]
    if table.shape[1] != len(classes) or (most >= classes).any():
        raise ConfigError(
            f"config.aanet.attributes has classes {classes}, the table of config.data.attributes columns "
            f"with classes up to {most.tolist()}: describe its columns, see configs/aanet.py"
        )
    return fields


STAGES = {"train": AaNet}
