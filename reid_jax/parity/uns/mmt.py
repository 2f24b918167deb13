"""Mutual mean teaching and MEB-Net."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.eval import cluster
from reid_jax.fields import namespace
from reid_jax.methods import Info, _steps, defaults, mmt
from reid_jax.methods.mmt import labels
from reid_jax.models import heads
from reid_jax.parity import nets
from reid_jax.parity.compare import Partition
from reid_jax.parity.uns import _renamed


def mmt_source_step(case):
    """steps on the source, pictures of the target passed forward: losses, gradients, weights"""
    m = case.config
    config = _mmt_config(m)
    config.loss.margin = m.margin
    method = mmt.Source(config, Info(m.classes, 1))
    method.encoder = _encoder(m.width, m.dim, m.classes)
    _recorded_views(case, method)
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
    m, results = case.config, {}
    for i, (hard, soft, loss) in enumerate(_steps_of(case, [m.width] * 2, [1.0, 1.0], results)):
        said = [soft[1, 0], soft[0, 1]]  # the listener counts the losses
        terms = jnp.concatenate([hard, jnp.stack(said)], 1)
        results |= {f"out/losses{i}": terms.T.ravel(), f"out/loss{i}": loss}
    return results


def meb_step(case):
    """whole steps of MEB-Net: losses of all pairs, gradients, students, teachers"""
    m, scatter = case.config, case.input("scatter")
    authority = len(scatter) * scatter / scatter.sum()
    results, count = {"out/authority": authority}, len(m.widths)
    for i, (hard, soft, loss) in enumerate(_steps_of(case, m.widths, authority, results)):
        said = jnp.stack([soft[s, j] for s in range(count) for j in range(count) if s != j])
        results |= {f"out/ce{i}": hard[:, 0], f"out/triplet{i}": hard[:, 1], f"out/loss{i}": loss}
        results |= {f"out/soft_ce{i}": said[:, 0], f"out/soft_triplet{i}": said[:, 1]}
    return results


def _steps_of(case, widths, authority, results):
    """The case's steps: yields (hard f[K,2], soft f[K,K,2], loss); gradients and states go to results."""
    m = case.config
    config, places = _mmt_config(m), getattr(m, "places", m.classes)
    config.mmt.backbones = ("",) * len(widths)
    config.mmt.clusters, config.mmt.alpha, config.mmt.ema_ramp = places, m.alpha, m.ema_ramp
    config.mmt.soft_ce, config.mmt.soft_triplet = m.soft_ce, m.soft_triplet
    method = mmt.Adapt(config, Info(0, 1))
    method.encoders = [_encoder(width, m.dim, places) for width in widths]
    _recorded_views(case, method)
    state = _start(case, method, (*method.students, *method.teachers))
    memory = {"used": jnp.int32(m.classes), "authority": jnp.asarray(authority, case.dtype)}
    state = state._replace(step=jnp.int32(getattr(m, "first_step", 0)), memory=memory)
    label, step = case.input("label"), jax.jit(method.step)

    @jax.jit
    def terms(state, views):
        taught, _ = method.forward(state.nets, method.teachers, views, m.classes)

        def loss(nets_):
            return method.loss(nets_, taught, views, label, memory)

        grads, _, _, terms = _steps.gradient(loss, state.nets, method.students, None)
        return grads, terms

    for i in range(m.steps):
        views = [nets.channels_last(case.input(f"image{v}_{i}")) for v in range(1, len(widths) + 1)]
        grads, (hard, soft) = terms(state, views)
        results |= {} if i else _gradients(grads)
        state, metrics = step(state, {"target": {"image": views, "pid": label}})
        results |= _after(state, i)
        yield hard, soft, metrics["loss"]


def mmt_kmeans(case):
    """labels and classifiers by k-means"""
    return _by_kmeans(case)


def meb_labels(case):
    """labels, scatter of clusters, authority of the teachers"""
    fields = _fields(clusters=case.config.clusters)
    f = [np.asarray(_steps.unit(case.input(k))) for k in _numbered_names(case, "teacher")]
    results = _by_kmeans(case) | {"out/authority": labels.weighed(f, fields, 0)}
    pairs = zip(f, _numbered_names(case, "labels"), strict=True)
    results["out/scatter"] = np.array([labels.scatter(x, np.asarray(case.input(k))) for x, k in pairs])
    some = np.asarray(case.input("labels_some"))
    return results | {"out/scatter_some": labels.scatter(f[0], some)}


def _by_kmeans(case):
    fields = _fields(clusters=case.config.clusters)
    assigned, centres, _ = labels.find_labels(_mean(case, "teacher"), fields, 0)
    return {"out/labels": Partition(assigned), "out/classifier": centres[_order(assigned)]}


def mmt_dbscan(case):
    """labels and classifiers by DBSCAN on torchreid's Jaccard distance, its eps, distances to a source"""
    m, f = case.config, _mean(case, "teacher")
    dense = cluster.jaccard(f, k1=m.k1, k2=m.k2, form="torchreid").dense().astype(np.float64)
    if m.lambda_value:
        d = cluster.source_distance(f, _mean(case, "source"))
        dense = (1 - m.lambda_value) * dense + m.lambda_value * (d[:, None] + d)
    settings = dict(k1=m.k1, k2=m.k2, rho=m.rho, min_samples=m.min_samples, lambda_value=m.lambda_value)
    fields = _fields(cluster="dbscan", jaccard="torchreid", clusters=len(f), **settings)
    source = _mean(case, "source") if m.lambda_value else None
    assigned, centres, eps = labels.find_labels(f, fields, 0, source=source)
    centres = centres[_order(assigned[assigned >= 0])]
    results = {"out/labels": Partition(assigned), "out/classifier": centres}
    return results | {"out/eps": eps, "out/distance": dense}


def _numbered_names(case, word):
    """Names of the inputs WORD1, WORD2, ... in order, or WORD alone."""
    return sorted(k for k in case.under("in/") if re.fullmatch(rf"{word}_?\w*?\d*", k) and "some" not in k)


def _mean(case, word):
    """Mean of the unit features of all teachers, not of unit length."""
    units = [_steps.unit(case.input(k)) for k in _numbered_names(case, word)]
    return np.asarray(sum(units) / len(units))


def _order(labels):
    """Labels by first appearance."""
    return labels[np.sort(np.unique(labels, return_index=True)[1])]


def _fields(**changed):
    return namespace(defaults("mmt")["mmt"] | changed)


def _mmt_config(m):
    """This library's config of a case's."""
    tree = defaults("mmt")
    tree["model"].update(neck="bnneck")
    tree["loss"].update(feature="before_bn", triplet="softmax", label_smooth=m.label_smooth)
    tree["optim"].update(lr=m.lr, weight_decay=m.weight_decay, eps=m.adam_eps, milestones=())
    return namespace(tree)


def _encoder(width, dim, classes):
    """The recorded encoder."""
    return heads.encoder(heads.ReIDNet(nets.TinyTrunk(width, dim), heads.GlobalHead(classes, neck="bnneck")))


def _recorded_views(case, method):
    """Lets a batch's "image" be its list of views."""
    method.view = lambda batch, i=0: batch["image"][i]
    method.blank = lambda: jnp.zeros((1, 16, 16, 3), case.dtype)


def _start(case, method, names):
    """State with the recorded weights of all networks."""
    shapes, filled = jax.eval_shape(method.init, jax.random.key(0)), {}
    for name in names:
        entries = {_renamed(k, "bn.", "neck."): v for k, v in case.weights(f"{name}.").items()}
        filled[name] = jax.tree.map(jnp.asarray, nets.fill(shapes.nets[name], entries, case.dtype))
    return method.fresh(filled, method.tx)


def _entries(variables):
    """{the case's key: array} of one network."""
    return {_renamed(k, "neck.", "bn."): v for k, v in nets.torch_entries(variables).items()}


def _gradients(grads):
    entries = ((n, k, v) for n, grad in grads.items() for k, v in _entries({"params": grad}).items())
    return {f"grad/step0/{n}.{k}": v for n, k, v in entries}


def _after(state, i):
    entries = ((n, k, v) for n, net in state.nets.items() for k, v in _entries(net).items())
    return {f"out/after{i}/{n}.{k}": v for n, k, v in entries}
