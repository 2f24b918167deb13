"""MetaBIN (Choi et al., CVPR 2021): gates between batch and instance norm, meta-learnt over domains.

A step has two halves. In the base step everything but the gates learns from all domains together, as the
baseline does. In the meta step the gates alone learn, from other images: they take a virtual step for some
domains (meta-train) and move by the gradient of the others (meta-test) at the virtual gates. Running values
of norms move in the base step only. Losses and rates are those of the published code, bismex/MetaBIN@aa81471.
With metabin.params="all" every weight takes the virtual step and moves by the gradient behind it (MLDG, Li et
al., AAAI 2018).
"""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import lax

from reid_jax.data import streams
from reid_jax.errors import ConfigError
from reid_jax.fields import choice
from reid_jax.losses import across
from reid_jax.methods import _optim, _steps, baseline
from reid_jax.models.norms import bin as gated

TITLE = "MetaBIN"
FIELDS = dict(
    params="gates",  # what the meta step moves: gates | all (MLDG, with ce=1, scatter=0, shuffle=0)
    train_domains=0,  # meta-train, drawn in every step; the others are meta-test. 0: half, rounded up
    gate_factor=10.0,  # rate of the gates: so many times optim.lr, constant
    ratio=(0.001, 0.1),  # rate of the virtual step as a share of that: up and down between these
    period=5,  # once in so many epochs
    first_base=10,  # base steps before the first meta step
    triplet=1.0,  # weights of the meta-train losses
    scatter=1.0,  # rows of a domain away from their centre
    shuffle=1.0,  # rows of other domains nearer than other identities of their own
    ce=0.0,  # cross entropy, in meta-train and beside the triplet of meta-test
    second_order=False,  # through the gradient of the virtual step too
)
METRICS = baseline.METRICS | {
    "meta_train": "Meta-train loss",
    "meta_triplet": "Meta-train triplet",
    "scatter": "Cosine to the domain's centre",
    "shuffle": "Triplet over domains",
    "meta_test": "Meta-test loss",
    "ratio": "Rate of the virtual step, relative",
    "gates_low": "Share of gates at 0",
    "gates_high": "Share of gates at 1",
    "gate_bn1": "Mean gate, stem",
    **{f"gate_layer{i}": f"Mean gate, stage {i}" for i in range(1, 5)},
}
LABELS = "all"
SETTINGS = ("domain generalisation",)
GATE = "(^|/)gate$"
PARAMS = ("gates", "all")


def gates_of(net):
    """{path: f32[C]} of a network's gates."""
    flat = traverse_util.flatten_dict(net["params"], sep="/")
    return {path: leaf for path, leaf in flat.items() if re.search(GATE, path)}


def with_gates(net, gates):
    """The network's variables with these gates."""
    params = traverse_util.flatten_dict(net["params"], sep="/") | gates
    return {**net, "params": traverse_util.unflatten_dict(params, sep="/")}


def stepped(path, leaf, gradient, rate):
    """A leaf after a virtual step of plain descent; a gate stays within its bounds."""
    if re.search(GATE, path):
        return gated.virtual_gate(leaf, gradient, rate)
    return leaf - rate * gradient


def gate_figures(gates):
    """Metrics of gates {path: f32[C]}: shares at the ends, means of the stem and of every stage."""
    if not gates:
        return {}
    values, places = jnp.concatenate(list(gates.values())), {}
    for path, gate in gates.items():
        places.setdefault(path.split("/")[1].split("_")[0], []).append(gate)
    means = {f"gate_{place}": jnp.concatenate(gate).mean() for place, gate in places.items()}
    return {"gates_low": (values <= 0).mean(), "gates_high": (values >= 1).mean(), **means}


class MetaBin(baseline.Baseline):
    """The only stage; its base step is the baseline's."""

    accumulates = False
    heeds = ("model.classifier",)

    def __init__(self, config, info):
        self.train_domains = config.metabin.train_domains or -(-len(info.domains) // 2)
        super().__init__(config, info)
        if choice("metabin.params", config.metabin.params, PARAMS) == "gates" and not self.network.bounds:
            raise ConfigError(
                f"config.model.norm is {config.model.norm!r}, which has no gates: use metabin, or "
                "config.metabin.params=all"
            )
        others = SimpleNamespace(frozen=(*self.network.frozen, GATE), bounds=())
        self.tx = {"net": _steps.optimiser(config.optim, self.info, others)}
        clip = _optim.clipped(self.network.bounds)
        self.gate_tx = optax.chain(optax.scale_by_learning_rate(self.gate_rate), clip)

    def init(self, key):
        state = super().init(key)
        return state._replace(opt=state.opt | {"gates": self.gate_tx.init(self.chosen(state.nets["net"]))})

    def chosen(self, net):
        """{path: leaf} of what the meta step moves."""
        if self.config.metabin.params == "gates":
            return gates_of(net)
        flat = traverse_util.flatten_dict(net["params"], sep="/")
        return {p: x for p, x in flat.items() if not any(re.search(f, p) for f in self.network.frozen)}

    def streams(self, state):
        """P x K of all domains together, "base", and of every domain, "meta"."""
        rows, data, seed = self.info.labelled, self.config.data, self.config.seed
        meta = streams.domains(rows, data, _steps.part_seed(seed, 1), **streams.sizes(data, "meta"))
        if not 0 < self.train_domains < rows.num_domains:
            least = f"1 and less than {rows.num_domains}, the domains there are"
            raise ConfigError(f"config.metabin.train_domains must be at least {least} (config.data.domains)")
        return {"base": super().streams(state)["train"], "meta": meta}

    def gate_rate(self, step):
        """Rate of the gates: constant, 0 before the first meta step."""
        fields = self.config.metabin
        return fields.gate_factor * self.config.optim.lr * (step >= fields.first_base - 1)

    def ratio(self, step):
        """The virtual step's rate as a share of the gates': a triangle, begun one step above its foot."""
        fields = self.config.metabin
        period = max(int(self.info.steps_per_epoch * fields.period), 1)
        at, up = (jnp.maximum(step - fields.first_base + 1, 0) + 1) % period, period // 2
        share = jnp.where(at <= up, at / max(up, 1), (period - at) / (period - up))
        return fields.ratio[0] + (fields.ratio[1] - fields.ratio[0]) * share

    def step(self, state, batch):
        new, metrics = super().step(state, {"train": batch["base"]})
        rows = self.split(batch["meta"], self.key(state))
        new, _, more = self.meta(new, *rows, self.ratio(state.step))
        return new, metrics | more

    def split(self, batch, key):
        """A device's meta batch as those of the meta-train and of the meta-test domains, drawn by `key`."""
        count, k = len(self.info.domains), streams.sizes(self.config.data, "meta")["instances"]
        if len(batch["pid"]) % (count * k):
            raise ConfigError("config.data.meta_ids must be a multiple of the number of devices")
        order, first = jax.random.permutation(key, count), self.train_domains

        def rows(x, chosen):  # row (p S + s) K + k of a batch is of domain s
            return x.reshape(-1, count, k, *x.shape[1:])[:, chosen].reshape(-1, *x.shape[1:])

        return [{n: rows(x, chosen) for n, x in batch.items()} for chosen in (order[:first], order[first:])]

    def meta(self, state, train, test, ratio):
        """The meta step, its virtual step at `ratio` of the gates' rate; train, test: batches.

        Returns (State, (gradient of meta-train, of meta-test), each {path: leaf} as of `chosen`, metrics).
        """
        net, fields, key = state.nets["net"], self.config.metabin, self.key(state)
        gates = self.chosen(net)

        def outer(gates):
            start = gates if fields.second_order else lax.stop_gradient(gates)
            inner = jax.grad(lambda g: self.meta_train(with_gates(net, g), train, key), has_aux=True)(start)
            grad, metrics = _steps.pmean(inner, self.axis)
            rate = ratio * fields.gate_factor * self.config.optim.lr
            virtual = {path: stepped(path, gate, grad[path], rate) for path, gate in gates.items()}
            _, tri, ce = self.losses(with_gates(net, virtual), test, key)
            return tri + ce, (grad, metrics | {"meta_test": tri + ce, "ratio": ratio})

        grad, (first, metrics) = _steps.pmean(jax.grad(outer, has_aux=True)(gates), self.axis)
        gates, opt = _steps.apply_gradient(self.gate_tx, grad, state.opt["gates"], gates)
        net = with_gates(net, gates)
        new = state._replace(nets={"net": net}, opt=state.opt | {"gates": opt})
        return new, (first, grad), metrics | gate_figures(gates_of(net))

    def meta_train(self, net, batch, key):
        """(loss, metrics) of a batch of the meta-train domains."""
        fields, (feature, tri, ce) = self.config.metabin, self.losses(net, batch, key)
        apart = across.scatter(feature, batch["domain"], self.axis)
        mixed = across.shuffle(feature, batch["pid"], batch["domain"], self.axis)
        total = ce + fields.triplet * tri + fields.scatter * apart + fields.shuffle * mixed
        return total, {"meta_train": total, "meta_triplet": tri, "scatter": apart, "shuffle": mixed}

    def losses(self, net, batch, key):
        """(feature f[B,D], triplet, weighted cross entropy) of a pass that moves no running values."""
        out, _ = self.encoder.apply(net, self.view(batch), True, key)
        ce, tri = _steps.identity_losses(self.config.loss, out, batch["pid"], self.axis)
        weight = self.config.metabin.ce
        return _steps.select_feature(self.config.loss, out), tri, weight * ce if weight else 0.0


STAGES = {"train": MetaBin}
