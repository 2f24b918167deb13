"""Optimisers of config.optim, as PyTorch's: Adam, AMSGrad, SGD; groups, frozen leaves by pattern.

A pattern is a regular expression that is searched in a parameter's path, "base/layer1_0/conv1/kernel".
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.methods._schedules import schedule


def optimiser(optim, info, net=None, *, lr=None, weight_decay=None, repeats=1):
    """The optax chain of config.optim for the parameters of `net`.

    net: None, or a ReIDNet (or anything with `frozen` and `bounds`), whose frozen leaves never move and whose
    bounded ones are clipped after every step. lr, weight_decay: instead of config.optim's.
    repeats: updates per training step, so that the schedule keeps to training steps.
    Raises ConfigError for a kind that it does not know.
    """
    lr = optim.lr if lr is None else lr
    decay = optim.weight_decay if weight_decay is None else weight_decay
    steps = frozen_steps(optim, info)
    groups = {str(i): (f, decay if d is None else d) for i, (_, f, d) in enumerate(optim.groups)}
    groups["others"] = (1.0, decay)
    chains = {}
    for name, (factor, decay) in groups.items():
        rate = schedule(optim, info, factor * lr)
        scale = optax.scale_by_learning_rate(lambda n, rate=rate: rate(n // repeats))
        direction = optax.chain(optax.add_decayed_weights(decay), moments(optim))
        chains[name] = optax.chain(direction, scale)
        if steps:
            chains[f"{name} later"] = optax.chain(held(direction, steps * repeats), scale)
    chains["never"] = optax.set_to_zero()
    tx = optax.partition(chains, lambda params: _labels(params, optim, net, steps))
    return optax.chain(tx, clipped(net.bounds)) if net is not None and net.bounds else tx


def rests(optim, info, step):
    """Whether config.optim.freeze holds at a step, with its norms in test mode: bool[]; None if never."""
    if not (optim.freeze and optim.freeze_norms_eval):
        return None
    steps = frozen_steps(optim, info)
    return jnp.bool_(True) if not steps else step < steps


def frozen_steps(optim, info):
    """Steps for which config.optim.freeze holds; 0: at all."""
    return optim.freeze_steps + optim.freeze_epochs * info.steps_per_epoch


def _labels(params, optim, net, steps):
    """The tree of params with the name of every leaf's chain."""

    def label(path):
        if _any(getattr(net, "frozen", ()), path) or (not steps and _any(optim.freeze, path)):
            return "never"
        group = next((str(i) for i, g in enumerate(optim.groups) if re.search(g[0], path)), "others")
        return f"{group} later" if _any(optim.freeze, path) else group

    return jax.tree_util.tree_map_with_path(lambda path, _: label(_path(path)), params)


def check_patterns(optim, networks):
    """Raises ConfigError for a pattern of config.optim that matches no parameter of any trained network.

    networks: the params of each.
    """
    known = [path for params in networks for path in paths(params)]
    for field, patterns in (("groups", [g[0] for g in optim.groups]), ("freeze", optim.freeze)):
        for pattern in patterns:
            if not _any([pattern], *known):
                raise ConfigError(
                    f"config.optim.{field}: {pattern!r} matches no parameter; paths are like "
                    f"{next(iter(known), '')}"
                )


def moments(optim):
    """What makes a direction of gradients: the moments of config.optim.kind."""
    kind = choice("optim.kind", optim.kind, ("adam", "amsgrad", "sgd"))
    if kind == "sgd":
        return optax.trace(optim.momentum, optim.nesterov)
    scale = optax.scale_by_adam if kind == "adam" else scale_by_amsgrad
    return scale(b1=optim.b1, b2=optim.b2, eps=optim.eps)


def adam(optim, info, *, lr=None, weight_decay=None, mask=None, repeats=1):
    """Adam with coupled L2, as torch's: the decay joins the gradient before the moments.

    mask: tree of bools, or a function of params giving one; False leaves never move (no decay).
    repeats: updates per training step, so that the schedule keeps to training steps.
    """
    lr = schedule(optim, info, optim.lr if lr is None else lr)
    decay = optim.weight_decay if weight_decay is None else weight_decay
    tx = optax.chain(
        optax.add_decayed_weights(decay),
        optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
        optax.scale_by_learning_rate(lambda count: lr(count // repeats)),
    )
    if mask is None:
        return tx

    def labels(params):
        tree = mask(params) if callable(mask) else mask
        return jax.tree.map(lambda m: "train" if m else "freeze", tree)

    return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)


def sgd(lr, *, momentum=0.9, weight_decay=0.0, nesterov=False):
    """PyTorch's SGD: g <- grad + decay w; b <- momentum b + g (first b = g); w <- w - lr b.

    nesterov: w <- w - lr (g + momentum b).
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov),
        optax.scale_by_learning_rate(lr),
    )


def first_adam_step(params, grads, rate, optim):
    """Parameters after Adam's first step, from zero moments, as a differentiable function of both trees.

    optim: b2, eps, weight_decay (in the gradient). As M3L's code (MetaModules.py): eps is added to the second
    moment before its correction, and to the root.
    """

    def step(param, grad):
        grad = grad + optim.weight_decay * param
        return param - rate * grad / (jnp.sqrt(grad * grad + optim.eps / (1 - optim.b2)) + optim.eps)

    return jax.tree.map(step, params, grads)


def at_count(opt, count):
    """Optimiser states (any tree) whose learning rate is that of step `count`; moments stay as they are."""

    def scheduled(x):
        return isinstance(x, optax.ScaleByScheduleState)

    def moved(x):
        return x._replace(count=np.asarray(count, np.int32)) if scheduled(x) else x

    return jax.tree.map(moved, opt, is_leaf=scheduled)


class AmsgradState(NamedTuple):
    """Moments of AMSGrad."""

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    largest: optax.Updates  # of all nu so far


def scale_by_amsgrad(b1=0.9, b2=0.999, eps=1e-8):
    """AMSGrad as torch has it: the maximum is of the raw second moment, corrected for its start afterwards.

    optax.scale_by_amsgrad takes the maximum of the corrected moment, which is another number.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AmsgradState(jnp.zeros([], jnp.int32), zeros, zeros, zeros)

    def update(grads, state, params=None):
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        largest = jax.tree.map(jnp.maximum, state.largest, nu)

        def direction(m, v):
            first, second = (1 - jnp.asarray(b, m.dtype) ** count for b in (b1, b2))
            return m / first / (jnp.sqrt(v) / jnp.sqrt(second) + eps)

        return jax.tree.map(direction, mu, largest), AmsgradState(count, mu, nu, largest)

    return optax.GradientTransformation(init, update)


def held(tx, steps):
    """`tx` that begins after so many updates; until then nothing moves, its moments neither."""

    def init(params):
        return jnp.zeros([], jnp.int32), tx.init(params)

    def update(grads, state, params=None):
        count, inner = state
        moved, later = tx.update(grads, inner, params)
        on = count >= steps
        moved = jax.tree.map(lambda u: jnp.where(on, u, 0), moved)
        return moved, (count + 1, jax.tree.map(lambda a, b: jnp.where(on, a, b), later, inner))

    return optax.GradientTransformation(init, update)


def clipped(bounds):
    """Ends a chain: parameters whose path matches a pattern of ((pattern, least, most), ...) stay within.

    The optimisers' moments do not see the clip.
    """

    def update(updates, state, params):
        def clip(path, update, value):
            for pattern, least, most in bounds:
                if re.search(pattern, _path(path)):
                    return jnp.clip(value + update, least, most) - value
            return update

        return jax.tree_util.tree_map_with_path(clip, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def trained(frozen):
    """Function of params: their tree with False where one of the patterns `frozen` fits, else True."""

    def mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: not _any(frozen, _path(path)), params)

    return mask


def paths(params):
    """Paths of all leaves, "base/conv1/kernel"."""
    return [_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]


def _path(keys):
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def _any(patterns, *paths):
    return any(re.search(pattern, path) for pattern in patterns for path in paths)
