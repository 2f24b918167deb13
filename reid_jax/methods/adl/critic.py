"""What the critic of ADL's game is worth on people that were not trained on."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.losses import adversarial
from reid_jax.methods import _study

FLOOR = 0.02  # omega so near its floor: the critic tells nothing
log = logging.getLogger(__name__)


def study(method):
    """Method.study of an Adl with players: omega of config.adl.held_out test pictures."""

    def prepare(dataset, over):
        records = [r for r in (*dataset.query, *dataset.gallery) if r.pid > 0]
        count = min(method.config.adl.held_out, len(records))
        if count < 2:
            return None
        records = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, count).astype(int))]
        features, logits = over(lambda state, image: pair(method, state, image)), over(told(method))
        image, order = None, np.random.default_rng(0).permutation(len(records))

        def measure(state):
            nonlocal image
            image = _study.pictures(records, method.config.data) if image is None else image
            f, z = features(state, image)
            joint, marginal = logits(state, f, z), logits(state, f, z[order])
            return summary(joint, marginal), {}

        return measure

    return prepare


def pair(method, state, image):
    """(f, z) [B,D] of images u8[B,H,W,3] in test mode."""
    f = method.modules["net"].apply(state.nets["net"], method.plain(image), False)
    return f, method.modules["encoder"].apply(state.nets["encoder"], f, False)


def told(method):
    """Function (state, f, z) -> the critic's logits f[B]."""

    def logits(state, f, z):
        form = method.config.adl.critic_input_norm
        f, z = (adversarial.standardised(x, form) for x in (f, z))
        return method.modules["critic"].apply(state.nets["critic"], f, z)

    return logits


def summary(joint, marginal):
    """{"omega_held_out", "bound"} of logits f[N]; a warning where the critic tells nothing."""
    omega = float(adversarial.omega(jnp.asarray(joint), jnp.asarray(marginal)))
    if omega < adversarial.NO_DEPENDENCE + FLOOR:
        log.warning(
            "the critic tells nothing about people that it was not trained on (omega %.3f, the floor is "
            "%.3f): config.adl.critic_optim=adam, critic_steps or critic_lr may help",
            omega,
            adversarial.NO_DEPENDENCE,
        )
    return {"omega_held_out": omega, "bound": float(jax.device_get(adversarial.js(omega)))}
