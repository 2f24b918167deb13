"""DDGAN, DI-REID's first stage: losses and the training step.

A batch is a triple of images: x_i, its synthetic degradation x_j, another real image x_k. Even steps are
"self" phases on (a, b) = (x_i, x_j), odd ones "cross" phases on (x_i, x_k). x_pq = G(c_p, d_q) has the
content of p and the degradation of q. D_deg scores quality: higher is BETTER, the paper's sign turned;
reports show `judges.degradation_score`.

    term       of the generator                                                 phases
    inv        L1(c_a, c_b)                                                     self
    self_rec   L1(x_aa, x_a), in the cross phase and with degraded_recon also x_bb  both
    rec        L1(x_ba, x_a), with degraded_recon also x_ab; cross: the cycle   both
    pre        L1 of E_id's features of x_ab, x_a and of x_ba, x_b              both
    id         cross entropy on f_inv; with self_kl KL(p_a || p_b)              cross; self
    real       generated images pass for real                                   both
    deg        generated images have the degradation they were given            both
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import lax

from reid_jax.config import choice
from reid_jax.data import streams
from reid_jax.losses import distill, identity
from reid_jax.methods import State, _optim, _steps
from reid_jax.methods.direid import judges, study
from reid_jax.methods.direid import nets as networks
from reid_jax.methods.direid.stage import STEM, Stage, graft, moved
from reid_jax.models import gan as layers
from reid_jax.models.layers import wide

TERMS = ("inv", "self_rec", "rec", "pre", "id", "real", "deg")
GENERATOR = ("E_con", "E_deg", "G")
DISCRIMINATORS = ("D_real", "D_deg")
FROZEN = {"E_con": (STEM,)}  # modules of the trained networks that rest; the teacher E_id rests as a whole


class Draws(NamedTuple):
    """What a step draws at random, the same on every device but for the key."""

    cross: jax.Array  # bool[], the phase
    first: jax.Array  # bool[], D_real's fake in the self phase is x_ab, else x_ba (reality_self "swapped")
    key: jax.Array  # for dropout


class Ddgan(Stage):
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

    # ---- forward

    def encode(self, nets, x_a, x_b, cross, *, train, key=None):
        """Codes and the four images of a pair: ({name: array}, E_con's batch_stats).

        Names: f_a, f_b, c_a, c_b, d_a, d_b, x_aa, x_bb, x_ab, x_ba; where the phase has the term "id" also
        p_a, p_b of the classifier. d_b is by E_d in the cross phase, else by E'_d.
        """
        E_con = self.modules["E_con"]
        (f, c), stats = layers.each(E_con, nets["E_con"], jnp.stack([x_a, x_b]), train=train)
        out = {"f_a": f[0], "f_b": f[1], "c_a": c[0], "c_b": c[1]}
        if "id" in self.terms[cross]:
            variables = {**nets["E_con"], "batch_stats": stats}
            (_, p), stats = layers.each(E_con, variables, f, train=train, method="classify", key=key)
            out["p_a"], out["p_b"] = p
        if cross:
            out["d_a"], out["d_b"] = jnp.split(self.apply(nets, "E_deg", jnp.concatenate([x_a, x_b])), 2)
        else:
            out["d_a"], out["d_b"] = self.apply(nets, "E_deg", x_a, x_b, method="both")
        pairs = ("aa", "bb", "ab", "ba")
        c = jnp.concatenate([out[f"c_{p}"] for p, _ in pairs])
        d = jnp.concatenate([out[f"d_{q}"] for _, q in pairs])
        images = jnp.split(self.apply(nets, "G", c, d), 4)
        return out | {f"x_{p}": x for p, x in zip(pairs, images, strict=True)}, stats

    def cycle(self, nets, stats, out, x_a, x_b, train):
        """Images decoded from the codes of generated ones, against the originals: (L1 sum, batch_stats)."""
        variables, fakes = {**nets["E_con"], "batch_stats": stats}, (out["x_ab"], out["x_ba"])
        c, stats = layers.each(
            self.modules["E_con"], variables, jnp.stack(fakes), train=train, method="content"
        )
        d_b, d_a = jnp.split(self.apply(nets, "E_deg", jnp.concatenate(fakes)), 2)
        images = self.apply(nets, "G", jnp.concatenate([*c]), jnp.concatenate([d_a, d_b]))
        return 2 * judges.l1(images, jnp.concatenate([x_a, x_b])), stats

    # ---- losses

    def discriminator_losses(self, nets, out, batch, draws, cross):
        """Weighted losses of D_real and D_deg, {"real", "deg": f[]} as far as the phase has them.

        nets: {"D_real", "D_deg": {"params"}}, differentiated; out: of `encode`, taken without gradient.
        """
        out, values = lax.stop_gradient(out), {}
        if "real" in self.terms[cross]:
            values["real"] = self.weight["real"] * self.D_real_loss(nets["D_real"], out, batch, draws, cross)
        if "deg" in self.terms[cross]:
            values["deg"] = self.weight["deg"] * self.D_deg_loss(nets["D_deg"], *pair(batch, cross), cross)
        return values

    def D_real_loss(self, params, out, batch, draws, cross):
        """D_real's loss: the sum over pairs of a generated and a real image."""
        d, (x_a, x_b) = self.config.direid, pair(batch, cross)
        if cross:
            fakes, reals = (out["x_ab"], out["x_ba"]), (x_a, x_b)
        elif d.reality_self == "synthetic":
            fakes, reals = (out["x_ab"], out["x_bb"]), (x_a, batch["x_k"])
        else:
            fakes, reals = (jnp.where(draws.first, out["x_ab"], out["x_ba"]),), (x_a,)
        options = dict(form=d.gan_form, penalty=d.gradient_penalty)
        images = jnp.concatenate(fakes), jnp.concatenate(reals)  # one mean over all, the pairs being alike
        return len(fakes) * judges.dis(self.modules["D_real"], params, *images, **options)

    def D_deg_loss(self, params, x_a, x_b, cross):
        """D_deg's loss: x_b is worse than x_a, where nobody knows it D_deg's own opinion is made firmer."""
        d, net = self.config.direid, self.modules["D_deg"]
        if cross and self.semi:
            return 2 * judges.dis(net, params, x_b, x_a, form=d.gan_form, penalty=d.gradient_penalty)
        y = judges.predict(net, params, x_b, x_a) if cross else -1.0
        return judges.rank_dis(net, params, x_b, x_a, y, margin=d.rank_margin, penalty=d.gradient_penalty)

    def generator_losses(self, nets, out, stats, batch, cross, train=True):
        """Weighted losses of E_con, E_deg and G by term, and E_con's batch_stats: ({term: f[]}, batch_stats).

        nets: all networks, the discriminators already updated; out, stats: of `encode`.
        """
        (x_a, x_b), there, values = pair(batch, cross), self.terms[cross], {}
        degraded = cross or self.config.direid.degraded_recon
        l1 = judges.l1
        if "inv" in there:
            values["inv"] = l1(out["c_a"], out["c_b"])
        if "self_rec" in there:
            values["self_rec"] = l1(out["x_aa"], x_a) + (l1(out["x_bb"], x_b) if degraded else 0)
        if "rec" in there and not cross:
            values["rec"] = l1(out["x_ba"], x_a) + (l1(out["x_ab"], x_b) if degraded else 0)
        if "pre" in there:
            values["pre"] = self.preservation(nets, out, x_a, x_b)
        if "id" in there:
            values["id"] = prediction(out, batch, cross)
        if "real" in there:
            values["real"] = self.reality(nets, out, cross)
        if "deg" in there:
            values["deg"] = self.degradation(nets, out, x_a, x_b, cross)
        values = {name: self.weight[name] * value for name, value in values.items()}
        if "rec" in there and cross:
            loss, stats = self.cycle(nets, stats, out, x_a, x_b, train)
            values["rec"] = self.weight["cycle"] * loss
        return values, stats

    def preservation(self, nets, out, x_a, x_b):
        """L_pre (eq. 3, 8): E_id is in test mode and gives gradient to the generated images only."""
        nets = lax.stop_gradient({"E_id": nets["E_id"]})
        target = self.apply(nets, "E_id", jnp.concatenate([x_a, x_b]), False)
        output = self.apply(nets, "E_id", jnp.concatenate([out["x_ab"], out["x_ba"]]), False)
        return 2 * judges.l1(output, lax.stop_gradient(target))

    def reality(self, nets, out, cross):
        """L_real of the generator: swapped images pass for real, in the paper's self phase those by E'_d."""
        d = self.config.direid
        other = "x_bb" if not cross and d.reality_self == "synthetic" else "x_ba"
        fakes = jnp.concatenate([out["x_ab"], out[other]])
        return 2 * judges.gen(self.modules["D_real"], nets["D_real"], fakes, form=d.gan_form)

    def degradation(self, nets, out, x_a, x_b, cross):
        """L_deg of the generator: x_ab is to be as degraded as x_b, x_ba as good as x_a."""
        d, judge = self.config.direid, (self.modules["D_deg"], nets["D_deg"])
        if cross and self.semi:
            worse = judges.gen(*judge, out["x_ab"], real=False, form=d.gan_form)
            return worse + judges.gen(*judge, out["x_ba"], form=d.gan_form)
        y = judges.predict(*judge, x_b, x_a) if cross else -1.0
        if d.rank_generator == "generated":
            return judges.rank_gen(*judge, out["x_ab"], out["x_ba"], y, margin=d.rank_margin)
        both = jnp.concatenate([y, y]) if cross else y
        lower, higher = jnp.concatenate([out["x_ab"], x_b]), jnp.concatenate([x_a, out["x_ba"]])
        return 2 * judges.rank_gen(*judge, lower, higher, both, margin=d.rank_margin)


def pair(batch, cross):
    """(x_a, x_b) of a phase."""
    return batch["x_i"], batch["x_k" if cross else "x_j"]


def prediction(out, batch, cross):
    """The term "id" f[] of logits p_a, p_b [B,K]."""
    if not cross:
        return distill.kl(out["p_a"], out["p_b"], detach=False)
    labels = zip("ab", (batch["pid_i"], batch["pid_k"]), strict=True)
    return sum(identity.cross_entropy(out[f"p_{side}"], pid) for side, pid in labels)


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


# ---- what a config says


def terms(config, cross):
    """Terms that a phase has."""
    d = config.direid
    dropped = d.without_cross if cross else d.without_self
    for name in dropped:
        choice(f"direid.without_{'cross' if cross else 'self'}", name, TERMS)
    there = {n: True for n in TERMS} | {
        "inv": not cross,
        "rec": bool(d.w_cycle) or not cross,
        "pre": bool(d.w_pre),
        "id": cross or d.self_kl,
    }
    return [n for n in TERMS if there[n] and n not in dropped]


def weights(d):
    """{term: its weight} of config.direid; "cycle" is of "rec" in the cross phase."""
    weight = dict(inv=d.w_inv, self_rec=d.w_recon, rec=d.w_recon, pre=d.w_pre, id=d.w_id)
    return weight | dict(real=d.w_real, deg=d.w_deg, cycle=d.w_cycle)


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


# ---- groups of parameters


def group_of(path):
    """Group of a parameter by its path (network, module, ...): each group has an optimiser state of its own.

    "identity" (identity branch and classifier of E_con) and "sync" (E'_d) rest in phases without gradient.
    """
    if path[0] in DISCRIMINATORS:
        return path[0]
    if path[0] == "E_con" and (path[1] == "classifier" or path[2].startswith("identity_")):
        return "identity"
    return "sync" if path[0] == "E_deg" and path[1] in ("trunk_sync", "conv3_sync") else "generator"


def trained(nets, names):
    """{name: params} of networks, without the modules that are FROZEN."""
    return {
        name: {k: v for k, v in nets[name]["params"].items() if k not in FROZEN.get(name, ())}
        for name in names
    }


def with_params(nets, params):
    """nets with the params of some networks' modules replaced."""
    new = {n: {**nets[n], "params": {**nets[n]["params"], **p}} for n, p in params.items()}
    return {**nets, **new}


def split_groups(params):
    """{group: {"net/module/.../leaf": array}} of {name: params}."""
    groups = {}
    for path, leaf in sorted(traverse_util.flatten_dict(params).items()):
        groups.setdefault(group_of(path), {})["/".join(path)] = leaf
    return dict(sorted(groups.items()))  # the same order in every process


def join_groups(groups):
    """The inverse of `split_groups`."""
    leaves = {k: v for group in groups.values() for k, v in group.items()}
    return traverse_util.unflatten_dict(leaves, sep="/")
