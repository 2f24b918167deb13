"""Losses of the baseline, IICS, within and between cameras, and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.losses import identity
from reid_jax.losses import triplet as triplets
from reid_jax.methods import Info, adl
from reid_jax.methods.adl import nets as modules
from reid_jax.methods.adl import steps
from reid_jax.parity import nets
from reid_jax.parity.adl import _build


def intra_loss(case):
    """classifiers of cameras: logits, losses, running statistics, gradients"""
    m = case.config
    cameras, widest = len(m.classes), max(m.classes)
    f = jnp.stack([case.input(f"feature{i}") for i in range(cameras)], 1)
    pid = jnp.stack([case.input(f"label{i}") for i in range(cameras)], 1)
    heads = modules.CameraHeads(cameras, widest, mask=True)
    w = [case.weights(f"classifier.{i}.") for i in range(cameras)]

    def wide(key):
        return jnp.concatenate([jnp.asarray(x[key]) for x in w])

    kernel = [np.pad(x["1.weight"].T, ((0, 0), (0, widest - len(x["1.weight"])))) for x in w]
    params = {"neck": {"scale": wide("0.weight"), "bias": 0 * wide("0.weight")}, "kernel": jnp.stack(kernel)}
    stats = {"neck": {"mean": wide("0.running_mean"), "var": wide("0.running_var")}}
    used = {"used": jnp.array(m.classes)}

    def loss(params, f):
        variables = {"params": params, "batch_stats": stats, "classes": used}
        logits, changed = heads.apply(variables, f, True, mutable=["batch_stats"])
        return steps.intra_loss(logits, pid), (logits, changed["batch_stats"]["neck"])

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (logits, after)), (grads, grad_f) = descend(params, f)
    results = {"out/loss": value}
    for i, n in enumerate(m.classes):
        scores = logits[:, i]
        results |= {
            f"out/logits{i}": scores[:, :n],
            f"out/loss{i}": identity.cross_entropy(scores, pid[:, i]),
        }
        results[f"out/accuracy{i}"] = jnp.mean(scores.argmax(-1) == pid[:, i])
        for k in ("mean", "var"):
            results[f"out/running_{k}{i}"] = after[k].reshape(cameras, -1)[i]
        scale = grads["neck"]["scale"].reshape(cameras, -1)[i]
        results |= {f"grad/in/feature{i}": grad_f[:, i], f"grad/classifier.{i}.0.weight": scale}
        results[f"grad/classifier.{i}.1.weight"] = grads["kernel"][i, :, :n].T
    return results


def inter_loss(case):
    """joint classifier with triplet: losses, gradients"""
    m, f, pid = case.config, case.input("feature"), case.input("label")
    head, config = modules.JointHead(m.classes), _build.config(triplet=m.a)
    config.loss.margin = m.margin
    method = adl.Adl(config, Info(1, 1))
    names = {"classifier.0": "neck", "classifier.1": "classifier"}
    entries = _build.renamed(case.weights(), names)
    entries["neck.bias"] = np.zeros_like(entries["neck.weight"])
    variables = _build.filled(case, head, entries, f, False)

    def loss(params, f):
        all_ = {**variables, "params": params}
        logits, _ = head.apply(all_, f, True, mutable=["batch_stats", "classes"])
        value, *terms = method.inter_loss(logits, f, pid)
        return value, (*terms, jnp.mean(logits.argmax(-1) == pid))

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, terms), (grads, grad_f) = descend(variables["params"], f)
    metrics = zip(("cross_entropy", "triplet", "triplet_accuracy", "accuracy"), terms, strict=True)
    results = nets.out({"loss": value} | dict(metrics)) | {"grad/in/feature": grad_f}
    return results | {f"grad/{k}": v for k, v in _build.torch(grads, names).items()}


def triplet(case):
    """batch-hard triplet: losses, shares, gradients"""
    pid, results = case.input("label"), {}
    for i in range(sum(k.startswith("in/feature") for k in case.arrays)):
        margin = case.input(f"margin{i}")

        def hard(f, margin=margin):
            return triplets.batch_hard(f, pid, distance="euclidean", margin=margin)

        (value, aux), grad = jax.value_and_grad(hard, has_aux=True)(case.input(f"feature{i}"))
        results |= {f"out/loss{i}": value, f"out/precision{i}": aux["correct"], f"grad/in/feature{i}": grad}
    return results


def schedule(case):
    """weight of the classifiers' similarity; rates and counts of what is trained"""
    m = case.config
    config = _build.config(
        rounds=m.epochs,
        mix=m.mix_rate,
        mix_power=m.power,
        momentum=0.0,
        frifm_stages=(),
        adversarial_stages=(),
        intra=adl.FIELDS["intra"] | dict(lr=0.1 * m.lr, head_lr=m.lr),
    )
    config.model.norm, config.optim.weight_decay = "aibn", m.weight_decay
    config.data.height = config.data.width = 64
    method = adl.Adl(config, Info(1, 2))
    results = {"out/mix_rate": np.array([method.mix(e) for e in case.arrays["in/epoch"]])}
    init = jax.eval_shape(method.init, jax.random.key(0))
    body, head = jax.tree.leaves(init.nets["net"]["params"]), init.nets["heads"]["params"]
    trained = {"kernel": head["kernel"], "scale": head["neck"]["scale"]}  # the norm's bias is frozen
    results["out/body_tensors"] = len(body)
    results["out/head_tensors"] = method.cameras * len(trained)
    results["out/body_scalars"] = sum(x.size for x in body)
    results["out/mixing_weights"] = sum(x.size == 1 for x in body)
    for name, key in (("net", "body_lr"), ("heads", "head_lr")):
        tx, params = method.tx["intra"][name], {"base": jnp.ones(1, case.dtype)}
        move, _ = tx.update(params, tx.init(params), {"base": jnp.zeros(1, case.dtype)})
        results[f"out/{key}"] = -move["base"]
    return results
