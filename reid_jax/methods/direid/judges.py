"""Losses of a multi-scale discriminator and of the images that it judges, for DDGAN's D_real and D_deg.

net: a nets.Discriminator, params: its variables. Values are means over the device's images; means over
devices are those of the global batch.
"""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.methods.direid.layers import wide


def l1(a, b):
    """Mean absolute difference."""
    return jnp.abs(wide(a) - wide(b)).mean()


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


def penalised(net, params, x, reduce):
    """Maps of every scale [B,h,w,1] and the squared norms f[B] of the gradients of reduce(map) by x."""

    def each(s):
        def total(x):
            o = net.apply(params, x, s, method="scale")
            return reduce(o).sum(), o

        grad, o = jax.grad(total, has_aux=True)(x)
        return o, jnp.square(wide(grad)).sum((1, 2, 3))

    return list(zip(*(each(s) for s in range(net.scales)), strict=True))


def as_real(o, form):
    """Loss of a map that should look real: least squares to 1, or -log sigmoid."""
    return jnp.square(o - 1).mean() if form == "ls" else jax.nn.softplus(-o).mean()


def as_fake(o, form):
    return jnp.square(o).mean() if form == "ls" else jax.nn.softplus(o).mean()


def dis(net, params, fake, real, *, form="ls", penalty=0.01):
    """Loss of a discriminator; the penalty is on the squared gradient of the summed map of real images."""
    maps, squares = penalised(net, params, real, lambda o: o)
    fakes = net.apply(params, fake)
    values = [
        as_fake(f, form) + as_real(r, form) + penalty * s.mean()
        for f, r, s in zip(fakes, maps, squares, strict=True)
    ]
    return sum(values) / len(values)


def gen(net, params, x, real=True, *, form="ls"):
    """Loss of generated images x that should pass for real (or for fake); least squares count twice."""
    maps = net.apply(params, x)
    loss = sum((as_real if real else as_fake)(o, form) for o in maps) / len(maps)
    return 2 * loss if form == "ls" else loss


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
