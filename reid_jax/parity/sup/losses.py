"""Losses on a batch, margin classifiers, schedules."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.config import defaults, namespace
from reid_jax.losses import centers, identity, triplet
from reid_jax.losses import circle as circles
from reid_jax.methods import _optim, _steps
from reid_jax.models import classifiers, heads, pooling
from reid_jax.models.pairs import Pairs
from reid_jax.parity import nets

CLASSIFIERS = {"CircleSoftmax": "circle", "CosSoftmax": "cosface", "ArcSoftmax": "arcface"}
POOLS = {
    "GlobalAvgPool": pooling.Average(),
    "FastGlobalAvgPool": pooling.Average(),
    "GlobalMaxPool": pooling.Maximum(),
    "AdaptiveAvgMaxPool": pooling.AverageMaximum(),
}


def circle(case):
    """circle loss over all pairs of a batch (its paper's equation)"""
    label = case.input("target")

    def loss(emb, name):
        margin, scale = map(float, name.split("_")[1:])
        return circles.loss(emb, label, form="pairs", margin=margin, scale=scale)

    return _each(case, loss)


def fastreid_losses(case):
    """fast-reid's losses: circle and cosface by anchor, cross entropies, eight triplets"""
    label = case.input("target")

    def loss(x, name):
        kind, *form = name.split("_")
        if kind == "ce":
            options = dict(label_smooth=float(form[0]), adaptive=case.config.adaptive_alpha)
            return identity.cross_entropy_others(x, label, **options)
        if kind == "triplet":
            return _triplet(x, label, *form)
        margin, scale = map(float, form)
        options = dict(form="anchor" if kind == "circle" else kind, margin=margin, scale=scale)
        return circles.loss(x, label, **options)

    return _each(case, loss)


def _triplet(x, label, distance, mining, margin):
    config = namespace(defaults())
    config.loss.triplet = "unit" if distance == "cosine" else distance
    config.loss.mining, config.loss.margin = mining, float(margin)
    config.loss.soft_margin = float(margin) == 0
    return _steps.triplet_loss(config.loss, x, label, None)[0]


def _each(case, loss):
    """Values and gradients of every recorded loss(input, name), one input each."""
    results = {}
    for name in (k.removeprefix("out/") for k in case.arrays if k.startswith("out/")):
        (path,) = case.under(f"grad/{name}/in/")
        x = case.input(path)
        value, grad = jax.jit(jax.value_and_grad(lambda x, name=name: loss(x, name)))(x)
        results |= {f"out/{name}": value, f"grad/{name}/in/{path}": grad}
    return results


def wrt(case):
    """weighted regularised triplet, its distances to positives and negatives, center loss"""
    label, results = case.input("target"), {}
    for name in sorted({k.rsplit("/", 2)[0].removeprefix("grad/") for k in case.arrays if "grad/" in k}):
        source, _, form = name.partition("_")
        if source == "center":
            continue

        def loss(x, form=form):
            x = _steps.unit(x) if form == "unit" else x
            options = dict(distance="euclidean", guard=case.config.eps)
            pair = triplet.weighted_distances(x, label, **options)[:2]
            return triplet.weighted(x, label, margin=0.0, **options)[0], pair

        descend = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, (d_ap, d_an)), grad = descend(case.input(source))
        results |= {f"out/{name}": value, f"grad/{name}/in/{source}": grad}
        results |= {f"out/{name}_positive": d_ap, f"out/{name}_negative": d_an}
    emb, centres = case.input("emb"), case.input("centers")
    descend = jax.value_and_grad(lambda f, c: centers.loss(f, c, label), (0, 1))
    value, grads = descend(emb, centres)
    results |= {"out/center": value}
    return results | {f"grad/center/in/{n}": g for n, g in zip(("emb", "centers"), grads, strict=True)}


def verification(case):
    """verification loss of pairs: product, and square of the difference"""
    params, results = {"verify": {}}, {}
    for key, value in case.weights().items():
        leaf = "bias" if key.endswith("bias") else "kernel"
        params["verify"][leaf] = jnp.asarray(value).T
    target = 1 - case.input("same")
    for form in ("product", "square"):

        def loss(params, f, g, form=form):
            module = Pairs(form, case.config.dropout)
            logits = module.apply({"params": params}, f, g, case.train, rngs={"dropout": jax.random.key(0)})
            return identity.cross_entropy(logits, target), logits

        descend = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (value, logits), (grads, f, g) = descend(params, case.input("f"), case.input("g"))
        results |= {f"out/{form}": value, f"out/{form}_logits": logits}
        weights = {"1.weight": grads["verify"]["kernel"].T, "1.bias": grads["verify"]["bias"]}
        weights |= {"in/f": f, "in/g": g}
        results |= {f"grad/{form}/{k}": v for k, v in weights.items()}
    return results


def embedding_head(case):
    """fast-reid's head: reduction, neck, linear, circle, cosface and arcface classifiers"""
    results = {}
    for name, fields in case.config.variants.items():
        results |= _embedding_head(case, name, SimpleNamespace(**fields))
    return results


def _embedding_head(case, name, fields):
    m, x, target = case.config, nets.channels_last(case.input("x")), case.input("target")
    pool = POOLS.get(fields.pool_type)
    if pool is None:
        pool = pooling.Gem(m.gem_p, trained=fields.pool_type == "GeneralizedMeanPoolingP")
    kind = CLASSIFIERS.get(fields.cls_type)
    margin = kind and classifiers.Margin(kind, float(fields.scale), float(fields.margin))
    options = dict(embedding=fields.embedding_dim, margin=margin)
    module = heads.ReIDNet(_Maps(), heads.GlobalHead(m.classes, pool, "bnneck", **options))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    entries = {f"heads.{k}": v for k, v in case.weights(f"{name}.").items()}
    variables = nets.fill(shapes, entries, case.dtype, layout="fastreid")

    def loss(params, x):
        all_variables = {**variables, "params": params}
        out, _ = module.apply(all_variables, x, case.train, mutable=["batch_stats"])
        (logits,) = classifiers.with_margin(out, target)
        value = identity.cross_entropy_others(logits, target, label_smooth=m.label_smooth)
        return value, (logits, out.before_bn[0] if fields.neck_feat == "before" else out.after_bn[0])

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (logits, feature)), (grads, grad_x) = descend(variables["params"], x)
    results = {f"out/{name}_outputs": logits, f"out/{name}_features": feature, f"out/{name}_loss": value}
    results[f"out/{name}_feature_eval"] = module.apply(variables, x, False).test
    bottleneck = f"{name}.bottleneck.{int(fields.embedding_dim > 0)}"
    named = {
        f"{name}.weight": grads["classifier"]["kernel"].T,
        f"{bottleneck}.weight": grads["neck"]["scale"],
    }
    if "feat" in grads:
        named[f"{name}.bottleneck.0.weight"] = grads["feat"]["kernel"].T[..., None, None]
    if "pooling" in grads:
        named[f"{name}.pool_layer.p"] = grads["pooling"]["p"]
    named["in/x"] = nets.channels_first(grad_x)
    return results | {f"grad/{name}_loss/{k}": v for k, v in named.items()}


class _Maps(nn.Module):
    """Stands for a backbone: images are the maps."""

    def __call__(self, x, train):
        return x


def schedules(case):
    """learning rates of TransReID, ReID-Survey, fast-reid and torchreid"""
    m = SimpleNamespace(**{name: SimpleNamespace(**f) for name, f in vars(case.config).items()})
    transreid = dict(schedule="cosine_epochs", first_epoch=1, lowest=0.002, shared_ends=True)
    transreid |= dict(warmup_epochs=m.transreid.warmup_epochs, warmup_factor=0.01)
    agw = dict(schedule="step", milestones=m.agw.milestones, first_epoch=1)
    agw |= dict(warmup_epochs=m.agw.warmup_epochs, warmup_factor=m.agw.warmup_factor)
    f = m.fastreid
    fastreid = dict(schedule="cosine_epochs", lowest=f.lowest / f.lr, delay_epochs=f.delay_epochs)
    fastreid |= dict(warmup_steps=f.warmup_steps, warmup_factor=f.warmup_factor, delay_warmup=True)
    bias = m.transreid.lr * m.transreid.bias_factor
    both = (_rates(case, m.transreid, transreid, lr=lr) for lr in (m.transreid.lr, bias))
    return {
        "out/transreid": jnp.stack([*both], -1),
        "out/agw": _rates(case, m.agw, agw),
        "out/fastreid": _rates(case, f, fastreid, f.steps_per_epoch, f.every),
        "out/torchreid_cosine": _rates(case, m.torchreid_cosine, dict(schedule="cosine_epochs")),
    }


def _rates(case, m, fields, steps_per_epoch=1, stride=1, lr=None):
    """The rate of every `stride`-th step of m.epochs epochs; lr: of the group, None for m.lr."""
    optim = namespace(defaults()["optim"] | fields | {"lr": m.lr})
    total = m.epochs * steps_per_epoch
    info = SimpleNamespace(steps_per_epoch=steps_per_epoch, total_steps=total)
    rate = _optim.schedule(optim, info, m.lr if lr is None else lr)
    return jax.jit(jax.vmap(rate))(jnp.arange(0, total, stride)).astype(case.dtype)
