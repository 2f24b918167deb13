"""HA-CNN: the whole net in test mode and in training."""

import jax
import numpy as np

from reid_jax.losses import identity
from reid_jax.models.backbones.hacnn import REGIONS
from reid_jax.parity import nets
from reid_jax.parity.sup.osnet import gradients


def hacnn(case):
    """HA-CNN: maps, shifts and feature for both ways of sampling"""
    x, results = nets.channels_last(case.input("image")), {}
    for name, aligned in (("plain", False), ("aligned", True)):
        net, variables = _net(case, x, aligned)

        @jax.jit
        def run(variables, net=net):
            options = dict(mutable=["intermediates", "batch_stats"], capture_intermediates=_watched)
            return net.apply(variables, x, case.train, **options)

        out, seen = run(variables)
        results |= {f"out/{name}/{k}": v for k, v in _described(seen["intermediates"]["base"]).items()}
        results[f"out/{name}/feature"] = out.test
    return results


def hacnn_train(case):
    """HA-CNN in training: loss, features, gradients, running statistics"""
    m, x, target = case.config, nets.channels_last(case.input("image")), case.input("target")
    net, variables = _net(case, x, m.align_corners)

    def loss(params):
        out, changed = net.apply({**variables, "params": params}, x, case.train, mutable=["batch_stats"])
        smooth = getattr(m, "label_smooth", 0.0)
        terms = [identity.cross_entropy(y, target, label_smooth=smooth) for y in out.logits]
        return sum(terms) / len(terms), (out, changed)

    (total, (out, changed)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    results = {"loss": total}
    for i, name in enumerate(("global", "local")):
        results |= {f"logits_{name}": out.logits[i], f"feature_{name}": out.after_bn[i]}
    results |= {f"after/{k}": v for k, v in nets.torch_entries(changed, "hacnn").items()}
    return nets.out(results) | gradients(case, nets.torch_entries({"params": grads}, "hacnn"))


def _net(case, x, align_corners):
    """(ReIDNet of the case's sizes, its weights in it)."""
    m, entries = case.config, case.weights()
    fields = dict(hacnn_widths=(len(entries["conv.bn.weight"]), *m.channels), hacnn_dim=m.feat_dim)
    net = nets.build(m.classes, backbone="hacnn", head="pair", hacnn_align_corners=align_corners, **fields)
    return net, nets.net_variables(case, net, x)


def _watched(module, method):
    return method == "__call__" and module.path[:1] == ("base",) and len(module.path) <= 3


def _described(seen):
    """{mean_NAME, std_NAME, thetaK} of the modules' outputs; the last region's of the local ones."""
    maps, thetas = {"conv": seen["conv"]["__call__"][0]}, {}
    for k in (1, 2, 3):
        maps[f"inception{k}"] = seen[f"inception{k}_1"]["__call__"][0]
        maps[f"soft{k}"], thetas[f"theta{k}"] = seen[f"ha{k}"]["__call__"][0]
        local = seen[f"local_conv{k}"]["__call__"][0]
        maps[f"local_conv{k}"] = local[-(len(local) // REGIONS) :]
    return thetas | {
        f"{moment}_{name}": np.asarray(f(y)) for name, y in maps.items() for moment, f in nets.MOMENTS.items()
    }
