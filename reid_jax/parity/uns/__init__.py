"""Runners of the cases `uns__*`: function name = case name; the docstring's first line is shown."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.fields import namespace
from reid_jax.losses import contrast, identity
from reid_jax.methods import Info, _steps, cluster_contrast, defaults, mmt
from reid_jax.models import heads
from reid_jax.parity import nets
from reid_jax.parity.compare import Partition


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


# ---- mutual mean teaching


def mmt_source_step(case):
    """steps on the source, pictures of the target passed forward: losses, gradients, weights"""
    m = case.config
    config = _mmt_config(m)
    config.loss.margin = m.margin
    method = _tiny(case, mmt.Source(config, Info(m.classes, 1)), m.classes)
    state = _start(case, method, ("net",))
    label, step = case.input("label"), jax.jit(method.step)

    def loss(nets_):
        image = nets.channels_last(case.input("source0"))
        out, stats = method.encoder.apply(nets_["net"], image, True)
        return sum(_steps.identity_losses(config.loss, out, label, None)), {"net": stats}, {}, None

    results = _gradients(_steps.gradient(loss, state.nets, ("net",), None)[0])
    for i in range(m.steps):
        source, target = (nets.channels_last(case.input(f"{k}{i}")) for k in ("source", "target"))
        batch = {"source": {"image": [source], "pid": label}, "target": {"image": [target]}}
        state, metrics = step(state, batch)
        results[f"out/losses{i}"] = jnp.stack([metrics["ce"], metrics["triplet"]])
        results |= _after(state, i)
    return results


def mmt_step(case):
    """whole steps of mutual mean teaching: losses, gradients, students, teachers"""
    m = case.config
    config = _mmt_config(m)
    config.mmt.clusters, config.mmt.alpha, config.mmt.ema_ramp = m.places, m.alpha, m.ema_ramp
    config.mmt.soft_ce, config.mmt.soft_triplet = m.soft_ce, m.soft_triplet
    method = _tiny(case, mmt.Adapt(config, Info(0, 1)), m.places)
    state = _start(case, method, (*mmt.STUDENTS, *mmt.TEACHERS))
    state = state._replace(step=jnp.int32(m.first_step), memory={"used": jnp.int32(m.classes)})
    label, step, results = case.input("label"), jax.jit(method.step), {}

    @jax.jit
    def terms(state, views):
        taught, _ = method.forward(state.nets, mmt.TEACHERS, views, m.classes)

        def loss(nets_):
            return method.loss(nets_, taught, views, label, m.classes)

        grads, _, _, terms = _steps.gradient(loss, state.nets, mmt.STUDENTS, None)
        return grads, terms

    for i in range(m.steps):
        views = [nets.channels_last(case.input(f"image{v}_{i}")) for v in (1, 2)]
        grads, values = terms(state, views)
        results |= {} if i else _gradients(grads)
        state, metrics = step(state, {"target": {"image": views, "pid": label}})
        results |= {f"out/losses{i}": values.T.ravel(), f"out/loss{i}": metrics["loss"]} | _after(state, i)
    return results


def mmt_kmeans(case):
    """labels and classifiers by k-means"""
    tree = defaults("mmt")
    tree["mmt"].update(clusters=case.config.clusters)
    teachers = [f"teacher{k}" for k in case.under("in/teacher")]
    f = np.asarray(sum(_steps.unit(case.input(k)) for k in teachers) / len(teachers))
    labels, centres = mmt.find_labels(f, namespace(tree["mmt"]), 0)
    order = labels[np.sort(np.unique(labels, return_index=True)[1])]  # by first appearance
    return {"out/labels": Partition(labels), "out/classifier": centres[order]}


def _mmt_config(m):
    """This library's config of a case's."""
    tree = defaults("mmt")
    tree["model"].update(neck="bnneck")
    tree["loss"].update(feature="before_bn", triplet="softmax", label_smooth=m.label_smooth)
    tree["optim"].update(lr=m.lr, weight_decay=m.weight_decay, eps=m.adam_eps, milestones=())
    return namespace(tree)


def _tiny(case, method, classes):
    """The method on the recorded encoder; a batch's "image" is its list of views."""
    m = case.config
    head = heads.GlobalHead(classes, neck="bnneck")
    method.encoder = heads.encoder(heads.ReIDNet(nets.TinyTrunk(m.width, m.dim), head))
    method.view = lambda batch, i=0: batch["image"][i]
    method.blank = lambda: jnp.zeros((1, 16, 16, 3), case.dtype)
    return method


def _start(case, method, names):
    """State with the recorded weights of all networks."""
    shapes, filled = jax.eval_shape(method.init, jax.random.key(0)), {}
    for name in names:
        entries = {_renamed(k, "bn.", "neck."): v for k, v in case.weights(f"{name}.").items()}
        filled[name] = jax.tree.map(jnp.asarray, nets.fill(shapes.nets[name], entries, case.dtype))
    return method.fresh(filled, method.tx)


def _renamed(key, old, new):
    return new + key[len(old) :] if key.startswith(old) else key


def _entries(variables):
    """{the case's key: array} of one network."""
    return {_renamed(k, "neck.", "bn."): v for k, v in nets.torch_entries(variables).items()}


def _gradients(grads):
    entries = ((n, k, v) for n, grad in grads.items() for k, v in _entries({"params": grad}).items())
    return {f"grad/step0/{n}.{k}": v for n, k, v in entries}


def _after(state, i):
    entries = ((n, k, v) for n, net in state.nets.items() for k, v in _entries(net).items())
    return {f"out/after{i}/{n}.{k}": v for n, k, v in entries}
