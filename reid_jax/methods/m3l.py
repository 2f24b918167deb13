"""M3L (Zhao et al., CVPR 2021): memories of several domains and meta-learning, one domain left out a step.

    inner  L_train(p): mean over all domains but one of memory loss + triplet
    q      p after a virtual step of Adam down that gradient
    outer  L_train(p) + L_test(q): the domain left out, with noise of the others' statistics (MetaBN)

Every domain has a memory of unit rows, one an identity, which a step's features move. HeliosZhao/M3L@fa6c234
takes another gradient than the paper: config.m3l.outer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.config import choice
from reid_jax.fields import within
from reid_jax.losses import batch as batches
from reid_jax.losses import contrast, identity
from reid_jax.methods import Method, Part, _optim, _steps
from reid_jax.models import heads, layers, metabn, offers

TITLE = "M3L"
FIELDS = dict(
    # Gradient of L_test: full (the paper's formula) | reference (the published code's: through the virtual
    # step alone, p itself being held) | first_order (the virtual step held) | meta_train (none)
    outer="full",
    meta=True,  # False: L_train of all domains, no virtual step
    metabn=True,  # False: batch norm of the domain left out by its own statistics
    noise="variance",  # of MetaBN, times it as published | deviation
    mix=1.0,  # MetaBN's share of the noise is drawn from Beta(mix, mix), once a step
    memory=True,  # False: a trained classifier of every domain instead
    momentum=0.2,  # share of the OLD row where a feature moves the memory
    temperature=0.05,
)
METRICS = {
    "meta_train": "Meta-train loss",
    "meta_test": "Meta-test loss",
    "ce": "Identity cross entropy, meta-train",
    "triplet": "Identity triplet, meta-train",
    "accuracy": "Identity accuracy, meta-train",
    "share": "MetaBN's share of noise",
}
LABELS = "all"
SETTINGS = ("domain generalisation",)


class M3l(Method):
    """The only stage; its memory is filled before the first step. rows: see `by_domain`."""

    def __init__(self, config, info):
        super().__init__(config, info)
        self.own = check(config)
        self.network = heads.build(config.model, 0, info.axis_name)
        self.encoder = heads.encoder(self.network)
        trained = ("net",) if self.own.memory else ("net", "classifier")
        self.tx = {name: _steps.optimiser(config.optim, self.info, self.network) for name in trained}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)
        self.places = _steps.places(self.info)
        self.domain = np.nonzero(self.places >= 0)[0]  # of every row of the memory

    def streams(self, state):
        """P identities of every domain with K images each."""
        from reid_jax.data import streams

        inputs = self.info.labelled, self.config.data, self.config.seed
        return {"train": streams.domains(*inputs, within="gallery")}

    def init(self, key):
        """The memory is empty."""
        nets = {"net": self.encoder.init(key, self.blank())}
        out = jax.eval_shape(lambda v: self.encoder.apply(v, self.blank(), False)[0], nets["net"])
        shape = len(self.domain), out.test.shape[1]
        if self.own.memory:
            return self.fresh(nets, self.tx, {"rows": jnp.zeros(shape)})
        kernel = layers.normal(0.0, self.config.model.classifier_std)(jax.random.fold_in(key, 1), shape[::-1])
        return self.fresh({**nets, "classifier": {"params": {"kernel": kernel}}}, self.tx)

    def part(self, i):
        begin = self.begin if self.own.memory else None
        return None if i else Part("train", self.step, self.streams, self.info.total_steps, begin=begin)

    def begin(self, state, features):
        """A row is the unit mean of an identity's unit features."""
        rows = self.info.labelled
        place = self.places[rows.domain, rows.pid]
        return state._replace(memory={"rows": contrast.centroids(features, place, len(self.domain))})

    def step(self, state, batch):
        """Draws the domain left out and MetaBN's share, the same on all devices."""
        left_out, share, noise = jax.random.split(self.key(state), 3)
        left_out = jax.random.randint(left_out, (), 0, len(self.places))
        share = jax.random.beta(share, self.own.mix, self.own.mix)
        noise = functools.partial(metabn.normal, noise, axis_name=self.axis)
        new, metrics, _ = self.iterate(state, self.by_domain(batch["train"]), left_out, share, noise)
        return new, metrics | {"lr": self.rate(state.step)}

    def by_domain(self, batch):
        """A device's batch: image, pid, place (row of the memory) [S,n,...]; domain i32[S]."""
        count, columns = len(self.places), {"image": self.view(batch), "pid": batch["pid"]}
        rows, domain = _steps.by_domain(columns, count, self.config.data.instances), jnp.arange(count)
        return rows | {"place": jnp.asarray(self.places)[domain[:, None], rows["pid"]], "domain": domain}

    def iterate(self, state, rows, left_out, share, noise):
        """(State, metrics, {network: gradient}); left_out i32[]; share f[]; noise: shape (S-1, n, D) -> f."""
        others = jnp.arange(len(self.places) - 1)
        chosen = others + (others >= left_out) if self.own.meta else jnp.arange(len(self.places))
        first, second = ({name: x[i] for name, x in rows.items()} for i in (chosen, left_out))
        grads, stats, metrics = self.gradient(state, first, second, share, noise)
        new = _steps.moved(state, self.tx, grads, {"net": stats})
        new = self.remember(new, rows) if self.own.memory else new
        return new._replace(step=state.step + 1), metrics, grads

    def gradient(self, state, first, second, share, noise):
        """({network: gradient}, batch_stats, metrics), means over the devices; first, second: rows of the
        domains of L_train and of the one left out."""
        outer, rate = self.own.outer, self.rate(state.step)
        train = functools.partial(self.train_loss, state=state, rows=first)

        def test(params, grads, aux):
            q = _optim.first_adam_step(params, grads, rate, self.config.optim)
            value, stats = self.test_loss(q, state, second, aux, share, noise)
            return value, (stats, aux[2] | {"meta_test": value, "share": share})

        def both(params):
            (value, aux), grads = jax.value_and_grad(train, has_aux=True)(params)
            start = params if outer == "full" else lax.stop_gradient(params)
            more, (stats, metrics) = test(start, _steps.pmean(grads, self.axis), aux)
            return value + more, (stats, metrics)

        params = {name: state.nets[name]["params"] for name in self.tx}
        if self.own.meta and outer in ("full", "reference"):
            grads, (stats, metrics) = jax.grad(both, has_aux=True)(params)
        else:
            grads, (_, stats, metrics) = aux = jax.grad(train, has_aux=True)(params)
            if self.own.meta:
                held = functools.partial(test, grads=_steps.pmean(grads, self.axis), aux=aux[1])
                more, (stats, metrics) = jax.grad(held, has_aux=True)(params)
                if outer == "first_order":
                    grads = jax.tree.map(jnp.add, grads, more)
        metrics |= {"loss": metrics["meta_train"] + metrics.get("meta_test", 0)}
        return _steps.pmean((grads, stats, metrics), self.axis)

    def train_loss(self, params, state, rows):
        """(mean loss over the domains of rows, (pooled vectors f[S,n,D], batch_stats, metrics))."""
        images, key = rows["image"], self.key(state)
        stats, vectors = self.in_turn(params, state.nets["net"]["batch_stats"], images, key)
        values = jax.vmap(functools.partial(self.terms, params, state))(*vectors, rows)
        ce, tri, accuracy = (x.mean() for x in values)
        metrics = {"meta_train": ce + tri, "ce": ce, "triplet": tri, "accuracy": accuracy}
        return ce + tri, (vectors[0], stats, metrics)

    def test_loss(self, params, state, rows, aux, share, noise):
        """(loss f[] of the domain left out, batch_stats); aux: what `train_loss` gave."""
        key, top = jax.random.fold_in(self.key(state), 1), self.network.top
        if not self.own.metabn:
            stats, vectors = self.in_turn(params, aux[1], rows["image"][None], key)
            ce, tri, _ = self.terms(params, state, *(x[0] for x in vectors), rows)
            return ce + tri, stats
        variables, options = {"params": params["net"], "batch_stats": aux[1]}, dict(mutable=["batch_stats"])
        settings = dict(method="vectors", rngs={"dropout": key}, **options)
        v, stats = self.network.apply(variables, rows["image"], True, **settings)
        moments = metabn.statistics(aux[0], self.own.noise == "deviation", top.rows, top.axis_name)

        def of(mixed):  # moves no running values
            out, _ = self.network.apply(variables, mixed, True, method="head", **options)
            return self.terms(params, state, v, out.after_bn[0], out.test, rows)

        ce, tri, _ = (x.mean() for x in jax.vmap(of)(metabn.mix(v, moments, share, noise(moments[0].shape))))
        return ce + tri, stats["batch_stats"]

    def in_turn(self, params, stats, images, key):
        """(batch_stats, (pooled, neck, unit vectors f[S,n,D])) of images [S,n,...]: one pass, in which norms
        take every domain's rows for themselves, and running values move S times, in order."""
        count, rows = images.shape[:2]
        variables = {"params": params["net"], "batch_stats": stats}
        joined = images.reshape(-1, *images.shape[2:])
        options = dict(mutable=["batch_stats"], rngs={"dropout": key})
        out, changed = self.network.by_rows(rows).apply(variables, joined, True, **options)
        vectors = out.before_bn[0], out.after_bn[0], out.test
        return changed["batch_stats"], [x.reshape(count, rows, -1) for x in vectors]

    def terms(self, params, state, v, n, f, rows):
        """(cross entropy, triplet, accuracy) of pooled, neck and unit vectors [n,D] of a domain's rows."""
        if self.own.memory:
            scores = f @ lax.stop_gradient(state.memory["rows"]).T.astype(f.dtype) / self.own.temperature
        else:
            scores = n @ params["classifier"]["kernel"]
        scores = jnp.where(self.domain == rows["domain"], scores, -jnp.inf)
        ce = identity.cross_entropy(scores, rows["place"], axis_name=self.axis)
        tri, _ = _steps.triplet_loss(self.config.loss, v, rows["pid"], self.axis)
        return ce, self.config.loss.triplet_weight * tri, jnp.mean(scores.argmax(-1) == rows["place"])

    def remember(self, state, rows):
        """The features by the new parameters move the memory, in the order of the global batch."""
        net, key, bank = state.nets["net"], jax.random.fold_in(self.key(state), 2), state.memory["rows"]
        stats, (_, _, f) = self.in_turn({"net": net["params"]}, net["batch_stats"], rows["image"], key)
        f, place = (batches.gather(x.swapaxes(0, 1), self.axis) for x in (f, rows["place"]))
        moved = contrast.moved(bank, f.reshape(-1, f.shape[-1]), place.ravel(), self.own.momentum)
        net = {**net, "batch_stats": _steps.pmean(stats, self.axis)}
        return state._replace(nets={**state.nets, "net": net}, memory={"rows": moved.astype(bank.dtype)})


def check(config):
    """config.m3l; ConfigError for fields of it and a head that cannot be."""
    fields = config.m3l
    choice("m3l.outer", fields.outer, ("full", "reference", "first_order", "meta_train"))
    choice("m3l.noise", fields.noise, ("variance", "deviation"))
    choice("model.head", config.model.head, ("contrast",))
    # several domains pass together, whose statistics these would mix
    choice("model.norm", config.model.norm, sorted({*offers("norms")} - {"aibn"}))
    choice("model.style", config.model.style, ("none",))
    within("m3l", fields, momentum=(0, 1), temperature=(1e-6, None), mix=(1e-6, None))
    return fields


STAGES = {"train": M3l}
