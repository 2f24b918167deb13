"""Heads on stripes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.losses import identity
from reid_jax.models import heads, layers
from reid_jax.models.heads import stripes
from reid_jax.parity import nets


def pcb_head(case):
    """PCB's head: feature, logits, losses, gradients, running statistics, test mode"""
    m = case.config
    return _results(case, heads.StripesHead(m.classes, m.parts, m.features, m.dropout))[0]


def rpp_head(case):
    """RPP's head: parts of the pixels, and as pcb_head"""
    m = case.config
    mask = layers.Conv(m.parts, use_bias=True), layers.Dropout(m.dropout), m.dim, m.temperature
    head = stripes.RefinedHead(m.classes, m.parts, m.features, m.dropout, None, 0, None, False, False, *mask)
    results, variables, x = _results(case, head)

    mask_variables = {"params": {"local_mask": variables["params"]["local_mask"]}}
    w = head.apply(mask_variables, x, False, method="assignment")
    return results | {"out/assignment": nets.channels_first(w)}


def _results(case, head):
    """(all that both heads' cases record, the net's variables, the map)."""
    m, x, target = case.config, nets.channels_last(case.input("x")), case.input("target")
    module = heads.ReIDNet(Maps(), head)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    variables = nets.fill(shapes, case.weights(), case.dtype)

    def loss(params, x):
        all_ = {**variables, "params": params}
        out, changed = module.apply(all_, x, case.train, mutable=["batch_stats"])
        losses = jnp.stack([identity.cross_entropy(logits, target) for logits in out.logits])
        return losses.sum(), (out, losses, changed)

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, (out, losses, changed)), (grads, grad_x) = descend(variables["params"], x)
    grads = nets.torch_entries({"params": grads}) | {"in/x": nets.channels_first(grad_x)}
    results = {f"grad/total/{k}": v for k, v in grads.items()} | {"out/total": total, "out/losses": losses}
    results |= {f"out/after/{k}": v for k, v in nets.torch_entries(changed).items()}
    for suffix, result in (("", out), ("_eval", module.apply(variables, x, False))):
        parts = result.test.reshape(len(x), m.parts, -1)
        results[f"out/feature{suffix}"] = parts.swapaxes(1, 2)[..., None]
        results[f"out/logits{suffix}"] = jnp.stack(result.logits)
    return results, variables, x


class Maps(nn.Module):
    """Stands for a backbone: images are the maps."""

    def __call__(self, x, train):
        return x
