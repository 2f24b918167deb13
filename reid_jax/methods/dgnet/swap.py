"""Stage "dgnet": structure of one person in the appearance of another, and what the generated pictures teach.

Two people a and b at a time, each with another image of the same identity. D steps first; then E_s, G and E_a
together, against the new D, by the terms of `Terms`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from reid_jax.config import choice
from reid_jax.data import streams
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.losses import generation
from reid_jax.methods import _steps
from reid_jax.methods.dgnet import nets as networks
from reid_jax.methods.dgnet import study
from reid_jax.methods.dgnet.terms import STYLES, TERMS, Terms, flat, reached

TRAINED = ("E_s", "G", "E_a")  # together; D has a step of its own, T rests


class Draws(NamedTuple):
    """What a step draws at random, the same on every device."""

    encoder: jax.Array  # bool[]: the structure term trains E_s, else the pictures
    key: jax.Array  # for dropout


class Dgnet(Terms):
    """State.nets: E_s, G, E_a, D and, where the teacher has a weight, T."""

    nets = ("both", "prim", "fine")

    def __init__(self, config, info):
        super().__init__(config, info)
        d = config.dgnet
        choice("dgnet.teacher_style", d.teacher_style, STYLES)
        self.modules = {
            "E_s": networks.structure_encoder(config),
            "G": networks.generator(config),
            "E_a": networks.appearance_encoder(config, info),
            "D": networks.discriminator(config),
        }
        self.copy = networks.appearance_encoder(config, info, dropout=False)
        if reached(d.warm_teacher):
            if "teacher" in config.train.skip:
                raise ConfigError(
                    "config.train.skip leaves out the stage teacher, which config.dgnet.warm_teacher needs: "
                    "set it to (0.0, 0.0)"
                )
            self.modules["T"] = networks.teacher(config, info, dropout=False)
        self.rate = rate(d, config.optim.lr, config.optim.gamma)
        self.tx = {n: adam(config.optim, self.rate) for n in ("E_s", "G", "D")}
        self.tx["E_a"] = sgd(config)
        self.study = study.of(self)

    def streams(self, state):
        """Two independent streams of images with another one of the same identity."""
        del state
        rows, data, seed = self.info.labelled, self.config.data, self.config.seed
        return {n: streams.positives(rows, data, _steps.part_seed(seed, i)) for i, n in enumerate("ab")}

    # ---- the state

    def init(self, key):
        image, keys = self.blank(), dict(zip(self.modules, jax.random.split(key, 5), strict=False))
        nets = {n: started(self.modules[n], keys[n], image, False) for n in ("E_a", "T") if n in self.modules}
        nets |= {"E_s": started(self.modules["E_s"], keys["E_s"], networks.grey(image))}
        nets |= {"D": started(self.modules["D"], keys["D"], image)}
        s, code = jax.eval_shape(
            lambda v: (self.structure(v, image), self.copy.apply(v["E_a"], image, False).code), nets
        )
        s, code = (jnp.zeros(x.shape, x.dtype) for x in (s, code))
        return self.fresh(nets | {"G": started(self.modules["G"], keys["G"], s, code)}, self.tx)

    def inherit(self, state, load, extract):
        del extract
        new = dict(state.nets)
        if "T" in new:
            new["T"] = taken(new["T"], load("teacher", "net"))
        if self.config.dgnet.from_teacher:
            base = {k: {"base": v["base"]} for k, v in load("teacher", "net").items()}
            copied = taken({k: {"base": v["base"]} for k, v in new["E_a"].items()}, base)
            new["E_a"] = {k: {**v, **copied[k]} for k, v in new["E_a"].items()}
        return state._replace(nets=new)

    def warm_start(self, state, load):
        return state._replace(nets={**state.nets, "E_a": load("E_a", state.nets["E_a"])})

    def embed(self, state, image, net):
        """Features of classifier1 and classifier2 behind their batch norms, each of the image and its mirror
        image at unit length, added, at unit length again; "both": joined, the second times test_fine."""
        x = self.plain(image)
        looks = [self.copy.apply(state.nets["E_a"], v, False) for v in (x, x[:, :, ::-1])]
        prim, fine = (
            _steps.unit(sum(_steps.unit(getattr(look, n)) for look in looks))
            for n in ("neck_prim", "neck_fine")
        )
        if net == "both":
            return jnp.concatenate([prim, self.config.dgnet.test_fine * fine], -1)
        return prim if net == "prim" else fine

    # ---- the step

    def step(self, state, batch):
        new, metrics = self.update(state, self.images(batch), self.draw(state))
        return new, metrics | {"lr": self.rate(state.step)}

    def images(self, batch):
        """{"x", "p", "erased" f[2,B,H,W,3], "p_erased", "pid" i32[2,B]} of the streams a and b.

        x: images, p: others of the same identities.
        """
        plain = {n: self.view({**b, "erase": jnp.zeros_like(b["erase"])}) for n, b in batch.items()}
        views = {"x": plain, "erased": {n: self.view(b) for n, b in batch.items()}}
        rows = {"": slice(0, None, 2), "p": slice(1, None, 2)}
        both = {k: jnp.stack([v[n] for n in "ab"]) for k, v in views.items()}
        images = {"x": both["x"][:, rows[""]], "p": both["x"][:, rows["p"]]}
        if self.config.data.erase:
            images |= {"erased": both["erased"][:, rows[""]], "p_erased": both["erased"][:, rows["p"]]}
        return images | {"pid": jnp.stack([batch[n]["pid"][::2] for n in "ab"])}

    def draw(self, state):
        """Draws of a step."""
        first, dropout = jax.random.split(self.key(state))
        return Draws(jax.random.uniform(first) <= self.config.dgnet.encoder_again, dropout)

    def update(self, state, x, draws):
        """One iteration on `images`: (State, {name: f32[]})."""
        grads, stats, state, values, _ = self.gradients(state, x, draws)
        metrics = {n: jnp.asarray(v.sum(), jnp.result_type(float)) for n, v in values.items()}
        return self.moved(state, grads, stats), metrics

    def moved(self, state, grads, stats):
        """State after the step of E_s, G and E_a; grads, stats, state: of `gradients`."""
        state = _steps.moved(state, self.tx, {n: grads[n] for n in TRAINED}, stats)
        return state._replace(step=state.step + 1)

    def gradients(self, state, x, draws):
        """One iteration up to the last update: what `moved` takes, values, and what `forward` gave.

        ({net: gradient}, {net: batch_stats}, State after D's step, {name: f[] or f[2]}, {name: array}).
        Values of terms are of a and b where they have a part of each.
        """
        first, second = jax.random.split(draws.key)
        params = {n: state.nets[n]["params"] for n in TRAINED}

        def make(params):
            return self.forward(with_params(state.nets, params), x, first)

        out, pull, stats = jax.vjp(make, params, has_aux=True)
        state, judged, of_judge = self.judge(state, lax.stop_gradient(out), x)

        def total(out, params):
            nets = with_params(state.nets, params)
            values, stats_ = self.losses(nets, out, stats, x, Draws(draws.encoder, second), state.step)
            weight = self.weights(state.step, after=True)
            return sum(weight[n] * values[n].sum() for n in TERMS), (values, stats_)

        (loss, (values, stats)), (by_out, grads) = jax.value_and_grad(total, (0, 1), has_aux=True)(
            out, params
        )
        grads = jax.tree.map(jnp.add, pull(by_out)[0], grads)
        values = {"loss": loss, "dis": judged, **values}
        grads, stats, values = _steps.pmean((grads, stats, values), self.axis)
        return grads | {"D": of_judge}, {"E_a": stats}, state, values, out

    def judge(self, state, out, x):
        """(State with D one step on, its loss, gradient): summed over scales, x_ba against x_a, x_ab x_b."""
        d = self.config.dgnet

        def loss(params):
            fake, real = flat(out["swapped"]), flat(x["x"])
            value = generation.dis(self.modules["D"], {"params": params}, fake, real, penalty=d.penalty)
            return 2 * d.scales * d.w_adv * value

        value, grad = jax.value_and_grad(loss)(state.nets["D"]["params"])
        grad = _steps.pmean(grad, self.axis)
        return _steps.moved(state, self.tx, {"D": grad}, {}), value, grad


def with_params(nets, params):
    """nets with the params of some networks replaced."""
    return {**nets, **{n: {**nets[n], "params": p} for n, p in params.items()}}


def started(module, key, *args):
    """Fresh variables of a module."""
    return dict(module.init(key, *args))


def taken(variables, source):
    """The variables of an earlier stage in the place of `variables`; CheckpointError unless they fit."""
    here, there = (jax.tree_util.tree_leaves_with_path(dict(v)) for v in (variables, source))
    shapes = [[(jax.tree_util.keystr(p), x.shape) for p, x in leaves] for leaves in (here, there)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0]) ^ set(shapes[1]), key=str)[0]
        raise CheckpointError(
            f"the teacher's network is another one than this stage's ({odd[0]} {odd[1]}): both stages must "
            "have the same config.model and config.dgnet"
        )
    return jax.tree.map(jnp.asarray, dict(source))


# ---- optimisers


def rate(d, lr, gamma):
    """Learning rate of a 0-based step; the published code steps its schedule before the iteration."""
    return optax.piecewise_constant_schedule(lr, {m - 1: gamma for m in d.milestones})


def adam(optim, rate):
    """Adam with coupled decay."""
    moments = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay), moments, optax.scale_by_learning_rate(rate)
    )


def sgd(config):
    """E_a's: Nesterov, the classifiers' rate id_factor times the trunk's."""
    d, optim = config.dgnet, config.optim

    def chain(lr):
        schedule = rate(d, lr, d.id_gamma)
        return _steps.sgd(schedule, momentum=optim.momentum, weight_decay=optim.weight_decay, nesterov=True)

    def labels(params):
        return {k: "head" if k.startswith("classifier") else "trunk" for k in params}

    return optax.partition({"trunk": chain(d.id_lr), "head": chain(d.id_factor * d.id_lr)}, labels)
