"""Losses across domains, of MetaBIN (Choi et al., CVPR 2021; as bismex/MetaBIN@aa81471 has them)."""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.losses import batch as batches
from reid_jax.losses import triplet


def scatter(features, domain, axis_name=None):
    """Mean over the domains of the mean cosine between a row and its domain's centre, f[].

    features f[B,D], domain i[B]: of a device; the centre is the mean of all devices' unit features.
    """
    rows = batches.unit(batches.wide(features))
    bank, domains = batches.gather(rows, axis_name), batches.gather(domain, axis_name)
    same = (domain[:, None] == domains).astype(rows.dtype)
    cosine = (rows * batches.unit(same @ bank)).sum(-1)
    mean_size = len(domains) / (1 / (domains[:, None] == domains).sum(1)).sum()
    return batches.mean(cosine * mean_size / same.sum(1), axis_name=axis_name)


def shuffle(features, pid, domain, axis_name=None):
    """Mean softplus(d_ap - d_an), f[]: d_ap to the farthest row of another domain, d_an to the nearest of
    another identity in the row's domain; rows without such are left out. features f[B,D]; pid, domain i[B].
    """
    distance = triplet.pairwise(features, metric="euclidean", axis_name=axis_name)
    pids, domains = batches.gather(pid, axis_name), batches.gather(domain, axis_name)
    same = domain[:, None] == domains
    self_pair = batches.first_row(pid, axis_name) + jnp.arange(len(pid))[:, None] == jnp.arange(len(pids))
    negative, fixed = same & (pid[:, None] != pids), lax.stop_gradient(distance)
    far = jnp.where(~same | self_pair, fixed, -jnp.inf).argmax(1)
    near = jnp.where(negative, fixed, jnp.inf).argmin(1)
    d_ap, d_an = (jnp.take_along_axis(distance, i[:, None], 1)[:, 0] for i in (far, near))
    return batches.mean(jax.nn.softplus(d_ap - d_an), negative.any(1), axis_name)
