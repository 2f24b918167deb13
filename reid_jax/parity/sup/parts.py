"""Heads with many parts: MGN's on the maps of three branches, the pyramid's on one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.losses import identity, triplet
from reid_jax.methods import pyramid as method
from reid_jax.models import heads, pooling
from reid_jax.models.heads import mgn
from reid_jax.models.heads import pyramid as pyramid_head
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


def pyramid(case):
    """Pyramid: features, logits, both losses with gradients, running statistics, the switch on a sequence"""
    m, x, target = case.config, nets.channels_last(case.input("x")), case.input("target")
    levels = tuple(i + 1 for i, on in enumerate(m.levels) if on)
    net = heads.ReIDNet(Maps(), pyramid_head.PyramidHead(m.classes, m.stripes, levels, m.features, m.dropout))
    variables = variables_of(case, net, x, "pyramid")

    def losses(params, x):
        out, changed = net.apply({**variables, "params": params}, x, case.train, mutable=["batch_stats"])
        ce = sum(identity.cross_entropy(logits, target) for logits in out.logits)
        options = dict(distance="euclidean", margin=m.margin)
        units = [pyramid_head.unit(f) for f in out.after_bn]
        tri = sum(triplet.batch_hard(f, target, **options)[0] for f in units)
        return {"ce": ce, "triplet": tri}, (out, changed)

    values, back, (out, changed) = jax.vjp(losses, variables["params"], x, has_aux=True)
    results = values | {"logits": jnp.stack(out.logits), "features": jnp.stack(out.after_bn)}
    results |= {"uses_triplet": switched(case.input("series"), m)} | after(changed, "pyramid")
    results = nets.out(results)
    for name in values:
        grads, grad_x = back({k: jnp.ones_like(v) * (k == name) for k, v in values.items()})
        results |= gradients(name, grads, "pyramid")
        results |= {f"grad/{name}/in/x": nets.channels_first(grad_x)}
    return results


def switched(series, m):
    """The switch on a sequence of (cross entropy, triplet) f[T,2]: bool[T]."""

    def step(means, losses):
        means, measures = method.measured(losses, means, m.alpha, m.gamma)
        return means, method.uses_triplet(measures, m.sigma)

    return jax.lax.scan(step, jnp.zeros_like(series[0]), series)[1]
