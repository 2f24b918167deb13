"""Pyramid (Zheng et al., CVPR 2019): 21 branches, and a triplet that is used while it falls fast enough.

The baseline with head "pyramid", cross entropies and triplets summed over the branches. How fast each of the
two falls decides in every step whether the triplet counts, by the authors' group's code (PersonReID-YouReID).
"""

import jax.numpy as jnp
from jax import lax

from reid_jax.fields import within
from reid_jax.methods import _steps
from reid_jax.methods.baseline import Baseline
from reid_jax.models.heads.pyramid import unit

TITLE = "Pyramid"
FIELDS = dict(
    switch=True,  # False: cross entropy and triplet always
    alpha=0.25,  # share of the newest value in the running means of both losses
    gamma=2.0,  # exponent of the focal measure of how fast a loss falls
    threshold=0.16,  # share of the cross entropy's measure that the triplet's must reach
    weigh=False,  # both losses times their measures, as in the paper
)
METRICS = {
    "ce": "Identity cross entropy, sum of the branches",
    "triplet": "Identity triplet, sum of the branches",
    "accuracy": "Identity accuracy",
    "switched": "Triplet in use",
}
LABELS = "all"


def measured(losses, means, alpha, gamma):
    """How fast losses f[2] fall: (new running means f[2], focal measures f[2]).

    The means k move to alpha L + (1 - alpha) k from 0; p = min(new, old) / old, 0.5 in the first step;
    measure -(1 - p)^gamma log p, 0 for a loss that does not fall.
    """
    new = alpha * losses + (1 - alpha) * means
    share = jnp.minimum(new, means) / jnp.where(means > 0, means, 1)
    p = jnp.where(means > 0, share, 0.5)
    return new, -((1 - p) ** gamma) * jnp.log(jnp.maximum(p, 1e-30))


def uses_triplet(measures, threshold):
    """Whether the triplet counts, bool[]: not where its measure over the cross entropy's is below threshold.

    A cross entropy that does not fall has measure -0 in the published code, and the quotient is minus
    infinity if the triplet falls, no number if it does not: it counts in the second case.
    """
    ce, tri = measures
    return ~jnp.where(ce > 0, tri < threshold * ce, tri > 0)


class Pyramid(Baseline):
    """The only stage; memory: "meter" f32[2], running means of cross entropy and triplet."""

    heeds = ("model.classifier",)

    def __init__(self, config, info):
        fields = config.pyramid
        within("pyramid", fields, alpha=(0, 1), gamma=(0, None), threshold=(0, None))
        super().__init__(config, info)

    def init(self, key):
        return super().init(key)._replace(memory={"meter": jnp.zeros(2)})

    def step(self, state, batch):
        fields, batch = self.config.pyramid, batch["train"]
        image, pid = self.view(batch), batch["pid"]

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, self.key(state))
            units = {name: tuple(map(unit, getattr(out, name))) for name in ("before_bn", "after_bn")}
            ce, tri = _steps.identity_losses(self.config.loss, out._replace(**units), pid, self.axis)
            now = _steps.pmean(lax.stop_gradient(jnp.stack([ce, tri])), self.axis)
            meter, measures = measured(now, state.memory["meter"], fields.alpha, fields.gamma)
            on = uses_triplet(measures, fields.threshold) if fields.switch else jnp.ones((), bool)
            weights = measures if fields.weigh else jnp.ones(2)
            total = weights[0] * ce + weights[1] * jnp.where(on, tri, 0.0)
            metrics = {"loss": total, "ce": ce, "triplet": tri, "accuracy": _steps.accuracy(out, pid)}
            return total, {"net": stats}, metrics | {"switched": on.astype(jnp.float32)}, meter

        new, metrics, meter = _steps.descend(loss, state, self.tx, self.axis)
        return new._replace(memory={"meter": meter}), metrics | {"lr": self.rate(state.step)}


STAGES = {"train": Pyramid}
