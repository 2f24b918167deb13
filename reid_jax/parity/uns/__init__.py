"""Runners of the cases `uns__*`: functions of the modules in here, called as the case; the docstring's first
line is shown.
"""

import jax

from reid_jax.losses import contrast, identity
from reid_jax.methods import _steps, cluster_contrast


def cc_memory(case):
    """cluster contrast: losses, gradients, centroids of both rules after every step"""
    m, memory, results = case.config, case.input("memory"), {}

    def loss(f, memory, label):
        memory = {"centroids": memory, "used": len(memory)}
        return identity.cross_entropy(cluster_contrast.logits(_steps.unit(f), memory, m.temperature), label)

    for rule in ("all", "hard"):
        centroids = memory
        for i in range(sum(k.startswith("f") for k in case.under("in/"))):
            f, label = case.input(f"f{i}"), case.input(f"label{i}")
            value, grad = jax.value_and_grad(loss)(f, centroids, label)
            results |= {f"out/{rule}.loss{i}": value, f"grad/{rule}.loss{i}/in/f{i}": grad}
            centroids = contrast.moved(centroids, _steps.unit(f), label, m.momentum, rule == "hard")
            results[f"out/{rule}.memory{i}"] = centroids
    return results


def _renamed(key, old, new):
    """key with `new` for its beginning `old`."""
    return new + key[len(old) :] if key.startswith(old) else key
