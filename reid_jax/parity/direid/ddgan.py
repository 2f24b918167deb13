"""The first stage as a whole, operation by operation: in float64 it compiles for more than half an hour."""

import jax
import jax.numpy as jnp

from reid_jax.methods import State
from reid_jax.methods.direid import gan, objectives, parameters
from reid_jax.parity import nets
from reid_jax.parity.direid import _build


def _first_stage(case, config):
    """(variables, Ddgan) of a case's five networks."""
    method = gan.Ddgan(config, _build.INFO)
    build = dict(E_con=_build.content_encoder, E_deg=_build.degradation_encoder, G=_build.generator)
    build |= dict(D_real=_build.discriminator, D_deg=_build.discriminator)
    entries = {n: case.weights(f"{n}.") for n in build}
    method.modules = {n: make(entries[n]) for n, make in build.items()}
    image = _build.image(case, "x_a")[:1]
    shapes = jax.eval_shape(lambda: gan.init_networks(method.modules, jax.random.key(0), image))
    filled = {n: nets.fill(shapes[n], entries[n], case.dtype, layout="direid") for n in build}
    return jax.tree.map(jnp.asarray, filled), method


def _weights(m):
    """config.direid's weights of a case's."""
    return dict(
        w_real=m["real"], w_deg=m["deg"], w_inv=m["inv"], w_id=m["id"], w_recon=m["rec"], w_cycle=m["rec"]
    )


def _draws(cross, first=False):
    return gan.Draws(jnp.bool_(cross), jnp.bool_(first), jax.random.key(0))


def dil_losses(case):
    """first stage's losses, both phases, semi and un: values, images, norms of all gradients"""
    m, results = case.config, {}
    x_a, x_b = _build.image(case, "x_a"), _build.image(case, "x_b")
    batch = dict(x_i=x_a, x_j=x_b, x_k=x_b, pid_i=case.input("l_a"), pid_k=case.input("l_b"))
    for name, cross, mode in (("self", False, "un"), ("inter_semi", True, "semi"), ("inter_un", True, "un")):
        fields = _weights(m.weights) | dict(self_kl=bool(m.enable_kl))
        variables, method = _first_stage(case, _build.config(case, data=dict(pairs=mode), direid=fields))
        params = parameters.trained(variables, (*parameters.GENERATOR, *parameters.DISCRIMINATORS))

        def generator(params, variables, batch, method=method, cross=cross):
            all_ = parameters.with_params(variables, params)
            out, stats = method.encode(all_, *objectives.pair(batch, cross), cross, train=case.train)
            terms, _ = method.generator_losses(all_, out, stats, batch, cross, train=case.train)
            total = sum(terms.values())
            return total, (terms | {"total": total}, out)

        def discriminators(params, out, first, method=method, cross=cross):
            judging = {n: {"params": p} for n, p in params.items()}
            terms = method.discriminator_losses(judging, out, batch, _draws(cross, first), cross)
            total = sum(terms.values())
            return total, terms | {"total": total}

        grads, (terms, out) = jax.grad(generator, has_aux=True)(params, variables, batch)
        results |= _images(name.split("_")[0], out)
        results |= {f"out/{name}/gen/loss_gen_{k}": v for k, v in terms.items()}
        results |= _build.norms(case, f"{name}_gen", _reached(grads, method.active(cross)))
        descend = jax.grad(discriminators, has_aux=True)
        for tag, first in (("dis_ab", True), ("dis_ba", False)):
            tag = "dis" if cross else tag  # the cross phase has no draw
            grads, terms = descend({n: params[n] for n in parameters.DISCRIMINATORS}, out, first)
            results |= {f"out/{name}/{tag}/loss_dis_{k}": v for k, v in terms.items()}
            results |= _build.norms(case, f"{name}_{tag}", _reached(grads, method.active(cross)))
    return results


def _images(phase, out):
    pairs = {k: v for k, v in out.items() if k.startswith("x_")}
    results = {f"out/{phase}/{k}": nets.channels_first(v) for k, v in pairs.items()}
    return results | {f"out/{phase}/{k}_absmean": jnp.abs(v).mean() for k, v in pairs.items()}


def _reached(grads, active):
    """{key: gradient} of the parameters of the groups that a phase trains, as the step has it."""
    groups = parameters.split_groups(grads)
    reached = parameters.join_groups({g: groups[g] for g in groups.keys() & active})
    return {
        k: v for net, tree in reached.items() for k, v in _build.entries({"params": tree}, f"{net}.").items()
    }


def dil_steps(case):
    """whole iterations of the first stage by the library's step: losses, how far groups move, statistics"""
    m = case.config
    optim = dict(lr=m.lr, gamma=0.1, b1=m.betas[0], b2=m.betas[1], weight_decay=m.weight_decay)
    fields = dict(self_kl=bool(m.enable_kl), gan_milestones=m.milestones_after_iterations)
    mode = "semi" if m.folder_type.startswith("semi") else "un"
    config = _build.config(case, optim=optim, data=dict(pairs=mode), direid=fields)
    variables, method = _first_stage(case, config)
    params = parameters.trained(variables, (*parameters.GENERATOR, *parameters.DISCRIMINATORS))
    opt = {g: method.tx.init(leaves) for g, leaves in parameters.split_groups(params).items()}
    state, results = State(jnp.int32(0), variables, opt), {}
    batch = {
        f"x_{ours}": _build.image(case, f"x_{theirs}") for ours, theirs in zip("ijk", "abc", strict=True)
    }
    batch |= {"pid_i": case.input("l_a"), "pid_k": case.input("l_c")}
    names = {"gen_total": "loss", "dis_total": "dis"} | {
        f"gen_{t}": f"gen_{t}" for t in objectives.TERMS if t != "pre"
    }
    names |= {f"dis_{t}": f"dis_{t}" for t in ("real", "deg")}
    iterations = sum(k.startswith("out/lr/") for k in case.arrays)
    for i in range(iterations):
        results[f"out/lr/{i + 1}"] = method.rate(state.step)
        draws = method.draw(state)._replace(first=jnp.bool_(False))
        state, metrics = method.phase(state, batch, draws, bool(draws.cross))
        results |= {f"out/loss/{i + 1}/loss_{k}": metrics[v] for k, v in names.items()}
        results |= {f"out/moved/{i + 1}/{k}": v for k, v in _moved(variables, state.nets).items()}
    for net, tree in state.nets.items():
        after = _build.entries({"batch_stats": tree.get("batch_stats", {})}, f"{net}.")
        results |= {f"out/after/{k}": v for k, v in after.items()}
    return results


def _moved(before, after):
    """L2 distances of groups of parameters: networks and their first modules."""
    squares = {}
    for net, tree in after.items():
        old = _build.entries({"params": before[net]["params"]}, f"{net}.")
        for key, value in _build.entries({"params": tree["params"]}, f"{net}.").items():
            square = float(((value - old[key]) ** 2).sum())
            for group in (net, ".".join(key.split(".")[:2])):
                squares[group] = squares.get(group, 0.0) + square
    return {group: square**0.5 for group, square in squares.items()}
