"""Learning rates of config.optim, as functions of the optimiser's step count."""

import math

import jax.numpy as jnp
import optax

from reid_jax.config import choice
from reid_jax.errors import ConfigError


def schedule(optim, info, lr):
    """Learning rate as a function of the optimiser's step count; lr: of the group.

    "step": lr * gamma ** (number of milestones <= epoch), 0-based epochs. "cosine": down to `lowest` at the
    last step. `warmup_steps` rises linearly in front of either. "cosine_epochs": the same in epochs, from
    `delay_epochs` on, see `by_epochs`, which also takes the steps of other numbers of epochs and of
    `warmup_epochs`.
    """
    kind = choice("optim.schedule", optim.schedule, ("step", "cosine", "cosine_epochs"))
    if kind == "cosine_epochs" or optim.warmup_epochs or optim.first_epoch or held_epochs(optim, info):
        main = by_epochs(optim, info, lr)
    elif kind == "step":
        bounds = {int(m) * info.steps_per_epoch: optim.gamma for m in optim.milestones}
        main = optax.piecewise_constant_schedule(lr, bounds)
    else:
        main = optax.cosine_decay_schedule(lr, max(info.total_steps, 1), lowest(optim, lr) / lr if lr else 0)
    if not optim.warmup_steps:
        return main
    share = optim.warmup_factor
    if not share:
        return lambda count: main(count) * jnp.minimum(1.0, (count + 1) / optim.warmup_steps)
    return lambda count: main(count) * (share + (1 - share) * jnp.minimum(1.0, count / optim.warmup_steps))


def by_epochs(optim, info, lr):
    """`schedule` in whole epochs t: of ReID-Survey and TransReID (first_epoch 1), torchreid, fast-reid (held
    back until warm-up and delay are over).

    warmup_epochs: from warmup_factor in equal steps, before and instead of a cosine. The cosine counts t from
    the end of what holds it back, else from the start, warm-up or not.
    """
    if optim.schedule == "cosine":
        raise ConfigError(
            "config.optim.schedule 'cosine' goes by steps; warmup_epochs, first_epoch, delay_epochs and "
            "delay_warmup need 'step' or 'cosine_epochs'"
        )
    held = held_epochs(optim, info)
    length = max(info.total_steps / info.steps_per_epoch - held, 1)
    low = lowest(optim, lr)
    start = optim.warmup_factor * (optim.lr if optim.shared_ends else lr)

    def main(epoch):
        t = jnp.maximum(epoch - held, 0)
        if optim.schedule == "step":
            return lr * optim.gamma ** sum(t >= m for m in optim.milestones)
        return low + (lr - low) * (1 + jnp.cos(jnp.pi * jnp.minimum(t / length, 1))) / 2

    def rate(count):
        epoch = count // info.steps_per_epoch + optim.first_epoch
        if not optim.warmup_epochs:
            return main(epoch)
        end = main(epoch) if optim.schedule == "step" else lr
        warm = start + (end - start) * epoch / optim.warmup_epochs
        return jnp.where(epoch < optim.warmup_epochs, warm, main(epoch))

    return rate


def held_epochs(optim, info):
    """Epochs for which the main schedule waits."""
    warm = math.ceil(optim.warmup_steps / info.steps_per_epoch) if optim.delay_warmup else 0
    return max(warm, optim.delay_epochs)


def lowest(optim, lr):
    """The rate that a group's cosine ends at."""
    return optim.lowest * (optim.lr if optim.shared_ends else lr)
