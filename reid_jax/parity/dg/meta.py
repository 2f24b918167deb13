"""Runners of the cases of M3L, and of the rates of M3L and MetaBIN: function name = case name."""

import re
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax import methods
from reid_jax.fields import namespace
from reid_jax.losses import contrast, identity
from reid_jax.methods import _optim, metabin
from reid_jax.methods import m3l as method_of_memories
from reid_jax.models import heads, layers, pooling
from reid_jax.models import metabn as mixing
from reid_jax.models.norms import Norms
from reid_jax.parity import nets


def m3l_inner(case):
    """M3L: the virtual step of Adam and its gradient"""
    m, names = case.config, ("weight", "bias")
    optim = SimpleNamespace(b2=m.b2, eps=getattr(m, "eps", 1e-8), weight_decay=m.weight_decay)
    params = {n: case.input(n) for n in names}
    grads, probes = ({n: case.input(f"{role}_{n}") for n in names} for role in ("grad", "probe"))

    def value(grads):
        new = _optim.first_adam_step(params, grads, m.lr, optim)
        return sum((new[n] * probes[n]).sum() for n in names), new

    slope, new = jax.jit(jax.grad(value, has_aux=True))(grads)
    return nets.out(new) | {f"grad/in/grad_{n}": slope[n] for n in names}


def m3l_memory(case):
    """M3L: loss of a memory, gradient, updated rows"""
    m, memory, labels = case.config, case.input("memory"), case.input("labels")

    def loss(f):
        return identity.cross_entropy(f @ memory.T / m.temperature, labels)

    value, grad = jax.jit(jax.value_and_grad(loss))(case.input("feature"))
    moved = jax.jit(contrast.moved)(memory, case.input("feature"), labels, m.momentum)
    return {"out/loss": value, "out/after/memory": moved, "grad/in/feature": grad}


def metabn(case):
    """MetaBN: passes of the train domains, mixed passes, what is kept, gradients"""
    m, norm = case.config, layers.BatchNorm()
    count = sum(bool(re.fullmatch(r"in/noise\d+", name)) for name in case.arrays)
    *seen, x = (case.input(f"x{i + 1}") for i in range(count + 1))
    noise = jnp.stack([case.input(f"noise{i + 1}") for i in range(count)])
    shapes = jax.eval_shape(lambda: norm.init(jax.random.key(0), x, False))
    variables, results = nets.fill(shapes, case.weights(), case.dtype), {}
    for i, train in enumerate(seen):
        y, changed = norm.apply(variables, train, True, mutable=["batch_stats"])
        variables, results[f"out/y{i + 1}"] = {**variables, **changed}, y
    stats = nets.torch_entries({"batch_stats": variables["batch_stats"]})
    moments = [mixing.statistics(v[None], m.scale == "deviation") for v in seen]

    def loss(params, x):
        pooled = [jnp.concatenate([k[i][:, :1] for k in moments]) for i in (0, 1)]
        mixed = mixing.mix(x, pooled, m.lam, noise)
        options = dict(mutable=["batch_stats"])
        y = jax.vmap(lambda v: norm.apply({**variables, "params": params}, v, True, **options)[0])(mixed)
        return (y * case.input("weight")).sum(), y

    (grads, grad_x), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    results |= {f"out/mix{i + 1}": y[i] for i in range(count)}
    results[f"out/y{count + 1}_eval"] = norm.apply(variables, x, False)
    # the mixed passes and the one in test mode move nothing
    results |= {f"out/{place}/{k}": v for place in ("middle", "after") for k, v in stats.items()}
    for i, v in enumerate(seen):
        for name, value in zip(("mean", "var"), mixing.statistics(v[None]), strict=True):
            results[f"out/after/meta_{name}{i + 1}"] = value[0, 0]
    grads = nets.torch_entries({"params": grads}) | {f"in/x{count + 1}": grad_x}
    return results | {f"grad/{k}": v for k, v in grads.items()}


class _Trunk(nn.Module):
    """The backbone of the recorded iterations: strided 3x3 convolutions."""

    widths: tuple
    norms: Any = Norms()

    @nn.compact
    def __call__(self, x, train):
        for i, features in enumerate(self.widths, 1):
            x = layers.Conv(features, 3, 2, 1, name=f"conv{i}")(x)
            x = nn.relu(self.norms.batch(name=f"bn{i}")(x, train))
        return x


def m3l_step(case):
    """M3L: an iteration; losses, four gradients, weights, running statistics, memories"""
    m, count, results = case.config, len(case.config.classes), {}
    noise = jnp.stack([case.input(f"noise{i + 1}") for i in range(count - 1)])
    drawn = (m.test, m.lam, lambda shape: noise)
    for outer in ("full", "first_order", "meta_train", "reference"):
        method = _m3l(m, outer)
        state, rows = _state(case, method), _rows(case)
        new, metrics, grads = nets.quickly(lambda s, r, run=method.iterate: run(s, r, *drawn))(state, rows)
        grads = nets.torch_entries({"params": grads["net"]}, "strong_baseline")
        results |= {f"grad/{outer}/{_theirs(k)}": v for k, v in grads.items()}
    entries = nets.torch_entries(new.nets["net"], "strong_baseline")
    results |= {f"out/after/{_theirs(k)}": v for k, v in entries.items()}
    names = {"loss": "loss", "loss_meta_train": "meta_train", "loss_meta_test": "meta_test"}
    results |= {f"out/{theirs}": metrics[ours] for theirs, ours in names.items()}
    first = 0
    for i, size in enumerate(m.classes):
        results[f"out/after/memory{i}"] = new.memory["rows"][first : first + size]
        first += size
    return results


def _theirs(key):
    return re.sub("^bottleneck", "feat_bn", key)


def _m3l(m, outer):
    """The method over the recorded backbone."""
    tree = methods.defaults("m3l")
    tree["model"].update(head="contrast", contrast_bias=True)
    tree["loss"].update(triplet="euclidean", margin=m.margin)
    tree["optim"].update(lr=m.lr, weight_decay=m.weight_decay, milestones=())
    tree["m3l"].update(outer=outer, momentum=m.momentum, temperature=m.temperature)
    tree["m3l"].update(noise=getattr(m, "scale", "variance"))
    method = method_of_memories.M3l(
        namespace(tree), methods.Info(sum(m.classes), 1, domains=tuple(m.classes))
    )
    method.network = heads.ReIDNet(_Trunk(tuple(m.widths)), heads.ContrastHead(pooling.Average(), bias=True))
    method.encoder = heads.encoder(method.network)
    return method


def _rows(case):
    """The batch of every domain as the step has it; a row's place is its identity behind those before."""
    count = len(case.config.classes)
    image, pid = (jnp.stack([case.input(f"{n}{i}") for i in range(count)]) for n in ("image", "pid"))
    first = jnp.cumsum(jnp.array([0, *case.config.classes[:-1]]))
    image = jnp.moveaxis(image, 2, -1)
    return {"image": image, "pid": pid, "place": pid + first[:, None], "domain": jnp.arange(count)}


def _state(case, method):
    """State with the recorded weights and memories."""
    image = _rows(case)["image"][0]
    shapes = jax.eval_shape(lambda: method.encoder.init(jax.random.key(0), image))
    net = jax.tree.map(jnp.asarray, nets.fill(shapes, case.weights(), case.dtype))
    memory = jnp.concatenate([case.input(f"memory{i}") for i in range(len(case.config.classes))])
    return method.fresh({"net": net}, method.tx, {"rows": memory})


def schedules(case):
    """Rates of M3L by epoch and of MetaBIN by step, ratio of MetaBIN's virtual step"""
    m, results = case.config, {}
    recorded = case.recorded()
    steps = m.steps_per_epoch
    optim = dict(lr=m.base, milestones=(30, 50), warmup_epochs=10, warmup_factor=0.01)
    rate = _rate(optim, steps, m.epochs)
    results["out/m3l_by_epoch"] = rate(jnp.arange(len(recorded["out/m3l_by_epoch"])) * steps)
    return results | _metabin(m, recorded)


def _rate(optim, steps, epochs):
    """An optimiser's rate as a function of an array of steps."""
    optim = namespace(methods.defaults("baseline")["optim"] | optim)
    info = methods.Info(1, 1, steps, steps * epochs)
    return jax.vmap(_optim.schedule(optim, info, optim.lr))


def _metabin(m, recorded):
    count, steps = len(recorded["out/metabin_by_step"]), m.steps_per_epoch
    optim = dict(lr=m.base, milestones=(40, 70), warmup_steps=10 * steps, warmup_factor=0.01)
    rate = _rate(optim, steps, count // steps)(jnp.arange(count))
    tree = methods.defaults("metabin")
    tree["model"].update(backbone="narrow", norm="metabin")
    method = metabin.MetaBin(namespace(tree), methods.Info(1, 1, steps, count))
    first = tree["metabin"]["first_base"] - 1
    ratio = jax.vmap(method.ratio)(first + jnp.arange(len(recorded["out/metabin_inner_ratio"])))
    return {"out/metabin_by_step": rate, "out/metabin_inner_ratio": ratio}
