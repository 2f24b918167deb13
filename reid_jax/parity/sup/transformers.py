"""Vision transformers and TransReID's heads."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.losses import identity, triplet
from reid_jax.models.backbones import vit as transformer
from reid_jax.models.backbones.vit_grids import resized
from reid_jax.models.heads import _branches, tokens
from reid_jax.parity import nets


def vit_block(case):
    """a transformer block: tokens out, all gradients"""
    x, weight = case.input("x"), case.input("weight")
    module = transformer.Block(_sizes(case.config, depth=1))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    variables = nets.fill(shapes, case.weights(), case.dtype)

    def loss(params, x):
        y = module.apply({"params": params}, x, case.train)
        return (y * weight).sum(), y

    (_, y), (grads, grad_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    results = {"out/y": y, "grad/in/x": grad_x}
    return results | {f"grad/{k}": v for k, v in nets.torch_entries({"params": grads}).items()}


def vit(case):
    """whole ViT with cameras: class token, gradients, positions resized"""
    image, weight, m = nets.channels_last(case.input("image")), case.input("weight"), case.config
    net = _Net(_vit(m))
    variables = _filled(case, net, image, "timm_vit")

    def loss(params):
        y = net.apply({"params": params}, image, case.train, _camera(case))[:, 0]
        return (y * weight).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    grads = nets.torch_entries({"params": grads}, "timm_vit")
    old = np.asarray(case.input("old_positions"))
    grid = resized(old[0, 1:], tuple(m.grid)).reshape(1, -1, old.shape[-1])
    results = {"out/y": y, "out/new_positions": np.concatenate([old[:, :1], grid], 1)}
    results |= {f"grad/{k}": v for k, v in grads.items()}
    return results | _norms(case, "y", grads)


def jpm(case):
    """TransReID with JPM: scores, features, loss, gradients, running statistics, shuffle, test features"""
    image, target, m = nets.channels_last(case.input("image")), jnp.asarray(case.input("target")), case.config
    net, variables = _jpm(case, image)
    weights = (0.5, *(0.5 / m.parts,) * m.parts)

    def loss(params):
        inputs = image, case.train, _camera(case)
        out, changed = net.apply({**variables, "params": params}, *inputs, mutable=["batch_stats"])
        ce = [identity.cross_entropy(x, target) for x in out.logits]
        options = dict(distance="softmax", margin=0.0)
        hard = [triplet.batch_hard(f, target, **options)[0] for f in out.before_bn]
        return sum(w * (a + b) for w, a, b in zip(weights, ce, hard, strict=True)), (out, changed)

    (total, (out, changed)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    results = {"scores": jnp.stack(out.logits), "features": jnp.stack(out.before_bn), "loss": total}
    after = nets.torch_entries({"batch_stats": changed["batch_stats"]}, "transreid")
    results |= {f"after/{k}": v for k, v in after.items()}
    results["shuffled"] = tokens.shuffled(case.input("tokens")[:, 1:], m.shift, m.groups)
    for name, test in (("feature_eval", "before"), ("feature_eval_after", "after")):
        tested = _branches.ReIDNet(net.base, net.top.clone(test=test))
        results[name] = jax.jit(functools.partial(tested.apply, train=False))(
            variables, image, camera=_camera(case)
        ).test
    return nets.out(results) | _norms(case, "loss", nets.torch_entries({"params": grads}, "transreid"))


class _Net(nn.Module):
    """A backbone in its place."""

    base: nn.Module

    def __call__(self, *args):
        return self.base(*args)


def _sizes(m, depth):
    """transformer.Sizes of a case's config."""
    default = transformer.Sizes(m.dim, depth, m.heads)
    names = {"ratio": "mlp_ratio", "patch": "patch", "qkv_bias": "qkv_bias", "epsilon": "layer_norm_eps"}
    names |= {"scale": "qk_scale"}
    return default._replace(
        **{ours: getattr(m, name, getattr(default, ours)) for ours, name in names.items()}
    )


def _vit(m):
    """transformer.ViT of a case's config."""
    cameras = getattr(m, "cameras", 0)
    weight = m.sie if cameras else 0.0
    return transformer.ViT(_sizes(m, m.depth), m.stride, getattr(m, "drop_path", 0.0), weight, cameras)


def _jpm(case, image):
    """(ReIDNet, its variables) of a case."""
    m = case.config
    base = _vit(m)
    last = base.block(m.depth - 1), functools.partial(transformer.layer_norm, base.sizes)
    shuffle = getattr(m, "rearrange", True)
    net = _branches.ReIDNet(base, tokens.JpmHead(m.classes, *last, m.parts, m.shift, m.groups, shuffle))
    return net, _filled(case, net, image, "transreid")


def _filled(case, net, image, layout):
    """The case's weights as variables of a net."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), image, False))
    return nets.fill(shapes, case.weights(), case.dtype, layout=layout)


def _camera(case):
    """The images' cameras, None where the case has none."""
    return jnp.asarray(case.input("camera")) if getattr(case.config, "cameras", 0) else None


def _norms(case, name, grads):
    """Norms of gradients in the order of the case."""
    keys = case.arrays.get(f"out/gradnorm_names/{name}", np.array([], str)).tolist()
    norms = np.array([np.linalg.norm(grads[k]) for k in keys])
    return {f"out/gradnorm_names/{name}": np.array(keys), f"out/gradnorm/{name}": norms}
