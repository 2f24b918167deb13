"""Runners of lifelong re-identification: LwF and AKA."""

import jax
import numpy as np

from reid_jax.losses import lifelong, triplet
from reid_jax.models.knowledge import KnowledgeGraph


def lifelong_losses(case):
    """LwF and AKA: distillation, plasticity, stability, gradients"""
    m, labels = case.config, np.asarray(case.input("labels"))
    old = {name: case.input(f"old_{name}") for name in ("scores", "vertex")}
    hard = dict(distance="softplus", margin=m.margin)
    losses = {
        "distillation": (
            "scores",
            lambda x: lifelong.distillation(x, old["scores"], temperature=m.temperature),
        ),
        "plasticity": ("feature", lambda x: triplet.batch_hard(x, labels, **hard)[0]),
        "stability": ("vertex", lambda x: lifelong.stability(x, old["vertex"])),
    }
    results = {}
    for name, (key, loss) in losses.items():
        value, grad = jax.jit(jax.value_and_grad(loss))(case.input(key))
        results |= {f"out/{name}": value, f"grad/{name}/in/{key}": grad}
    return results


def aka_graph(case):
    """AKA: output of the graph, gradients"""
    m, entries, x, weight = case.config, case.weights(), case.input("x"), case.input("weight")
    graph = KnowledgeGraph(m.vertices, m.sigma, dropout=0.0)
    params = {
        "vertex": entries["meta_graph_vertex"],
        "W": entries["meta_GCN.W"],
        "b": entries["meta_GCN.b"],
        "distance": {"kernel": entries["distance.0.weight"].T, "bias": entries["distance.0.bias"]},
    }

    def loss(params, x):
        y = graph.apply({"params": params}, x, case.train)
        return (y * weight).sum(), y

    (grads, grad_x), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    named = {"meta_graph_vertex": grads["vertex"], "meta_GCN.W": grads["W"], "meta_GCN.b": grads["b"]}
    named["distance.0.weight"] = grads["distance"]["kernel"].T
    named["distance.0.bias"] = grads["distance"]["bias"]
    return {"out/y": y, "grad/in/x": grad_x} | {f"grad/{k}": v for k, v in named.items()}
