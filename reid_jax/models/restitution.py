"""Style normalisation and restitution (Jin et al., CVPR 2020): what instance norm takes away, given back."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.models.layers import Conv, InstanceNorm, kernel_uniform, normal, wide

KEPT = "restitution"  # the collection of what is kept


class Restitution(nn.Module):
    """Maps x f[B,h,w,C] -> f + a r: f = IN(x), r = x - f, a [B,C] in 0..1 told from the mean of r.

    Keeps, where KEPT is mutable, "vectors" f[3,B,C]: means over the map of f, f + a r and f + (1 - a) r, with
    `classes` also their "logits" f[3,B,classes], and a as "gate" f[B,C].

    restore: False gives f alone. reduction: of the gate's inner channels.
    """

    reduction: int = 16
    classes: int = 0
    restore: bool = True

    @nn.compact
    def __call__(self, x, train):
        norm = InstanceNorm(name="IN")
        f = norm(x)
        r = wide(x) - wide(f)
        a = self.gate(r.mean((1, 2), keepdims=True)) if self.restore else jnp.zeros_like(r[:, :1, :1])
        if self.is_mutable_collection(KEPT):
            # an instance norm's mean over a map is its bias, whatever the picture
            bias = jnp.broadcast_to(norm.variables["params"]["bias"], a[:, 0, 0].shape).astype(a.dtype)
            residual = wide(x).mean((1, 2)) - bias
            self.keep(
                a[:, 0, 0],
                jnp.stack([bias, bias + a[:, 0, 0] * residual, bias + (1 - a[:, 0, 0]) * residual]),
            )
        return f + (a * r).astype(x.dtype)

    def gate(self, mean):
        """a [B,1,1,C] of the mean of r."""
        channels = mean.shape[-1]
        layer = dict(use_bias=True, init=kernel_uniform)
        inner = nn.relu(Conv(max(channels // self.reduction, 1), name="fc1", **layer)(mean))
        return jax.nn.sigmoid(Conv(channels, name="fc2", **layer)(inner))

    def keep(self, a, vectors):
        sown = {"gate": a, "vectors": vectors}
        if self.classes:
            sown["logits"] = nn.Dense(self.classes, kernel_init=normal(0.0, 0.01), name="classifier")(vectors)
        for name, value in sown.items():
            self.sow(KEPT, name, value, init_fn=tuple, reduce_fn=lambda _, value: value)
