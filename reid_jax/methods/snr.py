"""SNR (Jin et al., CVPR 2020): style normalisation and restitution behind the stages, and its dual causality.

The baseline's losses on the restored maps; beside them, stage by stage, the loss that with what is given back
a map tells identities better than normalised, and with what is not worse. Code was published for
classification alone (microsoft/SNR@f3d51b5): its form is loss "entropy"; "triplets" is the form for
re-identification after its description.
"""

import jax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.losses import causality
from reid_jax.methods import Method, _steps, baseline
from reid_jax.models import heads, layers, restitution

TITLE = "SNR"
FIELDS = dict(
    stages=(1, 2, 3, 4),  # of the backbone, behind which it stands
    loss="triplets",  # triplets | entropy (of a classifier behind each stage) | none
    weights=(0.1, 0.1, 0.5, 0.5),  # of the stages' losses
    # triplets: the hardest by the vectors plus, or at random; f: by those of the normalised map, whose mean
    # over the map is the same for every picture
    mining="plus",
    plus=True,  # the loss that what is given back helps
    minus=True,  # the loss that the rest does not
    last_ce=0.01,  # entropy: weight of the last stage's classifier's cross entropy
    detach_f=False,  # no gradient into the vectors of the normalised map
    restore=True,  # False: instance norm alone, without a loss
    reduction=16,  # of the gate
    bn_eval=False,  # batch norms run as in a test, as the published code trains
)
METRICS = baseline.METRICS | {
    "plus": "Causality, what is given back",
    "minus": "Causality, the rest",
    "last_ce": "Cross entropy of the last stage",
    "gate": "Share given back",
}
LABELS = "all"
SETTINGS = ("domain generalisation",)


class Snr(Method):
    """The only stage."""

    def __init__(self, config, info):
        super().__init__(config, info)
        self.own = check(config)
        self.network = net(config, info)
        self.encoder = heads.encoder(self.network)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def init(self, key):
        variables = self.encoder.init(key, self.blank())
        variables.pop(restitution.KEPT)
        return self.fresh({"net": variables}, self.tx)

    def kept(self, variables, image, key=None, train=True):
        """(Branches, batch_stats, [what is kept, a dict, stage by stage])."""
        rngs = None if key is None else {"style": key, "dropout": key}
        mutable = [restitution.KEPT, *(["batch_stats"] if train else [])]
        out, changed = self.network.apply(variables, image, train, mutable=mutable, rngs=rngs)
        sown = changed[restitution.KEPT]["base"]
        stats = changed.get("batch_stats", variables.get("batch_stats", {}))
        return out, stats, [sown[name(stage)] for stage in self.own.stages]

    def step(self, state, batch):
        image, pid, key = self.view(batch["train"]), batch["train"]["pid"], self.key(state)

        def loss(nets):
            out, stats, kept = self.kept(nets["net"], image, key, not self.own.bn_eval)
            ce, terms, watched = _steps.identity_terms(self.config.loss, out, pid, self.axis)
            metrics = {"ce": ce, "accuracy": _steps.accuracy(out, pid)} | terms | watched
            more, figures = self.causality(kept, pid, key)
            total = sum(terms.values(), ce) + more
            figures |= {"loss": total, "gate": sum(k["gate"].mean() for k in kept) / len(kept)}
            return total, {"net": stats}, metrics | figures, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def causality(self, kept, pid, key=None):
        """(weighted loss f[], metrics) of what the stages keep."""
        if self.own.loss == "none" or not self.own.restore:
            return 0.0, {}
        losses = [self.of_stage(k, pid, key) for k in kept]
        parts = {"plus": self.own.plus, "minus": self.own.minus}
        terms = zip(
            *([w * x for x in pair] for w, pair in zip(self.own.weights, losses, strict=True)), strict=True
        )
        figures = {part: sum(x) for (part, on), x in zip(parts.items(), terms, strict=True) if on}
        if self.own.loss == "entropy" and self.own.last_ce:
            logits = kept[-1]["logits"][1]
            figures["last_ce"] = self.own.last_ce * _steps.smoothed(self.config.loss, self.axis)(logits, pid)
        return sum(figures.values()), figures

    def of_stage(self, kept, pid, key):
        """(plus f[], minus f[])."""
        x = kept["logits" if self.own.loss == "entropy" else "vectors"]
        x = x.at[0].set(jax.lax.stop_gradient(x[0])) if self.own.detach_f else x
        if self.own.loss == "entropy":
            return causality.by_entropy(x, self.axis)
        keys = layers.row_keys(key, len(pid), self.axis) if self.own.mining == "random" else None
        hardest = causality.mined(x, pid, self.own.mining, keys, self.axis)
        return causality.by_triplets(x, *hardest, self.axis)


def name(stage):
    """What the module behind a stage is called in the backbone."""
    return f"restitution{stage}"


def net(config, info):
    """heads.ReIDNet with a Restitution behind the stages of config.snr."""
    fields = config.snr
    classes = info.num_pids if fields.loss == "entropy" and fields.restore else 0

    def refine(place):
        if place not in tuple(fields.stages):
            return None
        return restitution.Restitution(fields.reduction, classes, fields.restore, name=name(place))

    whole = heads.build(config.model, info.num_pids, info.axis_name)
    return whole.clone(base=heads.trunk(config.model, info.axis_name, refine))


def check(config):
    """config.snr; ConfigError for fields that cannot be together."""
    fields = config.snr
    choice("snr.loss", fields.loss, ("triplets", "entropy", "none"))
    choice("snr.mining", fields.mining, causality.MINING)
    within("snr", fields, reduction=(1, None), last_ce=(0, None))
    places = [p for p in heads.trunk(config.model).places if isinstance(p, int)]
    if not tuple(fields.stages) or set(fields.stages) - set(places):
        raise ConfigError(
            f"config.snr.stages is {fields.stages}; {config.model.backbone} has {places}: name some of them"
        )
    if len(fields.weights) != len(fields.stages):
        raise ConfigError(
            f"config.snr.weights is {fields.weights}; it must be a number for each of the "
            f"stages {fields.stages}"
        )
    if config.data.frames:
        raise ConfigError(f"config.data.frames is {config.data.frames}, but SNR is for pictures: set it to 0")
    if config.model.head == "contrast":
        raise ConfigError("config.model.head is 'contrast', which has no classifier: use 'global'")
    return fields


STAGES = {"train": Snr}
