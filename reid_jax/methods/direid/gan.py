"""DDGAN, DI-REID's first stage: the training step on the objectives (objectives.py).

Even steps are "self" phases, odd ones "cross" phases.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from reid_jax.config import choice
from reid_jax.data import streams
from reid_jax.methods import State, _optim, _steps
from reid_jax.methods.direid import judges, study
from reid_jax.methods.direid import nets as networks
from reid_jax.methods.direid.objectives import TERMS, Objectives, pair, terms, weights
from reid_jax.methods.direid.parameters import (
    DISCRIMINATORS,
    GENERATOR,
    join_groups,
    split_groups,
    trained,
    with_params,
)
from reid_jax.methods.direid.stage import STEM, graft, moved
from reid_jax.models.layers import wide


class Draws(NamedTuple):
    """What a step draws at random, the same on every device but for the key."""

    cross: jax.Array  # bool[], the phase
    first: jax.Array  # bool[], D_real's fake in the self phase is x_ab, else x_ba (reality_self "swapped")
    key: jax.Array  # for dropout


class Ddgan(Objectives):
    """Stage "gan"; config.optim is its own, see config.stages.gan.

    Trained in groups, each with an optimiser state of its own (`group_of`): D_real and D_deg step first, then
    the generator's losses see the new ones on the same images. E_con's stem and E_id are the teacher's.
    """

    nets = ("inv",)

    def __init__(self, config, info):
        super().__init__(config, info)
        d = config.direid
        choice("direid.gan_form", d.gan_form, ("ls", "log"))
        choice("direid.reality_self", d.reality_self, ("synthetic", "swapped"))
        choice("direid.rank_generator", d.rank_generator, ("inputs", "generated"))
        self.modules = modules(config, info)
        self.terms = {cross: terms(config, cross) for cross in (False, True)}
        self.weight = weights(d)
        self.semi = config.data.pairs == "semi"  # x_i is known to be good, x_k poor
        self.tx = optimiser(config.optim)
        self.study = study.of(self)

    def streams(self, state):
        """Triples of the labelled rows."""
        del state
        return {"train": streams.triples(self.info.labelled, self.config.data, self.config.seed)}

    def init(self, key):
        """E_id and E_con's stem are to be taken from the teacher."""
        nets = init_networks(self.modules, key, self.blank())
        groups = split_groups(trained(nets, (*GENERATOR, *DISCRIMINATORS)))
        return State(jnp.int32(0), nets, {name: self.tx.init(leaves) for name, leaves in groups.items()}, {})

    def inherit(self, state, load, extract):
        del extract
        new, teacher = dict(state.nets), load("teacher", "E_id")
        new["E_con"] = graft(new["E_con"], teacher, STEM)
        if "E_id" in new:
            new["E_id"] = graft(new["E_id"], teacher)
        return state._replace(nets=new)

    def features(self, nets, x, net):
        return self.call(nets, "E_con", x, train=False, method="identity")[0]

    # ---- the step

    def step(self, state, batch):
        new, metrics = self.update(state, self.images(batch["train"]), self.draw(state))
        return new, metrics | {"lr": self.rate(state.step)}

    def images(self, batch):
        """{x_i, x_j, x_k f[B,H,W,3] (normalised), pid_i, pid_k i32[B]}; pid_k is of x_k, x_j has x_i's."""
        x = {f"x_{name}": self.plain(batch["image"][:, i]) for i, name in enumerate("ijk")}
        return x | {"pid_i": batch["pid"], "pid_k": batch["pid_k"]}

    def draw(self, state):
        """Draws of a step: the phases take turns, or self has the probability sync_prob if that is >= 0."""
        phase_key, first_key, dropout = jax.random.split(self.key(state), 3)
        p = self.config.direid.sync_prob
        cross = state.step % 2 == 1 if p < 0 else jax.random.uniform(phase_key) >= p
        return Draws(cross, jax.random.bernoulli(first_key), self.device_key(dropout))

    def rate(self, step):
        """Learning rate f32[]: lr * gamma ** (number of config.direid.gan_milestones <= the 0-based step)."""
        optim = self.config.optim
        passed = (jnp.asarray(tuple(self.config.direid.gan_milestones), jnp.int32) <= step).sum()
        return optim.lr * jnp.float32(optim.gamma) ** passed

    def update(self, state, batch, draws):
        """One iteration on `images`: (State, {name: f32[]}), the phase chosen by draws.cross."""
        phases = [functools.partial(self.phase, draws=draws, cross=cross) for cross in (True, False)]
        return lax.cond(draws.cross, *phases, state, batch)

    def phase(self, state, batch, draws, cross):
        """One iteration of the phase `cross` (a Python bool): (State, metrics)."""

        def make(params):
            nets = with_params(state.nets, params)
            return self.encode(nets, *pair(batch, cross), cross, train=True, key=draws.key)

        params = trained(state.nets, GENERATOR)
        out, pull, stats = jax.vjp(make, params, has_aux=True)
        state, judged = self.discriminate(state, out, batch, draws, cross)

        def total(out, params):
            nets = with_params(state.nets, params)
            values, changed = self.generator_losses(nets, out, stats, batch, cross)
            return added(values), (values, changed)

        (by_images, grads), (values, stats) = jax.grad(total, (0, 1), has_aux=True)(out, params)
        grads = jax.tree.map(jnp.add, pull(by_images)[0], grads)
        grads, stats = _steps.pmean((grads, stats), self.axis)
        state = self.descended(state, params, grads, cross)
        metrics = _steps.pmean(summary(values, judged, out), self.axis)
        return state._replace(step=state.step + 1, nets=moved(state.nets, {"E_con": stats})), metrics

    def discriminate(self, state, out, batch, draws, cross):
        """(State with D_real and D_deg one step on, their losses)."""

        def total(params):
            judging = {n: {"params": p} for n, p in params.items()}
            values = self.discriminator_losses(judging, out, batch, draws, cross)
            return added(values), values

        params = trained(state.nets, DISCRIMINATORS)
        grads, values = jax.grad(total, has_aux=True)(params)
        return self.descended(state, params, _steps.pmean(grads, self.axis), cross), values

    def descended(self, state, params, grads, cross):
        """State after a step of the groups that a phase trains; others and their moments stay as they are."""
        rate, new, opt = self.rate(state.step), split_groups(params), dict(state.opt)
        for name, grad in split_groups(grads).items():
            if name in self.active(cross):
                delta, opt[name] = self.tx.update(grad, opt[name], new[name])
                new[name] = jax.tree.map(lambda p, d: (p - rate * d).astype(p.dtype), new[name], delta)
        return state._replace(nets=with_params(state.nets, join_groups(new)), opt=opt)

    def active(self, cross):
        """Groups that a phase trains."""
        there = self.terms[cross]
        groups = {"generator"} | {g for g, t in (("D_real", "real"), ("D_deg", "deg")) if t in there}
        return groups | ({"identity"} if "id" in there else set()) | (set() if cross else {"sync"})


def added(values):
    """Sum of {name: f[]}, 0 of none."""
    return sum(values.values(), jnp.zeros(()))


def summary(values, judged, out):
    """Metrics of a phase, the same names in both: terms that it does not have are 0."""
    metrics = {"loss": added(values), "dis": added(judged)}
    metrics |= {f"dis_{n}": judged.get(n, jnp.zeros(())) for n in ("real", "deg")}
    metrics |= {f"gen_{n}": values.get(n, jnp.zeros(())) for n in TERMS}
    metrics["swap"] = judges.l1(out["x_aa"], out["x_ab"])  # how far another degradation changes the picture
    metrics["code_std"] = wide(out["d_a"]).std(0).mean()
    return {n: jnp.asarray(v, jnp.float32) for n, v in metrics.items()}


def optimiser(optim):
    """Moments with coupled L2, without the learning rate: `Ddgan.descended` multiplies by it."""
    return optax.chain(optax.add_decayed_weights(optim.weight_decay), _optim.moments(optim))


def modules(config, info):
    """{network: module}; without the term "pre" there is no E_id."""
    nets = {
        "E_con": networks.content_encoder(config, info),
        "E_deg": networks.degradation_encoder(config),
        "G": networks.generator(config),
        "D_real": networks.reality_discriminator(config),
        "D_deg": networks.degradation_discriminator(config),
    }
    return nets | ({"E_id": networks.identity_encoder(config, info)} if config.direid.w_pre else {})


def init_networks(modules, key, image):
    """Fresh variables of `modules` for images [1,H,W,3]; G is made for the outputs of E_con and E_deg."""
    keys = dict(zip(modules, jax.random.split(key, len(modules)), strict=True))
    nets = {n: networks.init(module, keys[n], image) for n, module in modules.items() if n != "G"}
    c = jax.eval_shape(lambda: modules["E_con"].apply(nets["E_con"], image, False)[1])
    code = jax.eval_shape(lambda: modules["E_deg"].apply(nets["E_deg"], image))
    c, code = (jnp.zeros(s.shape, s.dtype) for s in (c, code))
    return nets | {"G": dict(modules["G"].init(keys["G"], c, code))}
