"""Refinements of clustering and contrast: ISE, ICE, PPLR."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.fields import namespace
from reid_jax.losses import contrast, identity, support
from reid_jax.methods import _steps, cluster_contrast, defaults, ice, pplr


def ise_losses(case):
    """supports, cluster contrast with them, label-preserving loss, gradient, centroids afterwards"""
    m, memory, label = case.config, case.input("memory"), case.input("label")
    share = jnp.asarray(m.epoch * m.iters / (m.epochs * m.iters), memory.dtype)
    weight, labels = support.progress(share, m.base), jnp.concatenate([label, label])

    def loss(f):
        s = support.supports(f, label, memory, weight)
        both = jnp.concatenate([_steps.unit(f), s])  # the memory brings unit features to unit length again
        scores = cluster_contrast.logits(both, {"centroids": memory, "used": len(memory)}, m.temperature)
        value = identity.cross_entropy(scores, labels)
        preserve = support.preserving(f, s, label, m.per_id, m.lp_temperature)
        moved = contrast.moved(memory, both, labels, m.momentum, m.kind == "hard")
        results = {"weight": weight, "support": s, "contrast": value, "preserve": preserve, "memory": moved}
        return value + m.lp_weight * preserve, results

    (value, results), grad = jax.value_and_grad(loss, has_aux=True)(case.input("f"))
    return _out(results) | {"out/loss": value, "grad/loss/in/f": grad}


def ice_losses(case):
    """losses on centres, on the hardest view, on likeness within the batch; gradient"""
    m, label, centres = case.config, case.input("label"), case.input("centers")
    fields = defaults("ice")["ice"] | {"centre_temperature": m.tau_c, "hard_temperature": m.tau_v}
    fields = namespace(fields | {"alike_temperature": m.scale_kl})
    k, w = (_steps.unit(case.input(name)) for name in ("f_view", "f_weak"))

    def loss(f):
        scores = f @ centres.T / fields.centre_temperature
        ce = identity.cross_entropy_used(scores, label, len(centres), label_smooth=m.label_smooth)
        hard, alike = ice.instances(_steps.unit(f), k, w, label, fields)
        results = {"proxy_ce": ce, "hard_instance": hard, "consistency": fields.alike_weight * alike}
        return sum(results.values()), results

    (value, results), grad = jax.value_and_grad(loss, has_aux=True)(case.input("f"))
    return _out(results) | {"out/loss": value, "grad/loss/in/f": grad}


def pplr_losses(case):
    """cross agreement, refined and smoothed cross entropy, loss between cameras; gradients"""
    m, label, agreement = case.config, case.input("label"), case.input("agreement")
    camera, parts = case.input("camera"), case.input("part_logits")
    apart = np.moveaxis(np.asarray(case.input("part_features")), 2, 0)
    memory = {k: case.input(k) for k in ("proxies", "proxy_cluster", "proxy_camera")}
    fields = defaults("pplr")["pplr"] | {"hard": m.hard, "camera_temperature": m.temperature}
    fields, used = namespace(fields), parts.shape[1]

    def refined(logits):
        return pplr.refined(logits, jnp.moveaxis(parts, 2, 0), agreement, label, used, m.beta)

    def smoothed(parts):
        return pplr.smoothed(jnp.moveaxis(parts, 2, 0), agreement, label, used)

    def between(f):
        return pplr.cameras(_steps.unit(f), memory, label, camera, fields)

    results = {"out/score": pplr.agreement(np.asarray(case.input("features")), apart, m.k)}
    losses = {"refined": (refined, "logits"), "smoothed": (smoothed, "part_logits"), "camera": (between, "f")}
    for name, (loss, input_name) in losses.items():
        value, grad = jax.value_and_grad(loss)(case.input(input_name))
        results |= {f"out/{name}": value, f"grad/{name}/in/{input_name}": grad}
    return results


def _out(results):
    return {f"out/{k}": v for k, v in results.items()}
