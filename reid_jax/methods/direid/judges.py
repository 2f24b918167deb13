"""Losses of a multi-scale discriminator and of the images that it judges, for DDGAN's D_real and D_deg.

Those that other generators have too stand in losses.generation, and are named here.
"""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.losses.generation import as_fake, as_real, dis, gen, l1, penalised

__all__ = ["as_fake", "as_real", "degradation_score", "dis", "gen", "hinge", "l1", "mean_score", "penalised"]
__all__ += ["predict", "rank_dis", "rank_gen", "scores"]


def hinge(u, v, y, margin=1.0):
    """Mean of max(0, margin - y (u - v)): y = -1 wants u a margin below v. u, v f[B], y f[B] or a number."""
    return jax.nn.relu(margin - y * (u - v)).mean()


def mean_score(o):
    """Map [B,h,w,1] -> [B]."""
    return o.mean((1, 2, 3))


def scores(net, params, x):
    """Mean scores of every scale f[B,S] of images [B,H,W,3]."""
    return jnp.stack([mean_score(o) for o in net.apply(params, x)], -1)


def degradation_score(net, params, x):
    """How degraded images [B,H,W,3] look to D_deg, f[B]: higher is worse."""
    return -scores(net, params, x).mean(-1)


def predict(net, params, p, q):
    """+1 where p scores at least as high as q, else -1: f[B], no gradient."""
    gap = (scores(net, params, p) - scores(net, params, q)).sum(-1)
    return lax.stop_gradient(jnp.where(gap >= 0, 1.0, -1.0).astype(gap.dtype))


def rank_dis(net, params, lower, higher, y=-1.0, *, margin=1.0, penalty=0.01):
    """Loss of a ranking discriminator: `lower` scores a margin below `higher` (y -1), or above it (y 1)."""
    maps, squares = penalised(net, params, higher, mean_score)
    lowers = net.apply(params, lower)
    values = [
        hinge(mean_score(u), mean_score(v), y, margin) + penalty * s.mean()
        for u, v, s in zip(lowers, maps, squares, strict=True)
    ]
    return sum(values) / len(values)


def rank_gen(net, params, p, q, y=-1.0, *, margin=1.0):
    """Loss of images p that should score a margin below q (y -1) or above (y 1)."""
    u, v = (scores(net, params, x).T for x in (p, q))
    return hinge(u, v, y, margin)
