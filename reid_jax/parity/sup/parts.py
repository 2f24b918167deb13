"""Heads with many parts: MGN's on the maps of three branches."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.losses import identity, triplet
from reid_jax.models import heads, pooling
from reid_jax.models.heads import mgn
from reid_jax.parity import nets


class Maps(nn.Module):
    """Stands for a backbone: images are the maps."""

    def __call__(self, x, train):
        return x


def mgn_head(case):
    """MGN's head: features, logits, losses, gradients, running statistics, test mode"""
    m = case.config
    count = len([k for k in case.weights() if k.startswith("fc_id") and k.endswith("weight")])
    pool = {"max": pooling.Maximum, "mean": pooling.Average, "avg": pooling.Average}[m.pool]
    head = mgn.MgnHead(m.classes, pooling=(pool(),) * count, dim=m.features)
    maps = {name: nets.channels_last(case.input(name)) for name in ("p1", "p2", "p3")}
    target, net = case.input("target"), heads.ReIDNet(Maps(), head)
    variables = variables_of(case, net, tuple(maps.values()), "mgn")

    def loss(params, maps):
        all_ = {**variables, "params": params}
        out, changed = net.apply(all_, tuple(maps.values()), case.train, mutable=["batch_stats"])
        ce = jnp.stack([identity.cross_entropy(x, target) for x in out.logits]).mean()
        options = dict(distance="euclidean", margin=m.margin)
        tri = jnp.stack([triplet.batch_hard(g, target, **options)[0] for g in out.after_bn]).mean()
        return m.ce_weight * ce + m.triplet_weight * tri, (ce, tri, out, changed)

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, (ce, tri, out, changed)), (grads, grad_maps) = descend(variables["params"], maps)
    results = {"total": total, "ce": ce, "triplet": tri, "feature": out.test, "logits": jnp.stack(out.logits)}
    results["feature_eval"] = net.apply(variables, tuple(maps.values()), False).test
    results = nets.out(results | after(changed, "mgn")) | gradients("total", grads, "mgn")
    return results | {f"grad/total/in/{k}": nets.channels_first(g) for k, g in grad_maps.items()}


def variables_of(case, net, x, layout):
    """The case's weights in a net on maps."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, False))
    return nets.fill(shapes, case.weights(), case.dtype, layout=layout)


def after(changed, layout):
    """{after/KEY: running statistics}."""
    return {f"after/{k}": v for k, v in nets.torch_entries(changed, layout).items()}


def gradients(name, grads, layout):
    """{grad/NAME/KEY: gradient} of parameters."""
    return {f"grad/{name}/{k}": v for k, v in nets.torch_entries({"params": grads}, layout).items()}
