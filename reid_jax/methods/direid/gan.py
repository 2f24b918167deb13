"""DDGAN, DI-REID's first stage: losses and the training step.

A batch is a triple of images: x_i, its synthetic degradation x_j, another real image x_k. Even steps are
"self" phases on (a, b) = (x_i, x_j), odd ones "cross" phases on (x_i, x_k). x_pq = G(c_p, d_q) has the
content of p and the degradation of q. D_deg scores quality: higher is BETTER, the paper's sign turned;
reports show `degradation_score`.

    term       of the generator                                                 phases
    inv        L1(c_a, c_b)                                                     self
    self_rec   L1(x_aa, x_a), in the cross phase and with degraded_recon also x_bb  both
    rec        L1(x_ba, x_a), with degraded_recon also x_ab; cross: the cycle   both
    pre        L1 of E_id's features of x_ab, x_a and of x_ba, x_b              both
    id         cross entropy on f_inv; with self_kl KL(p_a || p_b)              cross; self
    real       generated images pass for real                                   both
    deg        generated images have the degradation they were given            both
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import lax

from reid_jax.config import choice
from reid_jax.losses import distill, identity
from reid_jax.methods import State, parts
from reid_jax.methods.direid import nets
from reid_jax.methods.direid.layers import run, wide
from reid_jax.models.layers import BatchNorm

TERMS = ("inv", "self_rec", "rec", "pre", "id", "real", "deg")
GENERATOR = ("E_con", "E_deg", "G")
DISCRIMINATORS = ("D_real", "D_deg")


class Models(NamedTuple):
    """Modules of the first stage, the optimiser of every group of parameters; E_id is None without `pre`."""

    E_con: Any
    E_deg: Any
    G: Any
    D_real: Any
    D_deg: Any
    E_id: Any = None
    tx: Any = None


class Draws(NamedTuple):
    """What a step draws at random, the same on every device but for the key."""

    cross: jax.Array  # bool[], the phase
    first: jax.Array  # bool[], D_real's fake in the self phase is x_ab, else x_ba (reality_self "swapped")
    key: jax.Array  # for dropout


# ---- primitives (means over the device's images; means over devices are those of the global batch)


def l1(a, b):
    """Mean absolute difference."""
    return jnp.abs(wide(a) - wide(b)).mean()


def hinge(u, v, y, margin=1.0):
    """Mean of max(0, margin - y (u - v)): y = -1 wants u a margin below v. u, v f[B], y f[B] or a number."""
    return jax.nn.relu(margin - y * (u - v)).mean()


def mean_score(o):
    """Map [B,h,w,1] -> [B]."""
    return o.mean((1, 2, 3))


def scores(net, params, x):
    """Mean scores of every scale f[B,S] of images [B,H,W,3]."""
    return jnp.stack([mean_score(o) for o in net.apply(params, x)], -1)


def degradation_score(net, params, x):
    """How degraded images [B,H,W,3] look to D_deg, f[B]: higher is worse."""
    return -scores(net, params, x).mean(-1)


def predict(net, params, p, q):
    """+1 where p scores at least as high as q, else -1: f[B], no gradient."""
    gap = (scores(net, params, p) - scores(net, params, q)).sum(-1)
    return lax.stop_gradient(jnp.where(gap >= 0, 1.0, -1.0).astype(gap.dtype))


def penalised(net, params, x, reduce):
    """Maps of every scale [B,h,w,1] and the squared norms f[B] of the gradients of reduce(map) by x."""

    def each(s):
        def total(x):
            o = net.apply(params, x, s, method="scale")
            return reduce(o).sum(), o

        grad, o = jax.grad(total, has_aux=True)(x)
        return o, jnp.square(wide(grad)).sum((1, 2, 3))

    return list(zip(*(each(s) for s in range(net.scales)), strict=True))


def as_real(o, form):
    """Loss of a map that should look real: least squares to 1, or -log sigmoid."""
    return jnp.square(o - 1).mean() if form == "ls" else jax.nn.softplus(-o).mean()


def as_fake(o, form):
    return jnp.square(o).mean() if form == "ls" else jax.nn.softplus(o).mean()


def dis(net, params, fake, real, *, form="ls", penalty=0.01):
    """Loss of a discriminator; the penalty is on the squared gradient of the summed map of real images."""
    maps, squares = penalised(net, params, real, lambda o: o)
    fakes = net.apply(params, fake)
    values = [
        as_fake(f, form) + as_real(r, form) + penalty * s.mean()
        for f, r, s in zip(fakes, maps, squares, strict=True)
    ]
    return sum(values) / len(values)


def gen(net, params, x, real=True, *, form="ls"):
    """Loss of generated images x that should pass for real (or for fake); least squares count twice."""
    maps = net.apply(params, x)
    loss = sum((as_real if real else as_fake)(o, form) for o in maps) / len(maps)
    return 2 * loss if form == "ls" else loss


def rank_dis(net, params, lower, higher, y=-1.0, *, margin=1.0, penalty=0.01):
    """Loss of a ranking discriminator: `lower` scores a margin below `higher` (y -1), or above it (y 1)."""
    maps, squares = penalised(net, params, higher, mean_score)
    lowers = net.apply(params, lower)
    values = [
        hinge(mean_score(u), mean_score(v), y, margin) + penalty * s.mean()
        for u, v, s in zip(lowers, maps, squares, strict=True)
    ]
    return sum(values) / len(values)


def rank_gen(net, params, p, q, y=-1.0, *, margin=1.0):
    """Loss of images p that should score a margin below q (y -1) or above (y 1)."""
    u, v = (scores(net, params, x).T for x in (p, q))
    return hinge(u, v, y, margin)


# ---- forward


def paired(module, variables, x, *, train, method=None, key=None):
    """`run` on the two halves x [2,B,...], one after the other: ([2,...] outputs, batch_stats).

    Each half has its own batch statistics; together they are one call, half the work to compile.
    """
    keys = None if key is None else jax.random.split(key)

    def one(x, key=None):
        return run(module, variables, x, train=train, method=method, key=key)

    out, stats = jax.vmap(one)(x) if keys is None else jax.vmap(one)(x, keys)
    if not train:
        return out, variables["batch_stats"]

    def in_turn(old, new):
        """From m old + (1 - m) a and m old + (1 - m) b: m (m old + (1 - m) a) + (1 - m) b."""
        return new[1] + BatchNorm.momentum * (new[0] - old)

    return out, jax.tree.map(in_turn, variables["batch_stats"], stats)


def encode(variables, x_a, x_b, *, models, cross, logits, train, key=None):
    """Codes and the four images of a pair: ({name: array}, E_con's batch_stats).

    cross: E_d codes x_b too, else E'_d. logits: p_a, p_b of the classifier as well.
    Names: f_a, f_b, c_a, c_b, d_a, d_b, x_aa, x_bb, x_ab, x_ba.
    """
    both = jnp.stack([x_a, x_b])
    (f, c), stats = paired(models.E_con, variables["E_con"], both, train=train)
    out = {"f_a": f[0], "f_b": f[1], "c_a": c[0], "c_b": c[1]}
    if logits:
        own = {**variables["E_con"], "batch_stats": stats}
        (_, p), stats = paired(models.E_con, own, f, train=train, method="classify", key=key)
        out["p_a"], out["p_b"] = p
    if cross:
        d = models.E_deg.apply(variables["E_deg"], jnp.concatenate([x_a, x_b]))
        out["d_a"], out["d_b"] = jnp.split(d, 2)
    else:
        out["d_a"], out["d_b"] = models.E_deg.apply(variables["E_deg"], x_a, x_b, method="both")
    pairs = ("aa", "bb", "ab", "ba")
    c = jnp.concatenate([out[f"c_{p}"] for p, _ in pairs])
    d = jnp.concatenate([out[f"d_{q}"] for _, q in pairs])
    images = models.G.apply(variables["G"], c, d)
    return out | {f"x_{p}": x for p, x in zip(pairs, jnp.split(images, 4), strict=True)}, stats


def cycle(variables, stats, out, x_a, x_b, *, models, train):
    """Images decoded from the codes of generated ones, against the originals: (L1 sum, batch_stats)."""
    own = {**variables["E_con"], "batch_stats": stats}
    made = jnp.stack([out["x_ab"], out["x_ba"]])
    c, stats = paired(models.E_con, own, made, train=train, method="content")
    d_b, d_a = jnp.split(
        models.E_deg.apply(variables["E_deg"], jnp.concatenate([out["x_ab"], out["x_ba"]])), 2
    )
    images = models.G.apply(variables["G"], jnp.concatenate([*c]), jnp.concatenate([d_a, d_b]))
    return 2 * l1(images, jnp.concatenate([x_a, x_b])), stats


# ---- losses


def terms(config, cross):
    """Terms that a phase has, by config."""
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


def weights(config):
    """{term: its weight}; the step takes them as an argument, so that they may be traced."""
    d = config.direid
    found = dict(inv=d.w_inv, self_rec=d.w_recon, rec=d.w_recon, pre=d.w_pre, id=d.w_id)
    return found | dict(real=d.w_real, deg=d.w_deg, cycle=d.w_cycle)


def discriminator_losses(params, out, batch, draws, weight, *, models, config, cross):
    """Weighted losses of D_real and D_deg, {"real", "deg": f[]} as far as the phase has them.

    params: {"D_real", "D_deg": {"params"}}, differentiated; out: of `encode`, taken without gradient.
    """
    d, out = config.direid, lax.stop_gradient(out)
    x_a, x_b, x_k = batch["x_i"], batch["x_k" if cross else "x_j"], batch["x_k"]
    options = dict(form=choice("direid.gan_form", d.gan_form, ("ls", "log")), penalty=d.gradient_penalty)
    found = {}
    if "real" in terms(config, cross):
        real = params["D_real"]
        if cross:
            fakes, reals = (out["x_ab"], out["x_ba"]), (x_a, x_b)
        elif choice("direid.reality_self", d.reality_self, ("synthetic", "swapped")) == "synthetic":
            fakes, reals = (out["x_ab"], out["x_bb"]), (x_a, x_k)
        else:
            fakes, reals = (jnp.where(draws.first, out["x_ab"], out["x_ba"]),), (x_a,)
        # all parts are means over as many images
        loss = dis(models.D_real, real, jnp.concatenate(fakes), jnp.concatenate(reals), **options)
        found["real"] = weight["real"] * len(fakes) * loss
    if "deg" in terms(config, cross):
        own, net = params["D_deg"], models.D_deg
        if cross and config.data.pairs == "semi":
            loss = 2 * dis(net, own, x_b, x_a, **options)
        else:
            y = predict(net, own, x_b, x_a) if cross else -1.0
            loss = rank_dis(net, own, x_b, x_a, y, margin=d.rank_margin, penalty=d.gradient_penalty)
        found["deg"] = weight["deg"] * loss
    return found


def generator_losses(variables, out, stats, batch, weight, *, models, config, cross, train):
    """Weighted losses of E_con, E_deg and G by term, and E_con's batch_stats: ({term: f[]}, batch_stats).

    variables: of all networks, the discriminators already updated; out, stats: of `encode`.
    """
    d, there = config.direid, terms(config, cross)
    x_a, x_b = batch["x_i"], batch["x_k" if cross else "x_j"]
    degraded = cross or d.degraded_recon
    found = {}
    if "inv" in there:
        found["inv"] = l1(out["c_a"], out["c_b"])
    if "self_rec" in there:
        found["self_rec"] = l1(out["x_aa"], x_a) + (l1(out["x_bb"], x_b) if degraded else 0)
    if "rec" in there and not cross:
        found["rec"] = l1(out["x_ba"], x_a) + (l1(out["x_ab"], x_b) if degraded else 0)
    if "pre" in there:
        found["pre"] = preservation(variables["E_id"], out, x_a, x_b, models.E_id)
    if "id" in there and cross:
        pids = zip("ab", (batch["pid_i"], batch["pid_k"]), strict=True)
        found["id"] = sum(identity.cross_entropy(out[f"p_{side}"], pid) for side, pid in pids)
    elif "id" in there:
        found["id"] = distill.kl(out["p_a"], out["p_b"], detach=False)
    if "real" in there:
        found["real"] = reality(variables["D_real"], out, models.D_real, d, cross)
    if "deg" in there:
        semi = config.data.pairs == "semi"
        found["deg"] = degradation(variables["D_deg"], out, x_a, x_b, models.D_deg, d, cross, semi)
    found = {name: weight[name] * value for name, value in found.items()}
    if "rec" in there and cross:
        loss, stats = cycle(variables, stats, out, x_a, x_b, models=models, train=train)
        found["rec"] = weight["cycle"] * loss
    return found, stats


def preservation(variables, out, x_a, x_b, E_id):
    """L_pre (eq. 3, 8): E_id is frozen, in test mode, and gives gradient to the generated images only."""
    variables = lax.stop_gradient(variables)
    target = E_id.apply(variables, jnp.concatenate([x_a, x_b]), False)
    made = E_id.apply(variables, jnp.concatenate([out["x_ab"], out["x_ba"]]), False)
    return 2 * l1(made, lax.stop_gradient(target))


def reality(params, out, net, d, cross):
    """L_real of the generator: swapped images pass for real; in the paper's self phase those with E'_d."""
    other = "x_bb" if not cross and d.reality_self == "synthetic" else "x_ba"
    return 2 * gen(net, params, jnp.concatenate([out["x_ab"], out[other]]), form=d.gan_form)


def degradation(params, out, x_a, x_b, net, d, cross, semi=False):
    """L_deg of the generator: x_ab is to be as degraded as x_b, x_ba as good as x_a.

    semi: x_a is known to be good, x_b poor (cross phase).
    """
    if cross and semi:
        worse = gen(net, params, out["x_ab"], real=False, form=d.gan_form)
        return worse + gen(net, params, out["x_ba"], form=d.gan_form)
    y = predict(net, params, x_b, x_a) if cross else -1.0
    if choice("direid.rank_generator", d.rank_generator, ("inputs", "generated")) == "generated":
        return rank_gen(net, params, out["x_ab"], out["x_ba"], y, margin=d.rank_margin)
    both = jnp.concatenate([y, y]) if cross else y
    lower, higher = jnp.concatenate([out["x_ab"], x_b]), jnp.concatenate([x_a, out["x_ba"]])
    return 2 * rank_gen(net, params, lower, higher, both, margin=d.rank_margin)


# ---- the step


def group_of(path):
    """Group of a parameter by its path (network, module, ...): each group has an optimiser state of its own.

    "identity" (identity branch and classifier of E_con) and "sync" (E'_d) rest in phases without gradient.
    """
    if path[0] in DISCRIMINATORS:
        return path[0]
    if path[0] == "E_con" and (path[1] == "classifier" or path[2].startswith("identity_")):
        return "identity"
    return "sync" if path[0] == "E_deg" and path[1] in ("trunk_sync", "conv3_sync") else "generator"


def active(config, cross):
    """Groups that a phase trains."""
    there = terms(config, cross)
    groups = {"generator"} | {g for g, t in (("D_real", "real"), ("D_deg", "deg")) if t in there}
    return groups | ({"identity"} if "id" in there else set()) | (set() if cross else {"sync"})


def trained(variables, names):
    """{name: params} of networks; E_con's without its stem, which is never trained here."""
    found = {n: dict(variables[n]["params"]) for n in names}
    if "E_con" in found:
        del found["E_con"]["base"]
    return found


def with_params(variables, params):
    """variables with the params of some networks replaced."""
    new = {n: {**variables[n], "params": {**variables[n]["params"], **p}} for n, p in params.items()}
    return {**variables, **new}


def split_groups(params):
    """{group: {"net/module/.../leaf": array}} of {name: params}."""
    groups = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        groups.setdefault(group_of(path), {})["/".join(path)] = leaf
    return groups


def join_groups(groups):
    """The inverse of `split_groups`."""
    leaves = {k: v for group in groups.values() for k, v in group.items()}
    return traverse_util.unflatten_dict(leaves, sep="/")


def descend(tx, params, grads, opt, lr, groups):
    """One step of the optimisers of `groups`: (params, opt); others, their moments too, stay as they are."""
    params, grads, opt = split_groups(params), split_groups(grads), dict(opt)
    for name in sorted(params.keys() & groups):  # the same order in every process
        delta, opt[name] = tx.update(grads[name], opt[name], params[name])
        params[name] = jax.tree.map(lambda p, d: (p - lr * d).astype(p.dtype), params[name], delta)
    return join_groups(params), opt


def phase(state, batch, draws, lr, weight, *, models, config, cross, axis_name=None):
    """One iteration of the phase `cross` (a Python bool): (State, metrics), see `update`."""
    d, nets_, groups = config.direid, state.nets, active(config, cross)
    x_a, x_b = batch["x_i"], batch["x_k" if cross else "x_j"]
    shared = dict(models=models, config=config, cross=cross)

    def make(params):
        options = dict(logits="id" in terms(config, cross), train=True, key=draws.key)
        return encode(with_params(nets_, params), x_a, x_b, models=models, cross=cross, **options)

    params = trained(nets_, GENERATOR)
    out, pull, stats = jax.vjp(make, params, has_aux=True)

    def dis_total(params):
        wrapped = {n: {"params": p} for n, p in params.items()}
        found = discriminator_losses(wrapped, out, batch, draws, weight, **shared)
        return sum(found.values(), jnp.zeros(())), found

    dis_params = trained(nets_, DISCRIMINATORS)
    dis_grads, dis_found = jax.grad(dis_total, has_aux=True)(dis_params)
    dis_params, opt = descend(models.tx, dis_params, parts.pmean(dis_grads, axis_name), state.opt, lr, groups)
    updated = with_params(nets_, dis_params)

    def gen_total(out, params):
        variables = with_params(updated, params)
        found, changed = generator_losses(variables, out, stats, batch, weight, train=True, **shared)
        return sum(found.values(), jnp.zeros(())), (found, changed)

    grads, (found, stats) = jax.grad(gen_total, (0, 1), has_aux=True)(out, params)
    grads = jax.tree.map(jnp.add, pull(grads[0])[0], grads[1])
    grads, stats = parts.pmean((grads, stats), axis_name)
    params, opt = descend(models.tx, params, grads, opt, lr, groups)
    new = with_params(updated, params)
    new["E_con"] = {**new["E_con"], "batch_stats": stats}
    metrics = summary(found, dis_found, out, d)
    return State(state.step + 1, new, opt), parts.pmean(metrics, axis_name)


def summary(found, dis_found, out, d):
    """Metrics of a phase, the same names in both: terms that it does not have are 0."""
    metrics = {"loss": sum(found.values(), jnp.zeros(())), "dis": sum(dis_found.values(), jnp.zeros(()))}
    metrics |= {f"dis_{n}": dis_found.get(n, jnp.zeros(())) for n in ("real", "deg")}
    metrics |= {f"gen_{n}": found.get(n, jnp.zeros(())) for n in TERMS}
    metrics["swap"] = l1(out["x_aa"], out["x_ab"])  # how far another degradation changes the picture
    metrics["code_std"] = wide(out["d_a"]).std(0).mean()
    return {n: jnp.asarray(v, jnp.float32) for n, v in metrics.items()}


def update(state, batch, draws, lr, weight, *, models, config, axis_name=None):
    """One iteration of the first stage: (State, {name: f32[]}), the phase chosen by draws.cross.

    batch: x_i, x_j, x_k f[B,H,W,3] (normalised), pid_i, pid_k i32[B] (pid_k of x_k; x_j has x_i's). lr f[];
    weight: of `weights`. state.nets: E_con, E_deg, G, D_real, D_deg and, for `pre`, E_id, which stays.
    D_real and D_deg step first, then the generator's losses see the new ones on the same images.
    """

    def run_phase(cross):
        options = dict(models=models, config=config, cross=cross, axis_name=axis_name)
        return lambda state, batch: phase(state, batch, draws, lr, weight, **options)

    return lax.cond(draws.cross, run_phase(True), run_phase(False), state, batch)


def draw(config, step, axis_name=None):
    """Draws of a step: the phases take turns, or self comes with probability sync_prob if that is >= 0."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    phase_key, first_key, dropout = jax.random.split(key, 3)
    p = config.direid.sync_prob
    cross = step % 2 == 1 if p < 0 else jax.random.uniform(phase_key) >= p
    if axis_name is not None:
        dropout = jax.random.fold_in(dropout, lax.axis_index(axis_name))
    return Draws(cross, jax.random.bernoulli(first_key), dropout)


def learning_rate(lr, gamma, milestones, step):
    """lr * gamma ** (number of milestones <= step), 0-based steps: f32[]."""
    passed = (jnp.asarray(tuple(milestones), jnp.int32) <= step).sum()
    return lr * jnp.float32(gamma) ** passed


def optimiser(optim):
    """Adam with coupled L2, without the learning rate: `descend` multiplies by it."""
    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay),
        optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
    )


def build(config, info):
    """Models of a config; config.optim has the optimiser of this stage."""
    d = config.direid
    E_con = nets.content_encoder(config, info)
    dtype = E_con.base.dtype
    return Models(
        E_con,
        nets.degradation_encoder(config, dtype),
        nets.generator(config, dtype),
        nets.reality_discriminator(config, dtype),
        nets.degradation_discriminator(config, dtype),
        nets.identity_encoder(config, info) if d.w_pre else None,
        optimiser(config.optim),
    )


def init_state(key, image, *, models):
    """Fresh State for images [B,H,W,3]; E_id and E_con's stem are to be taken from the teacher."""
    names = [n for n in Models._fields if n != "tx" and getattr(models, n) is not None]
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    image = image[:1]
    found = {n: nets.init(getattr(models, n), keys[n], image) for n in names if n != "G"}
    c = jax.eval_shape(lambda: models.E_con.apply(found["E_con"], image, False)[1])
    code = jax.eval_shape(lambda: models.E_deg.apply(found["E_deg"], image))
    c, code = (jnp.zeros(s.shape, s.dtype) for s in (c, code))
    found["G"] = dict(models.G.init(keys["G"], c, code))
    params = trained(found, (*GENERATOR, *DISCRIMINATORS))
    opt = {name: models.tx.init(leaves) for name, leaves in split_groups(params).items()}
    return State(jnp.int32(0), found, opt)
