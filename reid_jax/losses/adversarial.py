"""The dependence of two variables by a critic: the Jensen-Shannon bound of ADL (Chen et al. 2024, eq. 9)."""

import jax
import jax.numpy as jnp

from reid_jax.losses import batch

NO_DEPENDENCE = -1.3862943611198906  # -2 log 2: omega of a critic that sees none
TRANSFORMS = ("exp", "linear")
FORMS = ("layer", "none")


def omega(joint, marginal, axis_name=None):
    """mean log s(joint) + mean log(1 - s(marginal)), at most 0: f[].

    joint, marginal: logits f[B] of pairs that belong together and of those that do not, s the logistic
    function. NO_DEPENDENCE: the critic tells nothing; near 0: it tells all. Equal numbers of rows on every
    device under axis_name.
    """
    joint, marginal = batch.wide(joint), batch.wide(marginal)
    local = -jax.nn.softplus(-joint).mean() - jax.nn.softplus(marginal).mean()
    return local if axis_name is None else jax.lax.pmean(local, axis_name)


def js(value):
    """Estimate of the Jensen-Shannon divergence from omega; negative for an untrained critic."""
    return (value - NO_DEPENDENCE) / 2


def pull(value, transform, temperature=1.0):
    """What the feature side minimises (eq. 10): exp(omega / temperature) ('exp') or omega ('linear').

    ValueError for another transform.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform is {transform!r}; it must be one of {', '.join(TRANSFORMS)}")
    if transform == "linear":
        return value
    return jnp.exp(value / temperature)


def standardised(x, form):
    """Rows of x f[B,D] with mean 0 and variance 1 ('layer', epsilon 1e-5), or x itself ('none').

    ValueError for another form.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it must be one of {', '.join(FORMS)}")
    if form == "none":
        return x
    x = batch.wide(x)
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5)
