"""The backbone: AIBN in a layer, a block and the whole net, and FRIFM."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.methods.adl import nets as modules
from reid_jax.models.backbones import resnet
from reid_jax.models.norms import aibn as norms
from reid_jax.parity import nets
from reid_jax.parity.adl import _build


def _both_modes(case, module, entries, alpha, x, upstream):
    """Of an eval pass and of a train pass after it: y, gradients of sum(y upstream) and statistics after."""
    variables = _build.filled(case, module, entries, x, False, *alpha)

    def loss(params, x, alpha, train):
        all_ = {**variables, "params": params}
        y, changed = module.apply(all_, x, train, *alpha, mutable=["batch_stats"])
        return (y * upstream).sum(), (y, changed)

    modes = {}
    descend = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    for mode in ("eval", "train"):
        (_, (y, changed)), (grads, grad_x, grad_a) = descend(variables["params"], x, alpha, mode == "train")
        grads = _build.torch(grads) | {"in/x": nets.channels_first(grad_x)}
        modes[mode] = nets.channels_first(y), grads | ({"adaptive_weight": grad_a[0]} if alpha else {})
    return modes, nets.torch_entries(changed)


def aibn(case):
    """AIBN layer: eval and train, mixing weights, running values, gradients"""
    x, upstream = (nets.channels_last(case.input(k)) for k in ("x", "upstream"))
    module = norms.AdaptiveNorm(momentum=case.config.momentum, epsilon=case.config.eps)
    results = {}
    for i, alpha in enumerate(case.input("alphas")):
        modes, after = _both_modes(case, module, case.weights(), (alpha[None],), x, upstream)
        for mode, (y, grads) in modes.items():
            results |= {f"out/{mode}.a{i}.y": y} | {f"grad/{mode}.a{i}/{k}": v for k, v in grads.items()}
        results |= {f"out/train.a{i}.{k}_after": v for k, v in after.items()}
    return results


def aibn_block(case):
    """bottleneck with AIBN: eval and train, one mixing weight, gradients"""
    m, x, upstream = case.config, *(nets.channels_last(case.input(k)) for k in ("x", "upstream"))
    entries = case.weights() | {"adaptive_weight": np.asarray(case.input("alpha")).reshape(1)}
    block = resnet.Bottleneck(m.planes, m.stride, norms=norms.Adaptive(), stage=4)
    modes, after = _both_modes(case, block, entries, (), x, upstream)
    results = {f"out/after/{k}": v for k, v in after.items()}
    for mode, (y, grads) in modes.items():
        results |= {f"out/{mode}.y": y} | {f"grad/{mode}/{k}": v for k, v in grads.items()}
    return results


def backbone(case):
    """ResNet with AIBN: pooled features, mirror mean, running statistics"""
    m, x = case.config, nets.channels_last(case.input("x"))
    trunk = resnet.ResNet(resnet.Bottleneck, tuple(m.layers), m.last_stride, norms=norms.Adaptive())
    net = modules.Pooled(trunk)
    alphas = {f"{k}.adaptive_weight": case.input(f"alpha/{k}") for k in case.under("in/alpha/")}
    entries = case.weights() | {k: np.asarray(v).reshape(1) for k, v in alphas.items()}
    variables = _build.filled(case, net, entries, x, False)
    run = jax.jit(lambda v, x: net.apply(v, x, False))
    pooled = run(variables, x)
    mean = (pooled + run(variables, x[:, :, ::-1])) / 2
    trained, changed = jax.jit(lambda v, x: net.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    results = {"pooled": pooled, "pooled_train": trained, "flip_mean": mean}
    results["flip_mean_normalised"] = mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
    for key, value in nets.torch_entries(changed).items():
        *module, leaf = key.split(".")
        results["_".join(["stem" if module == ["bn1"] else "_".join(module), leaf, "after"])] = value
    return nets.out(results)


def frifm(case):
    """FRIFM: output, masks, shares, gradients"""
    m, x, upstream = case.config, *(nets.channels_last(case.input(k)) for k in ("x", "upstream"))
    module = modules.Frifm(m.ratio, m.floor, m.fuse_floor)
    linear = ("channel1.", "channel2.", "squeeze.", "select.")
    entries = {
        k: v[:, :, 0, 0] if k.startswith(linear) and v.ndim == 4 else v for k, v in case.weights().items()
    }
    variables = _build.filled(case, module, entries, x)

    def loss(params, x):
        y, seen = module.apply({"params": params}, x, mutable=["intermediates"])
        return (y * upstream).sum(), (y, seen["intermediates"]["masks"][0])

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (y, masks)), (grads, grad_x) = descend(variables["params"], x)
    results = dict(zip(("channel_mask", "spatial_mask", "branch_weight"), masks, strict=True))
    results = nets.out(results | {"y": nets.channels_first(y)})
    grads = {k: v[..., None, None] if v.ndim == 2 else v for k, v in _build.torch(grads).items()}
    return results | {f"grad/{k}": v for k, v in grads.items()} | {"grad/in/x": nets.channels_first(grad_x)}
