"""Stage "dgnet": structure of one person in the appearance of another, and what the generated pictures teach.

Two people a and b at a time, each with another image of the same identity (p_a, p_b). x_ba = G(s_b, a_a) has
the structure of b and the appearance of a. D steps first; then E_s, G and E_a together, against the new D.

    term       weight          what
    adv        w_adv           generated pictures pass for real
    self       w_self          L1 of G(s_a, a_a) to x_a; and of b, as in all terms
    same       w_same          L1 of G(s_a, a of p_a) to x_a
    id, pid    w_id, w_pid     cross entropy on x_a (erased, if data.erase says so) and on p_a
    gen_id     w_generated     cross entropy on x_ba by a frozen copy of E_a
    code       warm_code       L1 of that copy's code of x_ba to a_a (moves nothing unless live_code)
    structure  warm_structure  L1 of E_s of x_ab to s_a
    cycle      warm_cycle      L1 of the picture decoded from these two to x_a
    teacher    warm_teacher    classifier1 as the teacher on x_ba; classifier2 as the structure's person, b
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from reid_jax.config import choice
from reid_jax.data import streams
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.losses import generation, identity
from reid_jax.methods import Method, _steps
from reid_jax.methods.dgnet import nets as networks
from reid_jax.methods.dgnet import study
from reid_jax.models import gan
from reid_jax.models.layers import wide

TRAINED = ("E_s", "G", "E_a")  # together; D has a step of its own, T rests
STYLES = ("soft", "hard", "appearance", "uniform", "both")
WARM = ("code", "structure", "cycle", "teacher")
TERMS = ("adv", "self", "same", "id", "pid", "gen_id", *WARM)


class Draws(NamedTuple):
    """What a step draws at random, the same on every device."""

    encoder: jax.Array  # bool[]: the structure term trains E_s, else the pictures
    key: jax.Array  # for dropout


class Dgnet(Method):
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

    # ---- forward

    def structure(self, nets, x):
        """E_s of images [...,H,W,3] (one leading axis or two)."""
        maps = self.modules["E_s"].apply(nets["E_s"], networks.grey(flat(x)))
        return maps.reshape(*x.shape[:-3], *maps.shape[1:])

    def decode(self, nets, s, code):
        """Images [N,2,B,H,W,3] of structures [N,2,B,...] and codes [N,2,B,D]."""
        images = self.modules["G"].apply(
            nets["G"], s.reshape(-1, *s.shape[-3:]), code.reshape(-1, code.shape[-1])
        )
        return images.reshape(*s.shape[:3], *images.shape[1:])

    def looks(self, nets, stats, x, key):
        """E_a in training on [P,B,H,W,3], one part after the other: (Look [P,B,...], batch_stats)."""
        variables = {**nets["E_a"], "batch_stats": stats}
        return gan.each(self.modules["E_a"], variables, x, train=True, key=key)

    def forward(self, nets, x, key):
        """({name: array}, E_a's batch_stats): structures, codes, logits and the six pictures of a and b.

        s, swapped (x_ba, x_ab), self, same: [2,B,...]; look: of x_a, x_b, p_a, p_b [4,B,...].
        """
        s = self.structure(nets, x["x"])
        images = jnp.concatenate([x["x"], x["p"]])
        look, stats = self.looks(nets, nets["E_a"]["batch_stats"], images, key)
        code = look.code[:2]
        decoded = self.decode(nets, jnp.stack([s[::-1], s, s]), jnp.stack([code, code, look.code[2:]]))
        return {"s": s, "look": look, **dict(zip(("swapped", "self", "same"), decoded, strict=True))}, stats

    # ---- losses

    def losses(self, nets, out, stats, x, draws, step):
        """({term: f[] or f[2]}, E_a's batch_stats) of the generator's side; nets: with the new D."""
        d, pid = self.config.dgnet, x["pid"]
        key_erased, key_teacher = jax.random.split(draws.key)
        look = out["look"]
        if "erased" in x:
            images = jnp.concatenate([x["erased"], x["p_erased"]])
            look, stats = self.looks(nets, stats, images, key_erased)
        before = self.weights(step, after=False)
        fine = before["teacher"] * d.w_fine * each_entropy(look.fine[:2], pid)
        copied = lax.stop_gradient({"params": nets["E_a"]["params"], "batch_stats": stats})
        seen, _ = gan.each(self.copy, copied, out["swapped"], train=d.train_bn)
        values = {
            "adv": d.scales
            * jax.vmap(lambda i: generation.gen(self.modules["D"], nets["D"], i))(out["swapped"]),
            "self": apart(out["self"], x["x"]),
            "same": apart(out["same"], x["x"]),
            "id": each_entropy(look.prim[:2], pid) + fine,
            "pid": each_entropy(look.prim[2:], pid),
            "gen_id": each_entropy(seen.prim, pid),
        }
        code = lax.stop_gradient(out["look"].code[:2])
        values["code"] = where(before["code"], apart(seen.code, code))
        values |= self.again(nets, out, seen.code, x, draws.encoder, before)
        values["teacher"], stats = self.taught(nets, out, stats, pid, key_teacher, before["teacher"])
        return values, stats

    def again(self, nets, out, code, x, encoder, weight):
        """{"structure", "cycle": f[2]}: the swapped pictures encoded and, with their codes, decoded again.

        encoder: bool[], whether E_s learns from the pictures as they are, else they from E_s as it is.
        """
        d = self.config.dgnet
        zero = jnp.zeros(2, wide(x["x"]).dtype)
        if not (reached(d.warm_structure) or reached(d.warm_cycle)):
            return {"structure": zero, "cycle": zero}

        def compute(nets, out, code):
            image = jnp.where(encoder, lax.stop_gradient(out["swapped"]), out["swapped"])
            E_s = jax.tree.map(lambda p: jnp.where(encoder, p, lax.stop_gradient(p)), nets["E_s"])
            s = self.structure({"E_s": E_s}, image)[::-1]  # of x_ab, then of x_ba
            image = self.decode(nets, s[None], code[None])[0]
            structure = where(weight["structure"], apart(s, lax.stop_gradient(out["s"])))
            return {"structure": structure, "cycle": where(weight["cycle"], apart(image, x["x"]))}

        def nothing(nets, out, code):
            return {"structure": zero, "cycle": zero}

        needed = (weight["structure"] > 0) | (weight["cycle"] > 0)
        parts = {n: nets[n] for n in ("E_s", "G")}, {n: out[n] for n in ("s", "swapped")}, code
        return lax.cond(needed, compute, nothing, *parts)

    def taught(self, nets, out, stats, pid, key, weight):
        """(f[], E_a's batch_stats): what the fixed pictures teach E_a."""
        d = self.config.dgnet
        if "T" not in nets:
            return jnp.zeros(()), stats

        look_type = out["look"].prim.dtype

        def compute(nets, images, stats):
            look, stats = self.looks(nets, stats, images, key)
            target = self.target(nets, images, pid)
            student = jax.nn.log_softmax(look.prim)
            prim = jnp.where(target > 0, target * (jnp.log(jnp.where(target > 0, target, 1)) - student), 0)
            fine = each_entropy(look.fine, pid[::-1])
            return d.w_prim * prim.sum(-1).mean(-1).sum() + d.w_fine * fine, stats

        def nothing(nets, images, stats):
            return jnp.zeros((), look_type), stats

        parts = {n: nets[n] for n in ("E_a", "T")}, lax.stop_gradient(out["swapped"]), stats
        return lax.cond(weight > 0, compute, nothing, *parts)

    def target(self, nets, images, pid):
        """What classifier1 is to say of x_ba, x_ab [2,B,H,W,3], identities pid i32[2,B] being those of the
        appearance: f[2,B,K], no gradient."""
        style, classes = self.config.dgnet.teacher_style, self.info.num_pids
        appearance, structure = (jax.nn.one_hot(p, classes, dtype=images.dtype) for p in (pid, pid[::-1]))
        if style == "appearance":
            return appearance
        if style == "uniform":
            return jnp.full_like(appearance, 1 / classes)
        p = lax.stop_gradient(self.opinion(nets, images))
        if style == "hard":
            return jax.nn.one_hot(p.argmax(-1), classes, dtype=p.dtype)
        if style == "both":
            p = p * jnp.maximum(appearance, structure)
        return p / p.sum(-1, keepdims=True)

    def enlarged(self, x):
        """Images [B,H,W,3] as the teacher takes them."""
        return networks.enlarged(x, self.config.dgnet.scale2)

    def opinion(self, nets, images):
        """The teacher's probabilities of images [2,B,H,W,3] and of their mirror images, added: f[2,B,K]."""
        images = jax.vmap(self.enlarged)(images)
        both = jnp.concatenate([images, images[:, :, :, ::-1]])
        out, _ = gan.each(
            self.modules["T"], lax.stop_gradient(nets["T"]), both, train=self.config.dgnet.train_bn
        )
        plain, mirrored = jnp.split(jax.nn.softmax(out.logits[0]), 2)
        return plain + mirrored

    def weights(self, step, after):
        """{term: weight} at a 0-based step; after: when those that rise have been raised in it."""
        d = self.config.dgnet
        fixed = dict(adv=d.w_adv, self=d.w_self, same=d.w_same, id=d.w_id, pid=d.w_pid, gen_id=d.w_generated)
        from_ = dict.fromkeys(WARM, d.warm_from) | {"teacher": d.warm_teacher_from}
        ranges = dict(
            code=d.warm_code, structure=d.warm_structure, cycle=d.warm_cycle, teacher=d.warm_teacher
        )
        return fixed | {n: raised(step, from_[n], d.warm_by, *ranges[n], after) for n in WARM}


def raised(step, begin, by, low, high, after):
    """A weight that rises in every step beyond number `begin`, before or after the step's own rise."""
    rises = jnp.maximum(step - begin - (0 if after else 1), 0)
    return jnp.minimum(low + by * rises, jnp.maximum(low, high))


def reached(limits):
    """Whether a weight of (first, last) is ever positive."""
    return max(limits) > 0


def where(weight, value):
    """value where weight is positive, else 0."""
    return jnp.where(weight > 0, value, 0)


def each_entropy(logits, pid):
    """Sum over the leading axis of the mean cross entropies of logits f[2,B,K]."""
    return sum(identity.cross_entropy(x, p) for x, p in zip(logits, pid, strict=True))


def apart(a, b):
    """Mean absolute difference of each of the two leading parts, f[2]."""
    return jnp.abs(wide(a) - wide(b)).reshape(2, -1).mean(1)


def flat(x):
    """[...,H,W,C] -> [N,H,W,C]."""
    return x.reshape(-1, *x.shape[-3:])


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
