"""Runners of the cases `sup__*`: function name = case name; the docstring's first line is shown."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from reid_jax.losses import identity
from reid_jax.methods import _optim
from reid_jax.models import heads, pooling
from reid_jax.parity import nets


def pcb_head(case):
    """PCB's head: feature, logits, losses, gradients, running statistics, test mode"""
    m, x, target = case.config, nets.channels_last(case.input("x")), case.input("target")
    head = heads.StripesHead(m.classes, m.parts, m.features, m.dropout)
    module = heads.ReIDNet(_Maps(), head)
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
    return results


class _Maps(nn.Module):
    """Stands for a backbone: images are the maps."""

    def __call__(self, x, train):
        return x


def gem(case):
    """generalised mean pooling: output, gradients of maps and exponent"""
    x, weight, m = nets.channels_last(case.input("x")), case.input("weight"), case.config
    module = pooling.Gem(epsilon=m.eps)

    def loss(p, x):
        y = module.apply({"params": {"p": p}}, x)
        return (y * weight).sum(), y

    exponent = jnp.full((1,), m.p, case.dtype)
    (grad_p, grad_x), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(exponent, x)
    return {"out/y": y, "grad/p": grad_p, "grad/in/x": nets.channels_first(grad_x)}


def optimisers(case):
    """Adam, AMSGrad, SGD with and without Nesterov: weights step by step"""
    m, results = case.config, {}
    for name in ("adam", "amsgrad", "sgd", "sgd_nesterov"):
        kind, _, nesterov = name.partition("_")
        optim = SimpleNamespace(
            **dict(kind=kind, nesterov=bool(nesterov), lr=m.sgd_lr if kind == "sgd" else m.adam_lr),
            **dict(weight_decay=m.weight_decay, momentum=m.momentum, b1=m.b1, b2=m.b2, eps=m.eps),
            **dict(schedule="step", milestones=(), gamma=1.0, warmup_steps=0, groups=()),
            **dict(freeze=(), freeze_epochs=0, freeze_steps=0),
        )
        tx = _optim.optimiser(optim, SimpleNamespace(steps_per_epoch=1, total_steps=1))
        params = {"w": case.input("start")}
        opt, steps = tx.init(params), []
        for grad in case.input("grads"):
            delta, opt = tx.update({"w": grad}, opt, params)
            params = optax.apply_updates(params, delta)
            steps.append(params["w"])
        results[f"out/{name}"] = jnp.stack(steps)
    return results
