"""Runners of the cases of SNR: function name = case name."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import methods
from reid_jax.fields import namespace
from reid_jax.losses import causality, identity
from reid_jax.methods import snr
from reid_jax.models import heads, restitution
from reid_jax.models.backbones import resnet
from reid_jax.parity import nets

_BLOCK = (r"^gate\.", ""), (r"^fc\.", "classifier.")


def _renamed(entries, pairs):
    def name(key):
        for pattern, ours in pairs:
            key = re.sub(pattern, ours, key)
        return key

    return {name(key): value for key, value in entries.items()}


def snr_block(case):
    """SNR: maps, gate, both causality losses, gradients"""
    m, x = case.config, nets.channels_last(case.input("x"))
    module = restitution.Restitution(m.reduction, m.classes)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, True)["params"])
    weights = case.weights()
    params = nets.fill({"params": shapes}, _renamed(weights, _BLOCK), case.dtype)["params"]
    rows = case.input("positive"), case.input("negative")

    @jax.jit
    def run(params, x):
        options = dict(mutable=[restitution.KEPT, "intermediates"], capture_intermediates=True)
        plus, changed = module.apply({"params": params}, x, True, **options)
        return plus, changed[restitution.KEPT], changed["intermediates"]["IN"]["__call__"][0]

    plus, kept, f = run(params, x)
    maps = {"f": f, "plus": plus, "minus": f + x - plus}
    results = nets.out({k: nets.channels_first(v) for k, v in maps.items()} | {"gate": kept["gate"]})
    results["out/entropies"] = causality.entropies(kept["logits"])
    losses = {
        "entropy": lambda kept: sum(causality.by_entropy(kept["logits"])),
        "triplet_plus": lambda kept: causality.by_triplets(kept["vectors"], *rows)[0],
        "triplet_minus": lambda kept: causality.by_triplets(kept["vectors"], *rows)[1],
    }
    theirs = dict(zip(_renamed(weights, _BLOCK), weights, strict=True))
    for name, loss in losses.items():
        descend = jax.value_and_grad(lambda *args, loss=loss: loss(run(*args)[1]), (0, 1))
        results[f"out/{name}"], (grads, grad_x) = jax.jit(descend)(params, x)
        grads = nets.torch_entries({"params": grads})
        results |= {f"grad/{name}/{theirs[k]}": v for k, v in grads.items()}
        results[f"grad/{name}/in/x"] = nets.channels_first(grad_x)
    return results


_NET = (  # of the classifiers behind the stages first: the net's own is called fc too
    (r"^fc(\d)\.", r"restitution\1.classifier."),
    (r"^fc\.", "classifier."),
    (r"^IN(\d)\.", r"restitution\1.IN."),
    (r"^style_reid_laye(\d)\.", r"restitution\1."),
)


def snr_net(case):
    """SNR's classification net: maps, entropies, losses, gradients"""
    m, x, labels = case.config, nets.channels_last(case.input("x")), case.input("labels")
    weights = case.weights()
    stages = tuple(sorted(int(f[1]) for k in weights if (f := re.match(r"fc(\d)\.weight", k))))
    method = _snr(m, stages)
    used = _renamed(weights, _NET)
    theirs = dict(zip(used, weights, strict=True))
    shapes = jax.eval_shape(lambda: dict(method.network.init(jax.random.key(0), x, False)))
    shapes.pop(restitution.KEPT)
    variables = jax.tree.map(jnp.asarray, nets.fill(shapes, used, case.dtype))

    def loss(params, x):
        out, _, kept = method.kept({**variables, "params": params}, x, None, case.train)
        ce = identity.cross_entropy(out.logits[0], labels)
        more, figures = method.causality(kept, labels)
        return ce + more, (out, kept, ce, figures)

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, (out, kept, ce, figures)), (grads, grad_x) = descend(variables["params"], x)
    results = {"loss": total, "ce": ce, "logits": out.logits[0], "feature": out.before_bn[0]}
    results["entropies"] = jnp.concatenate([causality.entropies(k["logits"]) for k in kept])
    results["causality"] = jnp.stack([sum(causality.by_entropy(k["logits"])) for k in kept])
    results["extra_ce"] = figures["last_ce"] / m.weight
    results = nets.out(results | _maps(method.network, variables, x, case.train, stages))
    grads = {theirs[k]: v for k, v in nets.torch_entries({"params": grads}).items()}
    results |= {f"grad/{k}": v for k, v in grads.items()} | {"grad/in/x": nets.channels_first(grad_x)}
    norms = [np.linalg.norm(grads[k]) for k in weights if k in grads]
    return results | {"out/gradnorm": np.array(norms)}


def _snr(m, stages):
    """The method with the classification form's net."""
    tree = methods.defaults("snr")
    tree["snr"].update(loss="entropy", stages=stages, weights=(m.weight,) * len(stages), last_ce=m.weight)
    tree["loss"].update(triplet_weight=0.0)
    method = snr.Snr(namespace(tree), methods.Info(m.classes, 1))
    block = resnet.BasicBlock if m.block.lower().startswith("basic") else resnet.Bottleneck
    trunk = resnet.ResNet(block, tuple(m.layers), getattr(m, "last_stride", 2))
    trunk = trunk.clone(refine=method.network.base.refine)
    method.network = heads.ReIDNet(trunk, heads.GlobalHead(m.classes, neck="none"))
    return method


def _maps(net, variables, x, train, stages):
    """mean_NAME and std_NAME of the stages' maps, those of f, plus and minus."""

    def kept(module, method):
        return method == "__call__" and len(module.path) > 1

    @jax.jit
    def run(variables, x):
        options = dict(mutable=["intermediates", "batch_stats"], capture_intermediates=kept)
        return net.apply(variables, x, train, **options)[1]["intermediates"]["base"]

    seen, maps = run(variables, x), {}
    for stage in (*stages, 4):
        blocks = [name for name in seen if name.startswith(f"layer{stage}_")]
        maps[f"layer{stage}"] = seen[f"layer{stage}_{len(blocks) - 1}"]["__call__"][0]
    for stage in stages:
        inner = seen[snr.name(stage)]
        f, plus = inner["IN"]["__call__"][0], inner["__call__"][0]
        maps |= {f"f{stage}": f, f"plus{stage}": plus, f"minus{stage}": f + maps[f"layer{stage}"] - plus}
    return {f"{moment}_{n}": of(y) for n, y in maps.items() for moment, of in nets.MOMENTS.items()}
