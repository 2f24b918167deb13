"""Layers and optimisers."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax

from reid_jax.config import defaults, namespace
from reid_jax.methods import _optim
from reid_jax.models import pooling
from reid_jax.parity import nets


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
        algorithm, _, nesterov = name.partition("_")
        fields = dict(
            kind=algorithm, nesterov=bool(nesterov), lr=m.sgd_lr if algorithm == "sgd" else m.adam_lr
        )
        fields |= dict(weight_decay=m.weight_decay, momentum=m.momentum, b1=m.b1, b2=m.b2, eps=m.eps)
        optim = namespace(defaults()["optim"] | fields | {"milestones": ()})
        tx = _optim.optimiser(optim, SimpleNamespace(steps_per_epoch=1, total_steps=1))
        params = {"w": case.input("start")}
        opt, steps = tx.init(params), []
        for grad in case.input("grads"):
            delta, opt = tx.update({"w": grad}, opt, params)
            params = optax.apply_updates(params, delta)
            steps.append(params["w"])
        results[f"out/{name}"] = jnp.stack(steps)
    return results
