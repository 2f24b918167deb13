"""Runners of camera-aware proxies."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.fields import namespace
from reid_jax.losses import contrast
from reid_jax.methods import cap
from reid_jax.parity.compare import Partition


def cap_labels(case):
    """clusters and their proxies, one for each camera"""
    m, camera = case.config, np.asarray(case.input("camera"))
    fields = namespace(cap.FIELDS | {k: getattr(m, k) for k in ("k1", "k2", "eps", "min_samples")})
    features = np.asarray(case.input("features"))
    labels = numbered(cap.find_labels(features, fields))
    places = len(cap.places_of(labels, camera)[0])
    memory = cap.proxies_of(features, labels, camera, places)
    results = {f"out/proxy_{k}": memory[k] for k in ("cluster", "camera")}
    return results | {"out/labels": Partition(labels), "out/proxies": memory["proxies"]}


def cap_loss(case):
    """losses within and between cameras, gradients, proxies after every step"""
    m, results = case.config, {}
    names = {"temperature": m.temperature, "hard": m.hard, "inter_weight": m.inter_weight}
    fields = namespace(cap.FIELDS | names)
    label, camera = case.input("label"), case.input("camera")
    memory = {"cluster": case.input("proxy_cluster"), "camera": case.input("proxy_camera")}
    same = (memory["cluster"] == label[:, None]) & (memory["camera"] == camera[:, None])
    place = jnp.where(same.any(1), same.argmax(1), -1)

    def loss(f, proxies, place, weight):
        intra, inter, _ = cap.losses(f, memory | {"proxies": proxies}, place, fields)
        return intra + weight * inter

    descend, moved = jax.jit(jax.value_and_grad(loss)), jax.jit(contrast.moved)
    for name, weight in (("intra", 0.0), ("both", fields.inter_weight)):
        proxies = case.input("proxies")
        for i in range(sum(k.startswith("f") for k in case.under("in/"))):
            f, rows = case.input(f"f{i}"), place[case.input(f"index{i}")]
            value, grad = descend(f, proxies, rows, weight)
            proxies = moved(proxies, f, rows, m.momentum)
            results |= {f"out/{name}.loss{i}": value, f"grad/{name}.loss{i}/in/f{i}": grad}
            results[f"out/{name}.proxies{i}"] = proxies
    return results


def numbered(labels):
    """Labels i[N] (-1: none) by first appearance."""
    clustered = labels[labels >= 0]
    order = clustered[np.sort(np.unique(clustered, return_index=True)[1])]
    number = np.full(labels.max(initial=-1) + 2, -1)
    number[order] = np.arange(len(order))
    return number[labels]
