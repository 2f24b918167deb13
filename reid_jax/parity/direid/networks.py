"""Networks of the first stage, and the classifier of both."""

import jax
import jax.numpy as jnp

from reid_jax.methods.direid import judges
from reid_jax.models import modes
from reid_jax.parity import nets
from reid_jax.parity.direid import _build


def content_encoder(case):
    """content encoder: f, c, classifier, neck, stages, norms of gradients or running statistics"""
    x, ct_f, ct_c = _build.image(case, "x"), case.input("ct_f"), _build.image(case, "ct_c")
    entries = case.weights()
    net = _build.content_encoder(entries, case.config)
    variables = _build.fill(case, net, entries, x)

    def forward(params, method):
        all_variables = {**variables, "params": params}
        out, stats = modes.call(net, all_variables, x, train=case.train, method=method)
        loss = ((out[0] if method is None else out) * ct_f).sum()
        return loss + (0 if method else (out[1] * ct_c).sum()), (out, stats)

    descend = jax.jit(jax.grad(forward, has_aux=True), static_argnums=1)
    grads, ((f, c), stats) = descend(variables["params"], None)
    results = {"out/f": f, "out/c": nets.channels_first(c)}
    results |= {f"out/after/{k}": v for k, v in _build.entries({"batch_stats": stats}).items()}
    results |= _build.norms(case, "forward", _build.only(_build.entries({"params": grads}), r"head\."))
    if not case.train:
        id_grads = _build.entries({"params": descend(variables["params"], "identity")[0]})
        reached = r"model\.|head\.(aspp|invariance|identity)\."
        results |= _build.norms(case, "identity", _build.only(id_grads, reached))
        maps = jax.jit(lambda v: net.apply(v, x, False, method=lambda m, x, t: m.base.maps(x, t, 0, 3)))
        for i, stage in enumerate(maps(variables)):
            results |= {
                f"out/stage{i}_absmean": jnp.abs(stage).mean(),
                f"out/stage{i}": nets.channels_first(stage),
            }
        results["out/neck"], results["out/p"] = net.apply(variables, f, False, method="classify")
    return results


content_encoder_train = content_encoder


def degradation_encoder(case):
    """degradation encoder: both heads, gradient of the image, which parameters train"""
    x, ct, entries = _build.image(case, "x"), case.input("ct"), case.weights()
    net = _build.degradation_encoder(entries)
    variables = _build.fill(case, net, entries, x)
    results = {}
    for name, method, head in (("real", None, "conv3_sync"), ("syn", "synthetic", "conv3_real")):

        def loss(params, x, method=method):
            d = net.apply({"params": params}, x, method=method)
            return (d * ct).sum(), d

        (grads, grad_x), d = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
        results[f"out/d_{name}"] = d
        results |= _build.norms(case, name, _build.only(_build.entries({"params": grads}), rf"(?!{head})"))
        results.setdefault("grad/in/x", nets.channels_first(grad_x))
    return results


def generator(case):
    """generator: modulation, maps inside, image, gradients of content and code"""
    inputs, ct, entries = (_build.image(case, "c"), case.input("d")), _build.image(case, "ct"), case.weights()
    net = _build.generator(entries)
    variables = _build.fill(case, net, entries, *inputs)

    def loss(params, c, d):
        keep = dict(capture_intermediates=True, mutable=["intermediates"])
        y, seen = net.apply({"params": params}, c, d, **keep)
        return (y * ct).sum(), (y, seen["intermediates"]["dec"])

    descend = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    (grads, grad_c, grad_d), (y, seen) = descend(variables["params"], *inputs)
    scale, shift = (jnp.concatenate(m, -1) for m in net.apply(variables, inputs[1], method="modulation"))
    maps = {"image": y, "after_res": seen["res"]["__call__"][0], "after_up1": seen["up_0"]["__call__"][0]}
    results = {f"out/{k}": nets.channels_first(v) for k, v in maps.items()}
    results |= {"out/adain_scale": scale, "out/adain_shift": shift}
    results |= {"grad/in/c": nets.channels_first(grad_c), "grad/in/d": grad_d}
    return results | _build.norms(case, "image", _build.entries({"params": grads}))


def discriminator(case):
    """discriminator: score maps, prediction, gradients"""
    x, entries = _build.image(case, "x"), case.weights()
    net = _build.discriminator(entries)
    variables = _build.fill(case, net, entries, x)

    def loss(params, x):
        maps = net.apply({"params": params}, x)
        return sum((o * _build.image(case, f"ct{s}")).sum() for s, o in enumerate(maps)), maps

    (grads, grad_x), maps = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    results = {f"out/scale{s}": nets.channels_first(o) for s, o in enumerate(maps)}
    results["out/predict_x_x2"] = judges.predict(net, variables, x, _build.image(case, "x2"))[:, None]
    results["grad/in/x"] = nets.channels_first(grad_x)
    return results | _build.norms(case, "out", _build.entries({"params": grads}))


def classifier(case):
    """ClassBlock: neck and logits in both modes, gradients"""
    x, ct, entries, results = case.input("x"), case.input("ct"), case.weights(), {}
    net = _build.class_block(entries, "")
    variables = nets.fill(jax.eval_shape(lambda: net.init(jax.random.key(0), x, False)), entries, case.dtype)
    for mode in ("eval", "train"):

        def loss(x, mode=mode):
            (neck, p), _ = modes.call(net, variables, x, train=mode == "train")
            return (p * ct).sum(), (neck, p)

        grad, out = jax.grad(loss, has_aux=True)(x)
        results |= {f"out/neck_{mode}": out[0], f"out/p_{mode}": out[1], f"grad/{mode}/in/x": grad}
    return results
