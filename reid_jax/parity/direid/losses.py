"""Losses: those on a batch, the second stage's, the first's on a discriminator."""

import jax
import jax.numpy as jnp
import optax

from reid_jax.losses import distill, identity
from reid_jax.losses import triplet as triplets
from reid_jax.methods.direid import dfen as second
from reid_jax.methods.direid import judges, stage
from reid_jax.parity import nets
from reid_jax.parity.direid import _build


def _value_and_grads(name, function, inputs, names):
    value, grads = jax.jit(jax.value_and_grad(lambda a: function(**(inputs | a))))(
        {n: inputs[n] for n in names}
    )
    return {f"out/{name}": value} | {f"grad/{name}/in/{n}": g for n, g in grads.items()}


def basic_losses(case):
    """L1, L2, smooth L1, KL, JS, cross entropy, gradients"""
    images, logits = ({n: case.input(n) for n in names} for names in ("ab", "pq"))
    on_images = {
        "l1": judges.l1,
        "l2": lambda a, b: jnp.square(a - b).mean(),
        "smooth_l1": lambda a, b: optax.huber_loss(a, b).mean(),
    }
    on_logits = {
        "kl": lambda p, q: distill.kl(p, q, detach=False),
        "js": lambda p, q: distill.js(p, q),
        "kl_detach": lambda p, q: distill.kl(p, q),
        "ce": lambda p, q: identity.cross_entropy(p, case.input("t")),
    }
    results = {}
    for name, form in on_images.items():
        results |= _value_and_grads(name, form, images, "ab")
    for name, form in on_logits.items():
        results |= _value_and_grads(name, form, logits, "pq")
    return results


def triplet(case):
    """batch-hard triplet plain and on unit features, with cross entropy; distances, gradients"""
    t, inputs, results = case.input("t"), {n: case.input(n) for n in "fp"}, {}
    same, margin = t[:, None] == t, case.config.margin

    def hard(f):
        return triplets.batch_hard(f, t, distance="euclidean", margin=margin)[0]

    def unit(f):
        return f / (jnp.linalg.norm(f, axis=1, keepdims=True) + 1e-12)

    for name, form in (("plain", lambda f: f), ("normalized", unit)):
        d = triplets.pairwise(form(inputs["f"]), metric="euclidean")
        results[f"out/{name}_ap"] = jnp.where(same, d, -jnp.inf).max(1)
        results[f"out/{name}_an"] = jnp.where(same, jnp.inf, d).min(1)
        results |= _value_and_grads(name, lambda f, p, form=form: hard(form(f)), inputs, "f")
    loss = _build.config(case, loss=dict(margin=margin)).loss
    results |= _value_and_grads("ce_tri", lambda f, p: stage.reid(p, f, t, loss), inputs, "fp")
    return results


def reid_losses(case):
    """second stage with replay: weighted losses, gradients"""
    m, target, results = case.config, case.input("target"), {}
    names = [k[3:] for k in case.arrays if k.startswith("in/") and k[-1] in "12"]
    inputs = {n: case.input(n) for n in names}
    weights = dict(w_fuse=m.w_id_fuse, w_inv_reid=m.w_id_inv, w_sen_reid=m.w_id_sen, w_replay=m.w_id_smooth)
    for form in ("kl_detach", "js_detach"):
        method = second.Dfen(
            _build.config(case, direid=weights | dict(replay_loss=form, replay="off")), _build.INFO
        )

        def total(chosen, method=method):
            all_ = inputs | chosen
            first = {f: all_.get(f"{f}1") for f in second.Outputs._fields}
            terms = method.losses(second.Outputs(**first), target, all_["p_inv2"])
            total = sum(terms.values())
            return total, terms | {"total": total}

        grads, terms = jax.grad(total, has_aux=True)(inputs)
        results |= {f"out/{form}/loss_reid_{k}": v for k, v in terms.items()}
        results |= {f"grad/{form}/in/{k}": v for k, v in grads.items()}
    return results


def gan_losses_3scale(case):
    """primitives of the first stage: values, gradients of images and of all parameters"""
    m, entries = case.config, case.weights()
    net, label = _build.discriminator(entries), case.input("label")[:, 0]
    images = {n: _build.image(case, n) for n in ("fake", "real")}
    variables = _build.fill(case, net, entries, images["real"])
    rank = dict(margin=m.margin)
    discriminators = {
        "dis": lambda v, a: judges.dis(net, v, a["fake"], a["real"], penalty=m.w_grad),
        "rank_dis": lambda v, a: judges.rank_dis(net, v, a["fake"], a["real"], penalty=m.w_grad, **rank),
        "rank_dis_labels": lambda v, a: judges.rank_dis(
            net, v, a["fake"], a["real"], label, penalty=m.w_grad, **rank
        ),
    }
    generators = {
        "gen_as_real": lambda v, a: judges.gen(net, v, a["fake"]),
        "gen_as_fake": lambda v, a: judges.gen(net, v, a["fake"], False),
        "rank_gen": lambda v, a: judges.rank_gen(net, v, a["fake"], a["real"], **rank),
        "rank_gen_labels": lambda v, a: judges.rank_gen(net, v, a["fake"], a["real"], label, **rank),
    }
    results = {
        "out/predict_fake_real": judges.predict(net, variables, images["fake"], images["real"])[:, None]
    }
    for reduction, reduce in (("map", lambda o: o), ("mean", judges.mean_score)):
        _, squares = judges.penalised(net, variables, images["real"], reduce)
        results |= {f"out/squared_grad_{reduction}_scale{s}": v for s, v in enumerate(squares)}
    for name, form in discriminators.items():
        value, grads = jax.value_and_grad(form)(variables, images)
        named = _build.entries(grads)
        results |= {f"out/{name}": value, **{f"grad/{name}/{k}": v for k, v in named.items()}}
        results |= _build.norms(case, name, named)
    for name, form in generators.items():
        value, grads = jax.value_and_grad(form, 1)(variables, images)
        results |= {f"out/{name}": value}
        results |= {f"grad/{name}/in/{k}": nets.channels_first(g) for k, g in grads.items()}
    return results


gan_losses_1scale = gan_losses_3scale
