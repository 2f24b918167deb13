"""AKA (Pu et al., CVPR 2021): what a graph of vertices adds to the features keeps what was learnt."""

import functools

import jax

from reid_jax.errors import ConfigError
from reid_jax.losses import batch as batches
from reid_jax.losses import lifelong
from reid_jax.methods import _steps
from reid_jax.methods.lifelong.step import Step
from reid_jax.models.knowledge import KnowledgeGraph


class Aka(Step):
    """Cross entropy and triplet see the pooled vector plus the graph's; tests do without the graph.

    The neck's running statistics and the distilled scores are those of the vector without the graph, which
    is what is tested. The graph gets no gradient through the images' vectors, nor they through it.
    """

    def __init__(self, config, info, names, number):
        super().__init__(config, info, names, number)
        if config.model.head != "global" or config.data.frames:
            raise ConfigError(
                "config.lifelong.mode aka adds to the one pooled vector of a picture: set model.head=global "
                "and data.frames=0"
            )
        self.graph = KnowledgeGraph(self.fields.vertices, self.fields.sigma, self.fields.dropout)
        rate = config.optim.lr * self.fields.graph_gamma**number
        self.tx |= {"graph": _steps.optimiser(config.optim, self.info, lr=rate)}

    def init(self, key):
        image = self.blank()
        nets = {"net": self.encoder.init(key, image)}
        vector = functools.partial(self.network.apply, train=False, method="vectors")
        size = jax.eval_shape(vector, nets["net"], image)
        nets["graph"] = self.graph.init(jax.random.fold_in(key, 1), jax.numpy.zeros(size.shape), False)
        if self.number:
            nets["old_graph"] = jax.tree.map(jax.numpy.copy, nets["graph"])
        if self.remembers:
            nets["old"] = self.old_encoder.init(key, image)
        return self.fresh(nets, self.tx)

    def inherit(self, state, load, extract):
        state = super().inherit(state, load, extract)
        graph = load(self.names[self.number - 1], "graph")
        old = jax.tree.map(jax.numpy.copy, graph)
        return state._replace(nets={**state.nets, "graph": graph, "old_graph": old})

    def step(self, state, batch):
        batch, key = batch["train"], self.key(state)
        image, pid = self.view(batch), batch["pid"]
        said = self.old_scores(state, image)

        def loss(nets):
            plain, fused, stats = self.both(nets, image, key)
            total, metrics = self.identity(fused, pid)
            if said is not None:
                metrics["distill"] = self.fields.distill * self.distillation(plain, said)
                total += metrics["distill"]
            if self.number:
                old, new = (n["params"]["vertex"] for n in (state.nets["old_graph"], nets["graph"]))
                metrics["stability"] = self.fields.stability * lifelong.stability(new, old)
                total += metrics["stability"]
            return total, {"net": stats}, {"loss": total, **metrics}, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def both(self, nets, image, key):
        """(Branches of the pooled vectors, of these plus the graph's, batch_stats of the former)."""
        net, rngs = nets["net"], {"style": key, "dropout": key}
        run = functools.partial(self.network.apply, train=True, mutable=["batch_stats"], rngs=rngs)
        vector, stats = run(net, image, method="vectors")
        net = {**net, "batch_stats": net.get("batch_stats", {}) | stats.get("batch_stats", {})}
        plain, stats = run(net, vector, method="head")
        fused, _ = run(net, vector + self.known(nets["graph"], vector, key), method="head")
        return plain, fused, net["batch_stats"] | stats.get("batch_stats", {})

    def known(self, graph, vector, key):
        """What the graph adds to vectors f[B,D], in sight of the vectors of all devices."""
        every = batches.gather(jax.lax.stop_gradient(vector), self.axis)
        added = self.graph.apply(graph, every, True, rngs={"dropout": jax.random.fold_in(key, 2)})
        first = batches.first_row(vector, self.axis)
        return jax.lax.dynamic_slice_in_dim(added, first, len(vector))
