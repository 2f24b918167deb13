"""Runner of softened similarity."""

import jax
import jax.numpy as jnp

from reid_jax.eval import unlike
from reid_jax.losses import contrast
from reid_jax.methods import softsim as method


def softsim(case):
    """dissimilarities, reliable images, the soft loss; the table of the first phase over its steps"""
    m, f = case.config, case.input("f")
    vectors, parts, camera = case.input("vectors"), case.input("parts").swapaxes(0, 1), case.input("camera")
    whole = vectors, parts, camera
    d = jax.jit(unlike.dissimilarity, static_argnums=(2, 3))(whole, whole, m.lambda_p, m.lambda_c)
    near = jnp.asarray(unlike.nearest(vectors, parts, camera, m.neighbours, m.lambda_p, m.lambda_c, tile=16))
    results = {"out/dissimilarity": d, "out/reliable": near}

    def loss(f, table, index, lam):
        likely = method.log_likely(f, table, m.temperature)
        return method.soft_cross_entropy(likely, index, near[index], lam)

    descend, moved = jax.jit(jax.value_and_grad(loss)), jax.jit(contrast.moved)
    index, table = case.input("index"), vectors
    results["out/loss"], results["grad/loss/in/f"] = descend(f, vectors, index, m.lam)
    for i in range(sum(k.startswith("f_hard") for k in case.under("in/"))):
        f = case.input(f"f_hard{i}")
        value, grad = descend(f, table, index, 1.0)
        table = moved(table, f, index, method.FIELDS["momentum"])
        results |= {f"out/hard.loss{i}": value, f"grad/hard.loss{i}/in/f_hard{i}": grad}
        results[f"out/hard.table{i}"] = table
    return results
