"""CLUB: bounds of the mutual information of x and y from a Gaussian q(y | x) (Cheng et al. 2020).

mu, logvar [B,D] are q's mean and log-variance for x_i, y [B,D] the variable it predicts (EFL: x = f_id,
y = f_cam). Batch moments and negatives of y are those of the global batch under `axis_name`.
"""

import jax
import jax.numpy as jnp

from reid_jax.losses import batch


def club_exact(mu, logvar, y, *, mask=None, axis_name=None):
    """Upper bound with every negative (EFL eq. 6), scalar; may be negative where q fits badly.

    mean_i sum_d [mean_j (y_jd - mu_id)^2 - (y_id - mu_id)^2] / (2 exp(logvar_id)), j over the whole
    batch, i included. With batch mean m and biased variance s of y, mean_j (y_j - mu)^2 = (mu - m)^2 + s:
    no [B,B,D] array.
    """
    mu, logvar, y = (batch.wide(a) for a in (mu, logvar, y))
    mean, var = _moments(y, mask, axis_name)
    # (mu - m)^2 - (mu - y)^2, factored so that nothing cancels
    gap = (y - mean) * (2 * mu - y - mean) + var
    return batch.mean((gap * jnp.exp(-logvar)).sum(-1) / 2, mask, axis_name)


def club_sampled(mu, logvar, y, negatives, *, mask=None, axis_name=None):
    """Upper bound with one negative per row, scalar: an estimate that may be negative, not clipped.

    mean_i sum_d [(y_neg_id - mu_id)^2 - (y_id - mu_id)^2] / (2 exp(logvar_id)).
    negatives: y_neg [B,D]; or a permutation of the global batch, integers [N]; or a typed PRNG key (the
      same on every device) to draw one of the rows that mask keeps.
    """
    mu, logvar, y = (batch.wide(a) for a in (mu, logvar, y))
    y_neg = _negatives(y, negatives, mask, axis_name)
    gap = (y_neg - y) * (y_neg + y - 2 * mu)  # (mu - y_neg)^2 - (mu - y)^2
    return batch.mean((gap * jnp.exp(-logvar)).sum(-1) / 2, mask, axis_name)


def club_nll(mu, logvar, y, mask=None, axis_name=None):
    """q's learning loss (EFL eq. 7), scalar: mean_i sum_d [(mu - y)^2 / exp(logvar) + logvar].

    Twice the Gaussian negative log likelihood without its constant, as CLUB's code has it.
    """
    mu, logvar, y = (batch.wide(a) for a in (mu, logvar, y))
    return batch.mean((jnp.square(mu - y) * jnp.exp(-logvar) + logvar).sum(-1), mask, axis_name)


def r2(mu, y, mask=None, axis_name=None):
    """Share of the variance of y [B,D], all dimensions together, that mu [B,D] explains.

    At most 1; 0 for a mu that is the batch mean, negative for worse.
    The same value on every device under `axis_name`; 0 when y does not vary.
    """
    mu, y = batch.wide(mu), batch.wide(y)
    _, var = _moments(y, mask, axis_name)
    rows = batch.rows(mask, y)
    count = jnp.maximum(batch.psum(rows.sum(), axis_name), 1)
    error = batch.psum(jnp.where(rows[:, None], jnp.square(y - mu), 0).sum(), axis_name) / count
    total = var.sum()
    return jnp.where(total > 0, 1 - error / jnp.where(total > 0, total, 1), 0)


def _moments(y, mask, axis_name):
    """Mean and biased variance [D] of the kept rows of the global batch."""
    rows = batch.rows(mask, y)[:, None]
    count = jnp.maximum(batch.psum(rows.sum(), axis_name), 1).astype(y.dtype)
    mean = batch.psum(jnp.where(rows, y, 0).sum(0), axis_name) / count
    var = batch.psum(jnp.where(rows, jnp.square(y - mean), 0).sum(0), axis_name) / count
    return mean, var


def _negatives(y, negatives, mask, axis_name):
    """y_neg [B,D] of the local rows, see `club_sampled`."""
    if jnp.ndim(negatives) == 2:
        return batch.wide(negatives)
    bank = batch.gather(y, axis_name)
    if jnp.issubdtype(negatives.dtype, jax.dtypes.prng_key):
        negatives = _permutation(negatives, batch.gather(batch.rows(mask, y), axis_name))
    rows = batch.first_row(y, axis_name) + jnp.arange(len(y))
    return bank[jnp.asarray(negatives)[rows]]


def _permutation(key, mask):
    """i32[N]: a permutation of the rows where mask holds; other rows point to any of those."""
    draw = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
    shuffled = draw.argsort()  # the kept rows first, in random order
    return shuffled[jnp.maximum(mask.cumsum() - 1, 0)]
