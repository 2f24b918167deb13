"""Runners of SpCL's cases: function name = case name; the docstring's first line is shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.fields import namespace
from reid_jax.losses import contrast
from reid_jax.methods import Info, _steps, defaults, spcl
from reid_jax.methods.spcl import labels as filters
from reid_jax.models import heads, pooling
from reid_jax.parity import nets
from reid_jax.parity.compare import Partition
from reid_jax.parity.uns import _renamed, norms


def spcl_memory(case):
    """loss, gradient and hybrid memory of every step"""
    m, memory, results = case.config, case.input("memory"), {}
    label = jnp.asarray(np.unique(case.input("labels"), return_inverse=True)[1])

    @jax.jit
    def step(f, memory, place):
        def loss(f):
            return spcl.hybrid(f, memory, label, place, m.temperature)[0].mean()

        return jax.value_and_grad(loss)(f), contrast.moved(memory, f, place, m.momentum)

    for i in range(_count(case, "f")):
        f, place = case.input(f"f{i}"), case.input(f"index{i}")
        (value, grad), memory = step(f, memory, place)
        results |= {f"out/loss{i}": value, f"grad/loss{i}/in/f{i}": grad, f"out/memory{i}": memory}
    return results


def spcl_filter(case):
    """the reliability filter in several rounds: labels, scores, threshold"""
    threshold, results = -1.0, {}
    for i in range(_count(case, "normal")):
        labellings = [case.input(f"{k}{i}") for k in ("tight", "normal", "loose")]
        labels, threshold, comp, indep = filters.refined(*labellings, threshold, case.config.share)
        counts = np.unique(labels, return_counts=True)[1]
        clusters = np.array([np.count_nonzero(counts > 1), np.count_nonzero(counts == 1)])
        results |= {f"out/comp{i}": comp, f"out/indep{i}": indep}
        results |= {f"out/labels{i}": Partition(labels), f"out/clusters{i}": clusters}
    return results | {"out/threshold": threshold}


def spcl_labels(case):
    """labels of several rounds from features"""
    m, tree, threshold, results = case.config, defaults("spcl"), -1.0, {}
    fields = {k: getattr(m, k) for k in ("k1", "k2", "eps", "min_samples", "share")}
    tree["spcl"].update(fields, gap=m.eps_gap)
    for i in range(m.epochs):
        inputs = np.asarray(case.input(f"features{i}")), namespace(tree["spcl"])
        results |= _scores(i, filters.clusterings(*inputs), threshold, m.share)
        labels, threshold = filters.find_labels(*inputs, threshold)
        results[f"out/labels{i}"] = Partition(labels)
    return results | {"out/threshold": threshold}


def _scores(i, labellings, threshold, share):
    _, _, comp, indep = filters.refined(*labellings, threshold, share)
    return {f"out/comp{i}": comp, f"out/indep{i}": indep}


def spcl_uda_start(case):
    """the first memory of source and target, the first labels"""
    m = case.config
    source, pid, target = (np.asarray(case.input(k)) for k in ("source", "source_pid", "target"))
    labellings = [case.input(k) for k in ("tight", "normal", "loose")]
    labels = filters.refined(*labellings, -1.0, getattr(m, "share", 0.9))[0]
    return {
        "out/memory": spcl.start(source, pid, target, m.source_classes),
        "out/labels": Partition(labels),
    }


def spcl_batch_order(case):
    """rows of source and target joined on several devices"""
    source, target, results = case.input("source"), case.input("target"), {}
    for n in case.config.devices:
        parts = [x.reshape(n, -1) for x in (source, target)]
        joined = jax.vmap(lambda s, t: spcl.joined([s, t]))(*parts)
        count = parts[0].shape[1]
        results[f"out/order_{n}"] = joined.ravel()
        results |= {
            f"out/source_{n}": joined[:, :count].ravel(),
            f"out/target_{n}": joined[:, count:].ravel(),
        }
    return results


def spcl_uda_step(case):
    """whole steps with norms by domain: losses, gradients, weights, running statistics, memory"""
    m, method = case.config, _tiny(case)
    state, step, results = _start(case, method), jax.jit(method.step), {}
    for i in range(m.steps):
        image = {k: nets.channels_last(case.input(f"image_{k}{i}")) for k in "st"}
        batch = {"source": {"image": image["s"], "pid": case.input(f"source_class{i}")}}
        batch["target"] = {"image": image["t"], "index": case.input(f"target_index{i}")}
        if not i:
            loss = functools.partial(method.loss, rows=method.rows(batch), memory=state.memory, key=None)
            grads = jax.jit(lambda n, loss=loss: _steps.gradient(loss, n, ("net",), None)[0])(state.nets)
            results |= _entries("grad/step0/", {"params": grads["net"]})
        state, metrics = step(state, batch)
        results |= {f"out/loss{i}": metrics["loss"], f"out/memory{i}": state.memory["features"]}
        results |= _entries(f"out/after{i}/", state.nets["net"])
    return results


def _tiny(case):
    """The method on the recorded encoder."""
    m, tree = case.config, defaults("spcl")
    tree["model"].update(head="contrast", pool="avg", backbone="narrow")
    tree["optim"].update(lr=m.lr, weight_decay=m.weight_decay, eps=m.adam_eps, milestones=())
    tree["spcl"].update(temperature=m.temperature, momentum=m.momentum)
    method = spcl.Spcl(namespace(tree), Info(m.source_classes, 1, num_images=m.targets))
    head = heads.ContrastHead(pooling.Average(), domains=2, test_domain=1)
    method.encoder = heads.encoder(heads.ReIDNet(nets.TinyTrunk(m.width, m.dim, domains=2), head))
    method.view = lambda batch: batch["image"]
    method.blank = lambda: jnp.zeros((1, 16, 16, 3), case.dtype)
    return method


def _start(case, method):
    """State with the recorded weights, memory and labels."""
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    entries = {_renamed(k, "bn.", "neck."): v for k, v in case.weights("net.").items()}
    net = jax.tree.map(jnp.asarray, nets.fill(shapes.nets["net"], entries, case.dtype, layout="torchvision"))
    labels = case.input("labels")[method.sources :] - method.sources
    memory = {"features": case.input("memory"), "labels": jnp.asarray(labels, jnp.int32)}
    return method.fresh({"net": net}, method.tx, memory | {"threshold": jnp.float32(-1)})


def _entries(prefix, variables):
    """Variables under the case's keys."""
    entries = norms._spelled(nets.torch_entries(variables))
    return {f"{prefix}net.{_renamed(k, 'neck.', 'bn.')}": v for k, v in entries.items()}


def _count(case, name):
    return sum(k.rstrip("0123456789") == name for k in case.under("in/"))
