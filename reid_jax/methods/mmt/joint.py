"""The joint form: source and target in every step, from pretrained weights (as OpenUnReID's MMT)."""

import jax
import jax.numpy as jnp

from reid_jax.methods import _steps
from reid_jax.methods.mmt.adapt import Adapt
from reid_jax.models import heads


class Joint(Adapt):
    """Stage "adapt" of the joint form. Classes are the source's and then the clusters.

    Without a source it is unsupervised. With one, the two may have norms of their own (DSBN).
    """

    inherit = None

    def __init__(self, config, info):
        self.sources = info.num_pids
        super().__init__(config, info)

    def build(self, model):
        """A network, in test mode with the target's norms."""
        by_domain = self.sources and self.config.mmt.dsbn
        norms = dict(domains=2, test_domain=1) if by_domain else {}
        return heads.build(model, self.sources + self.config.mmt.clusters, self.axis, **norms)

    def warm_start(self, state, load):
        """All networks begin with the pretrained weights, each with a classifier of its own."""
        nets = {s: load(s, state.nets[s], "net") for s in self.students}
        nets |= {teacher: jax.tree.map(jnp.copy, nets[student]) for student, teacher in self.pairs}
        return state._replace(nets=nets)

    def streams(self, state, i):
        """Groups of the clusters of round i, and of the source's identities."""
        from reid_jax.data import streams

        by_name, data = super().streams(state, i), self.config.data
        if self.sources:
            options = dict(views=("strong",) * self.count, **streams.sizes(data, "source"))
            seed = _steps.part_seed(self.config.seed, i)
            by_name["source"] = streams.gallery(self.info.labelled, data, seed, **options)
        return by_name

    def rows(self, batch):
        """The source's rows and then the target's, whose classes come after the source's."""
        if not self.sources:
            return super().rows(batch)
        views, pid = super().rows(batch)
        source = tuple(self.view(batch["source"], i) for i in range(self.count))
        both = tuple(jnp.concatenate(pair) for pair in zip(source, views, strict=True))
        return both, jnp.concatenate([batch["source"]["pid"], self.sources + pid])
