"""What a student of MMT and MEB-Net learns from: its labels, and the other networks' teachers."""

import jax.numpy as jnp

from reid_jax.losses import distill, identity, triplet
from reid_jax.methods import _steps

TERMS = {
    "ce": "Cross entropy on labels",
    "triplet": "Softmax triplet",
    "soft_ce": "Cross entropy to the others' teachers",
    "soft_triplet": "Triplet to the others' teachers",
}
NEVER = -1e4  # logit of a place without a cluster: probability 0, but a finite logarithm


def by_labels(out, pid, loss, axis_name=None):
    """f[2] of a student's Branches: cross entropy, smoothed over the places in use, and triplet.

    pid: i32[B], their clusters; loss: config.loss.
    """
    smooth, (logits,) = loss.label_smooth, out.logits
    uniform = jnp.where(logits > NEVER, 0, NEVER)
    ce = (1 - smooth) * identity.cross_entropy(logits, pid)
    ce += smooth * distill.soft_cross_entropy(uniform, logits)
    feature = _steps.select_feature(loss, out)
    hardest, _ = triplet.batch_hard(feature, pid, distance="softmax", margin=0.0, axis_name=axis_name)
    return jnp.stack([ce, hardest])


def by_teachers(outs, taught, pid, loss, axis_name=None):
    """f[K,K,2]: what each teacher i says to each student j, cross entropy and triplet; 0 to its own.

    outs, taught: Branches of the students and of their teachers, [] where there are none.
    """
    none = jnp.zeros(2, outs[0].logits[0].dtype)

    def said(i, j):
        if i == j or not taught:
            return none
        f, g = (_steps.select_feature(loss, x) for x in (outs[j], taught[i]))
        ce = distill.soft_cross_entropy(taught[i].logits[0], outs[j].logits[0])
        return jnp.stack([ce, triplet.softmax_soft(f, g, pid, axis_name=axis_name)])

    numbers = range(len(outs))
    return jnp.stack([jnp.stack([said(i, j) for j in numbers]) for i in numbers])
