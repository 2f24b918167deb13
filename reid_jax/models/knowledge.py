"""AKA's graph of accumulated knowledge (Pu et al., Lifelong Person Re-Identification, CVPR 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.models.layers import normal


class KnowledgeGraph(nn.Module):
    """What vertices learnt in earlier steps add to features of a batch: f[B,D] -> f[B,D].

    One graph layer over the batch and the vertices together, A = edges + 1 with rows that sum to 1. Edges
    within the batch and among vertices are sigmoid(w (u - v) + b), not symmetric, those between them a
    softmax over the batch of their distances. dropout: of the layer's input, in training.
    """

    vertices: int = 64
    sigma: float = 2.0
    dropout: float = 0.6

    @nn.compact
    def __call__(self, x, train):
        size, init = x.shape[1], nn.initializers.xavier_uniform()
        vertex = self.param("vertex", normal(0.0, 1.0), (self.vertices, size), jnp.float32)
        weight = self.param("W", init, (size, size), jnp.float32)
        bias = self.param("b", nn.initializers.zeros, (size,), jnp.float32)
        nodes, edges = jnp.concatenate([x, vertex]), self.edges(x, vertex)
        nodes = nn.Dropout(self.dropout, deterministic=not train)(nodes)
        return jnp.tanh(edges @ (nodes @ weight) + bias)[: len(x)]

    def edges(self, x, vertex):
        """f[B+V,B+V], rows of sum 1."""
        score = nn.Dense(1, name="distance")
        inside, among = (_within(score(nodes)[:, 0], score.variables) for nodes in (x, vertex))
        square = ((x[:, None] - vertex) ** 2).sum(-1)
        cross = jax.nn.softmax(-jnp.maximum(square, 1e-6) / (2 * self.sigma), axis=0)
        adjacency = jnp.block([[inside, cross], [cross.T, among]]) + jnp.eye(len(x) + len(vertex))
        return adjacency / adjacency.sum(1, keepdims=True)


def _within(score, variables):
    """sigmoid(w (u - v) + b) of all pairs from the scores w u + b; 1 on the diagonal."""
    edge = jax.nn.sigmoid(score[:, None] - score + variables["params"]["bias"])
    return jnp.where(jnp.eye(len(score), dtype=bool), 1, edge)
