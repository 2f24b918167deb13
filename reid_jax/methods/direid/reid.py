"""DI-REID's second stage: losses of DFEN, memory replay, the training step."""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.losses import distill, identity, triplet
from reid_jax.methods import State, parts
from reid_jax.methods.direid import dfen
from reid_jax.methods.direid.layers import run

REPLAYS = ("off", "bank", "shuffle")
TRAINED = ("E_con", "E_id", "C", "A_deg")


def reid(logits, feature, pid, loss, axis_name=None):
    """Cross entropy and batch-hard triplet on an unnormalised feature, the two added."""
    ce = identity.cross_entropy(logits, pid, label_smooth=loss.label_smooth)
    options = dict(distance=choice("loss.triplet", loss.triplet, triplet.DISTANCES), margin=loss.margin)
    return ce + triplet.batch_hard(feature, pid, axis_name=axis_name, **options)[0]


def losses(out, pid, *, config, replayed=None, axis_name=None):
    """Weighted losses of dfen.Outputs (eq. 14), {"fuse", "inv", "sen"[, "smooth"], "total": f[]}.

    pid i32[B]. replayed: logits p_inv [B,K] of the replayed images.
    """
    d = config.direid
    weights = dict(fuse=d.w_fuse, inv=d.w_inv_reid, sen=d.w_sen_reid)
    found = {
        name: w * reid(getattr(out, f"p_{name}"), getattr(out, f"f_{name}"), pid, config.loss, axis_name)
        for name, w in weights.items()
    }
    if replayed is not None:
        found["smooth"] = d.w_replay * agreement(out.p_inv, replayed, d.replay_loss)
    return found | {"total": sum(found.values())}


def agreement(logits, replayed, kind):
    """Distance of the predictions on replayed images from those on the images themselves, [B,K] each."""
    choice("direid.replay_loss", kind, ("kl", "kl_detach", "js", "js_detach"))
    detach = kind.endswith("_detach")
    if kind.startswith("kl"):
        return distill.kl(logits, replayed, detach=detach)
    return distill.js(lax.stop_gradient(logits) if detach else logits, replayed)


def codes(E_deg, variables, x):
    """Entries of the replay's bank: E_d's codes f[B,D] of images [B,H,W,3], mean with the mirrored ones."""
    both = E_deg.apply(variables, jnp.concatenate([x, x[:, :, ::-1]]))
    return sum(jnp.split(both, 2)) / 2


def replay(frozen, x, code, models):
    """Images [B,H,W,3] with the content of x and other degradations, no gradient.

    frozen: variables of the first stage's E_con and G, in test mode; code f[B,D]; models: gan.Models.
    """
    c, _ = run(models.E_con, frozen["E_con"], x, train=False, method="content")
    return lax.stop_gradient(models.G.apply(frozen["G"], c, code)).astype(x.dtype)


def replay_codes(state, x, key, models, kind):
    """Codes f[B,D] for a batch: random entries of state.nets["bank"]["codes"], or those of x permuted."""
    if kind == "bank":
        bank = state.nets["bank"]["codes"]
        return bank[jax.random.randint(key, (len(x),), 0, len(bank))]
    return jax.random.permutation(key, models.E_deg.apply(state.nets["old_E_deg"], x))


def optimiser(config, info):
    """One Adam for all trained networks."""
    return parts.adam(config.optim, info)


def init_state(key, image, *, models, tx):
    """Fresh State; networks of earlier stages are to be filled in (frozen D_deg or E_deg too)."""
    found = dfen.init(key, image, models)
    return State(jnp.int32(0), found, {"reid": tx.init(trained(found))})


def trained(variables):
    """{name: params} of the networks that this stage trains."""
    return {n: variables[n]["params"] for n in TRAINED if n in variables}


def update(state, x, pid, key, *, models, tx, config, gan_models=None, axis_name=None):
    """One iteration: (State, {name: f32[]}); x f[B,H,W,3] normalised, pid i32[B], key for random choices.

    With config.direid.replay, state.nets also has the first stage's old_E_con, old_G and, for "bank", bank
    {"codes": f[N,D]}, for "shuffle" old_E_deg; gan_models are its modules.
    """
    kind = choice("direid.replay", config.direid.replay, REPLAYS)
    code_key, first_key, second_key = jax.random.split(key, 3)
    other = None
    if kind != "off":
        frozen = {n: state.nets[f"old_{n}"] for n in ("E_con", "G")}
        other = replay(frozen, x, replay_codes(state, x, code_key, gan_models, kind), gan_models)

    def total(params):
        variables = {**state.nets, **{n: {**state.nets[n], "params": p} for n, p in params.items()}}
        out, stats = dfen.forward(variables, x, True, models=models, key=first_key)
        replayed = None
        if other is not None:
            moved = {**variables, **{n: {**variables[n], "batch_stats": s} for n, s in stats.items()}}
            again, stats = dfen.forward(moved, other, True, models=models, key=second_key)
            replayed = again.p_inv
        found = losses(out, pid, config=config, replayed=replayed, axis_name=axis_name)
        accuracy = jnp.mean(out.p_fuse.argmax(-1) == pid)
        return found["total"], (found | {"accuracy": accuracy}, stats)

    params = trained(state.nets)
    grads, (found, stats) = jax.grad(total, has_aux=True)(params)
    grads, stats = parts.pmean((grads, stats), axis_name)
    params, opt = parts.apply_gradient(tx, grads, state.opt["reid"], params)
    new = {n: {**state.nets[n], "params": p, "batch_stats": stats[n]} for n, p in params.items()}
    metrics = {{"total": "loss"}.get(n, n): jnp.asarray(v, jnp.float32) for n, v in found.items()}
    return State(state.step + 1, {**state.nets, **new}, {"reid": opt}), parts.pmean(metrics, axis_name)
