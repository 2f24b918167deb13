"""Losses of a multi-scale discriminator and of the images that it judges.

net: a models.gan.Discriminator (or anything with `scales` and a method `scale`), params: its variables.
Values are means over the device's images; means over devices are those of the global batch.
"""

import jax
import jax.numpy as jnp

from reid_jax.losses.batch import wide


def l1(a, b):
    """Mean absolute difference."""
    return jnp.abs(wide(a) - wide(b)).mean()


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
