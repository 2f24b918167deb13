"""MetaBIN (Choi et al., CVPR 2021): gates between batch and instance norm, learnt by meta-learning over domains.

A step has two halves. The base step trains everything but the gates on batches of all domains together. The meta
step trains the gates alone on other batches: the gates take a virtual step on some of the domains (meta-train), and
are then moved by the gradient that the other domains (meta-test) have at the virtual gates. Running values of the
norms move in the base step only. Settings and their order are those of the published code, bismex/MetaBIN@aa81471.
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
from reid_jax.losses import batch as batches
from reid_jax.losses import triplet
from reid_jax.methods import Method, _optim, _steps
from reid_jax.models import heads
from reid_jax.models.norms import bin as gated

TITLE = "MetaBIN"
FIELDS = dict(
    train_domains=3,  # meta-train, drawn in every step; all others are meta-test
    gate_factor=10.0,  # rate of the gates: so many times optim.lr, constant
    ratio=(0.001, 0.1),  # rate of the virtual step as a share of that: up and down between these
    period=5,  # once in so many epochs
    first_base=10,  # base steps before the first meta step
    triplet=1.0,  # weights of the meta-train losses; the first acts in meta-test with weight 1
    scatter=1.0,  # rows of a domain away from their centre
    shuffle=1.0,  # rows of other domains nearer than other identities of their own
    ce=0.0,  # cross entropy, in meta-train and meta-test
    second_order=False,  # also through the gradient of the virtual step
)
PARTS = {"bn1": "stem"} | {f"layer{i}": f"stage {i}" for i in range(1, 5)}
METRICS = {
    "loss": "Total loss",
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "meta_train": "Meta-train loss",
    "meta_test": "Meta-test loss",
    "meta_triplet": "Meta-train triplet",
    "scatter": "Cosine to the domain's centre",
    "shuffle": "Triplet over domains",
    "ratio": "Rate of the virtual step, relative",
    "gates_low": "Share of gates at 0",
    "gates_high": "Share of gates at 1",
} | {f"gate_{key}": f"Mean gate, {place}" for key, place in PARTS.items()}
LABELS = "all"
GATE = "(^|/)gate$"


def gates_of(net):
    """{path: f32[C]} of a network's gates."""
    params = traverse_util.flatten_dict(net["params"], sep="/")
    return {path: leaf for path, leaf in params.items() if re.search(GATE, path)}


def with_gates(net, gates):
    """The network's variables with these gates."""
    params = traverse_util.flatten_dict(net["params"], sep="/") | gates
    return {**net, "params": traverse_util.unflatten_dict(params, sep="/")}


def scatter(features, domain, axis_name=None):
    """Mean over the domains present of the mean cosine between a row and its domain's centre: f[].

    features: f[B,D]; domain: i[B], of a device; centres, of unit features, and means are of all devices' rows.
    """
    rows = _steps.unit(batches.wide(features))
    bank, domains = batches.gather(rows, axis_name), batches.gather(domain, axis_name)
    size = (domains[:, None] == domains).sum(1)  # of the domain of every row
    share = len(domains) / (1 / size).sum()  # rows over domains
    mine = (domain[:, None] == domains).astype(rows.dtype)
    cosine = (rows * _steps.unit(mine @ bank)).sum(-1)
    return batches.mean(cosine * share / mine.sum(1), axis_name=axis_name)


def shuffle(features, pid, domain, axis_name=None):
    """Soft-margin triplet that tells people, not domains, apart: mean softplus(d_ap - d_an), f[].

    d_ap: the distance to the farthest row of another domain; d_an: to the nearest of another identity in its own
    domain. Rows without the latter are left out. features: f[B,D]; pid, domain: i[B].
    """
    distance = triplet.pairwise(features, metric="euclidean", axis_name=axis_name)
    pids, domains = batches.gather(pid, axis_name), batches.gather(domain, axis_name)
    same = domain[:, None] == domains
    myself = batches.first_row(pid, axis_name) + jnp.arange(len(pid))[:, None] == jnp.arange(len(pids))
    negative = same & (pid[:, None] != pids)
    fixed = lax.stop_gradient(distance)
    far = jnp.where(~same | myself, fixed, -jnp.inf).argmax(1)
    near = jnp.where(negative, fixed, jnp.inf).argmin(1)
    d_ap, d_an = (jnp.take_along_axis(distance, i[:, None], 1)[:, 0] for i in (far, near))
    return batches.mean(jax.nn.softplus(d_ap - d_an), negative.any(1), axis_name)


class MetaBin(Method):
    """The only stage."""

    embeds_frames = True

    def __init__(self, config, info):
        super().__init__(config, info)
        self.network = heads.build(config.model, info.num_pids, info.axis_name)
        if not self.network.bounds:
            raise ConfigError(f"config.model.norm is {config.model.norm!r}, which has no gates; use metabin or bin")
        self.encoder = heads.encoder(self.network)
        self.frames_apart = heads.frames_apart(config.model)
        rest = SimpleNamespace(frozen=(*self.network.frozen, GATE), bounds=())
        self.tx = {"net": _steps.optimiser(config.optim, self.info, rest)}
        self.gate_tx = optax.chain(
            optax.scale_by_learning_rate(self.gate_rate), _optim.clipped(self.network.bounds)
        )
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def init(self, key):
        net = self.encoder.init(key, self.blank())
        state = self.fresh({"net": net}, self.tx)
        return state._replace(opt=state.opt | {"gates": self.gate_tx.init(gates_of(net))})

    def streams(self, state):
        """"base": P x K of all domains together; "meta": P x K of every domain."""
        del state
        rows, data, seed = self.info.labelled, self.config.data, self.config.seed
        sizes = streams.sizes(data, "meta")
        meta = streams.domains(rows, data, _steps.part_seed(seed, 1), **sizes)
        if not 0 < self.config.metabin.train_domains < rows.num_domains:
            raise ConfigError(
                f"config.metabin.train_domains is {self.config.metabin.train_domains}; of {rows.num_domains} "
                "domains (config.data.domains) it must take one or more and leave one or more"
            )
        return {"base": streams.pk(rows, data, seed), "meta": meta}

    # ---- schedules, by step

    def gate_rate(self, step):
        """Rate of the gates: constant, 0 before the first meta step."""
        fields = self.config.metabin
        return fields.gate_factor * self.config.optim.lr * (step >= fields.first_base - 1)

    def ratio(self, step):
        """The virtual step's rate as a share of the gates': a triangle that begins one step above its foot."""
        fields = self.config.metabin
        low, high = fields.ratio
        period = max(int(self.info.steps_per_epoch * fields.period), 1)
        up = period // 2
        at = (jnp.maximum(step - fields.first_base + 1, 0) + 1) % period
        return low + (high - low) * jnp.where(at <= up, at / max(up, 1), (period - at) / (period - up))

    # ---- the two halves of a step

    def step(self, state, batch):
        base, (train, test) = batch["base"], self.split(batch["meta"], self.key(state))
        new, metrics = self.base(state, self.view(base), base["pid"])
        gates, _, more = self.meta(new, train, test, self.ratio(state.step))
        return gates, metrics | more | {"lr": self.rate(state.step)}

    def base(self, state, image, pid):
        """(State, metrics) after the base step on normalised images [B,H,W,3]: all but the gates move."""

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True)
            ce, tri = _steps.identity_losses(self.config.loss, out, pid, self.axis)
            metrics = {"loss": ce + tri, "ce": ce, "triplet": tri, "accuracy": _steps.accuracy(out, pid)}
            return ce + tri, {"net": stats}, metrics, None

        new, metrics, _ = self.descend(loss, state, self.tx)
        return new, metrics

    def split(self, batch, key):
        """(images, pid, domain) of the meta-train and of the meta-test domains of a device's meta batch.

        key: the same on all devices, so that they draw the same domains.
        """
        count, k = len(self.info.domains), streams.sizes(self.config.data, "meta")["instances"]
        if len(batch["pid"]) % (count * k):
            raise ConfigError(
                f"{len(batch['pid'])} images of a meta batch on a device are not whole identities of all {count} "
                "domains: make config.data.meta_ids a multiple of the number of devices"
            )
        order, first = jax.random.permutation(key, count), self.config.metabin.train_domains

        def rows(x, chosen):  # [P,S,K,...] -> the rows of the chosen domains
            x = x.reshape(-1, count, k, *x.shape[1:])[:, chosen]
            return x.reshape(-1, *x.shape[3:])

        halves = [{n: rows(x, c) for n, x in batch.items()} for c in (order[:first], order[first:])]
        return [(self.view(half), half["pid"], half["domain"]) for half in halves]

    def meta(self, state, train, test, ratio):
        """The meta step: (State, (gradient of meta-train, of meta-test: {path: f32[C]}), metrics).

        train, test: (normalised images [B,H,W,3], pid i32[B], domain i32[B]); ratio: of the virtual step.
        """
        net, fields = state.nets["net"], self.config.metabin
        gates = gates_of(net)

        def outer(gates):
            start = gates if fields.second_order else lax.stop_gradient(gates)
            inner = jax.grad(lambda g: self.meta_train(with_gates(net, g), *train), has_aux=True)
            grad, metrics = _steps.pmean(inner(start), self.axis)
            rate = ratio * fields.gate_factor * self.config.optim.lr
            virtual = {path: gated.virtual_gate(gates[path], grad[path], rate) for path in gates}
            value = self.meta_test(with_gates(net, virtual), *test)
            return value, (grad, metrics | {"meta_test": value, "ratio": ratio})

        grad, (first, metrics) = _steps.pmean(jax.grad(outer, has_aux=True)(gates), self.axis)
        gates, opt = _steps.apply_gradient(self.gate_tx, grad, state.opt["gates"], gates)
        new = state._replace(nets={"net": with_gates(net, gates)}, opt=state.opt | {"gates": opt})
        return new, (first, grad), metrics | gate_figures(gates)

    def meta_train(self, net, image, pid, domain):
        """(loss, metrics) on the meta-train rows, normalised by their own statistics."""
        fields = self.config.metabin
        feature, triplet, ce = self.losses(net, image, pid)
        apart, mixed = scatter(feature, domain, self.axis), shuffle(feature, pid, domain, self.axis)
        total = ce + fields.triplet * triplet + fields.scatter * apart + fields.shuffle * mixed
        return total, {"meta_train": total, "meta_triplet": triplet, "scatter": apart, "shuffle": mixed}

    def meta_test(self, net, image, pid, domain):
        """Loss on the meta-test rows."""
        del domain
        _, triplet, ce = self.losses(net, image, pid)
        return ce + triplet

    def losses(self, net, image, pid):
        """(features f[B,D], triplet, weighted cross entropy) of a pass that leaves the running values."""
        out, _ = self.encoder.apply(net, image, True)
        ce, triplet = _steps.identity_losses(self.config.loss, out, pid, self.axis)
        weight = self.config.metabin.ce
        return _steps.select_feature(self.config.loss, out), triplet, weight * ce if weight else 0.0


def gate_figures(gates):
    """Metrics of gates {path: f32[C]}: shares at the ends, the mean of stem and stages."""
    every, places = jnp.concatenate(list(gates.values())), {}
    for path, gate in gates.items():
        places.setdefault(path.split("/")[1].split("_")[0], []).append(gate)
    means = {f"gate_{n}": jnp.concatenate(g).mean() for n, g in places.items() if n in PARTS}
    return {"gates_low": (every <= 0).mean(), "gates_high": (every >= 1).mean(), **means}


STAGES = {"train": MetaBin}
