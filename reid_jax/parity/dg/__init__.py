"""Runners of the cases `dg__*`: function name = case name; the docstring's first line is shown."""

import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from reid_jax import methods
from reid_jax.config import defaults
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.losses import across, identity, triplet
from reid_jax.methods import _optim, baseline, metabin
from reid_jax.models import heads, layers
from reid_jax.models.backbones import resnet
from reid_jax.models.norms import bin as gated
from reid_jax.models.norms import ibn
from reid_jax.models.styles import dsu as dsu_style
from reid_jax.models.styles import mixstyle as mixstyle_style
from reid_jax.parity import nets

IBN = {"a": ibn.IbnA, "b": ibn.IbnB}


# ---- norms


def _block(case, norms):
    """Results of a residual block, the last of several in its stage."""
    m = case.config
    form = {"resnet": "bottleneck"}.get(m.block, m.block)
    if form not in ("bottleneck", "basic"):
        raise ConfigError(f"block {m.block!r} is not supported, only bottleneck, basic and resnet")
    module = {"bottleneck": resnet.Bottleneck, "basic": resnet.BasicBlock}[form]
    block = module(m.planes, m.stride, norms=norms, stage=1, last=True)
    results = nets.module_results(case, block, case.train)
    if "out/y_eval" in case.arrays:
        x = nets.channels_last(case.input("x"))
        shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
        y = block.apply(nets.fill(shapes, case.weights(), case.dtype), x, False)
        results["out/y_eval"] = nets.channels_first(y)
    return results


def ibn_a_block(case):
    """IBN-a block: output, running statistics, gradients"""
    return _block(case, IBN[case.config.ibn]())


def ibn_b_block(case):
    """IBN-b block: output, running statistics, gradients"""
    return _block(case, IBN[case.config.ibn]())


def dualnorm_block(case):
    """DualNorm block of a ResNet: output, running statistics, gradients"""
    return _block(case, ibn.DualNorm())


def _resnet(m, norms, block=resnet.Bottleneck, neck="none", classes=1):
    trunk = resnet.ResNet(block, tuple(m.layers), m.last_stride, norms=norms)
    return heads.ReIDNet(trunk, heads.GlobalHead(classes, neck=neck))


def ibn_net(case):
    """ResNet with IBN-a or IBN-b: stages, pooled, running statistics"""
    m = case.config
    stages = {i + 1: form for i, form in enumerate(m.ibn) if form}
    if len(set(stages.values())) != 1:
        raise ConfigError(f"ibn {m.ibn}: only one form in a net is supported")
    norms = IBN[next(iter(stages.values()))](stages=tuple(stages))
    basic = m.block.lower().startswith("basic")
    net = _resnet(m, norms, resnet.BasicBlock if basic else resnet.Bottleneck)
    x = nets.channels_last(case.input("x"))
    return nets.out(nets.net_results(net, nets.net_variables(case, net, x), x, case.train))


def dualnorm_resnet(case):
    """DualNorm's ResNet: stages, pooled, feature, gradients of the norms"""
    m, entries = case.config, {_ours(k): v for k, v in case.weights().items()}
    places = {int(f[1]) for k in entries if (f := re.match(r"layer(\d)\.\d+\.IN\.", k))}
    net = _resnet(m, ibn.DualNorm(stages=tuple(sorted(places))), neck="bnneck", classes=m.num_classes)
    x = nets.channels_last(case.input("x"))
    variables = nets.net_variables(case, net, x, entries)
    results = nets.out(nets.net_results(net, variables, x, case.train))
    results = {_theirs(k): v for k, v in results.items()}
    if "in/weight" not in case.arrays:
        return results
    weight = case.input("weight")

    def loss(params, x):
        out, _ = net.apply({**variables, "params": params}, x, case.train, mutable=["batch_stats"])
        return (out.logits[0] * weight).sum()

    grads, grad_x = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], x)
    grads = nets.torch_entries({"params": grads}) | {"in/x": nets.channels_first(grad_x)}
    return results | {f"grad/{_theirs(k)}": v for k, v in grads.items()}


def dualnorm_mobilenet(case):
    """DualNorm's MobileNetV2: maps of its groups, feature"""
    m, x = case.config, nets.channels_last(case.input("x"))
    fields = dict(norm="dualnorm", neck="bnneck", last_stride=getattr(m, "last_stride", 2))
    net = nets.build(m.num_classes, backbone="mobilenetv2", mobilenet_width=m.width, **fields)
    variables = nets.net_variables(case, net, x)

    @jax.jit
    def run(variables):
        options = dict(mutable=["intermediates", "batch_stats"], capture_intermediates=_of_base)
        return net.apply(variables, x, case.train, **options)

    out, changed = run(variables)
    seen = {k: v["__call__"][0] for k, v in changed["intermediates"]["base"].items() if "__call__" in v}
    maps = {"conv1": seen["conv1"], "in1": seen["bn1"], "conv9": seen["conv9"]}
    for name in sorted(k for k in seen if re.fullmatch(r"conv\d_\d", k)):
        maps[f"block{name[4]}"] = seen[name]  # the last one of the group stays
    results = {f"{moment}_{name}": f(y) for name, y in maps.items() for moment, f in nets.MOMENTS.items()}
    return nets.out(results | {"feature": out.after_bn[0]})


def _of_base(module, method):
    return method == "__call__" and len(module.path) == 2 and module.path[0] == "base"


def _ours(key):
    return re.sub(r"^fn\.", "neck.", key)


def _theirs(key):
    return re.sub(r"(^|/)neck\.", r"\1fn.", key)


def bin_layer(case):
    """BIN: train and test mode, gradients, SGD steps with gates clipped"""
    m, module = case.config, gated.BatchInstanceNorm()
    results = nets.module_results(case, module, case.train)
    x, weight = (nets.channels_last(case.input(k)) for k in ("x", "weight"))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    variables = nets.fill(shapes, case.weights(), case.dtype)
    results["out/y_eval"] = nets.channels_first(module.apply(variables, x, False))
    optim = namespace(defaults()["optim"] | dict(kind="sgd", lr=m.lr, momentum=m.momentum, milestones=()))
    optim.weight_decay, optim.groups = m.weight_decay, (("gate$", m.gate_factor, 0.0),)
    net = SimpleNamespace(frozen=(), bounds=gated.Bin().bounds)
    tx = _optim.optimiser(optim, SimpleNamespace(steps_per_epoch=1, total_steps=m.steps), net)

    def loss(params):
        y, _ = module.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return m.loss_scale * (y * weight).sum()

    params, opt = variables["params"], tx.init(variables["params"])
    for step in range(1, m.steps + 1):
        delta, opt = tx.update(jax.grad(loss)(params), opt, params)
        params = jax.tree.map(jnp.add, params, delta)
        entries = nets.torch_entries({"params": params})
        results |= {f"out/step{step}/{k}": v for k, v in entries.items()}
    return results


def metabin_layer(case):
    """MetaBIN's layer: the four kinds of pass, running statistics, gradients"""
    m = case.config
    if m.affine not in ("separate", "shared"):
        raise ConfigError(f"affine {m.affine!r} is not supported, only 'separate' and 'shared'")
    module = gated.GatedNorm() if m.affine == "separate" else gated.BatchInstanceNorm()
    x, weight = (nets.channels_last(case.input(k)) for k in ("x", "weight"))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    variables = nets.fill(shapes, case.weights(), case.dtype)

    def loss(params, x, mode):
        if mode == "virtual":
            gate = gated.virtual_gate(params["gate"], case.input("gate_grad"), m.step_size)
            params = {**params, "gate": gate}
        all_ = {**variables, "params": params}
        y, changed = module.apply(all_, x, mode != "eval", mutable=["batch_stats"])
        return (y * weight).sum(), (y, changed if mode == "general" else variables)

    results = {}
    for mode in ("hold", "eval", "virtual", "general"):
        descend = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
        (grads, grad_x), (y, after) = descend(variables["params"], x, mode)
        results[f"out/y_{mode}"] = nets.channels_first(y)
        grads = nets.torch_entries({"params": grads}) | {"in/x": nets.channels_first(grad_x)}
        results |= {f"grad/{mode}/{k}": v for k, v in grads.items()}
        stats = nets.torch_entries({"batch_stats": after["batch_stats"]})
        results |= {f"out/after_{mode}/{k}": v for k, v in stats.items()}
    return results


# ---- styles


def _style(case, change):
    """y = change(x) of maps and the gradient of sum(y weight)."""
    x, weight = (nets.channels_last(case.input(k)) for k in ("x", "weight"))

    def loss(x):
        y = change(x)
        return (y * weight).sum(), y

    grad, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    return {"out/y": nets.channels_first(y), "grad/in/x": nets.channels_first(grad)}


def mixstyle(case):
    """MixStyle with given shares and rows: output, gradient"""
    share, rows = case.input("lam").reshape(-1), np.asarray(case.input("perm"))

    def change(x):
        others = jax.lax.stop_gradient(mixstyle_style.statistics(x, case.config.eps)[1:])
        return mixstyle_style.mix(x, share, *(a[rows] for a in others), case.config.eps)

    return _style(case, change)


def dsu(case):
    """DSU with given draws: output, gradient through all statistics"""
    m = case.config
    noise = [m.factor * case.input(k) for k in ("noise_mean", "noise_std")]
    return _style(case, lambda x: dsu_style.perturb(x, *noise, epsilon=m.eps))


# ---- MetaBIN


class _Trunk(nn.Module):
    """The backbone of the recorded iterations: a 3x3 convolution and a bottleneck, both with stride 2."""

    width: int
    planes: int

    norms = gated.MetaBin()

    @nn.compact
    def __call__(self, x, train):
        x = layers.Conv(self.width, 3, 2, 1, name="conv1")(x)
        x = nn.relu(gated.GatedNorm(name="bn1")(x, train))
        return resnet.Bottleneck(self.planes, 2, norms=self.norms, name="layer1_0")(x, train)


def metabin_losses(case):
    """MetaBIN: scatter, shuffle, triplet, cross entropy, gradients"""
    m, pid, domain, results = case.config, case.input("pid"), case.input("domain"), {}
    losses = {
        "scatter": lambda feature: across.scatter(feature, domain),
        "shuffle": lambda feature: across.shuffle(feature, pid, domain),
        "triplet": lambda feature: triplet.batch_hard(feature, pid, distance="euclidean", margin=m.margin)[0],
        "cross_entropy": lambda x: identity.cross_entropy(x, pid, label_smooth=_smooth(m, x.shape[1])),
    }
    for name, loss in losses.items():
        key = "logits" if name == "cross_entropy" else "feature"
        value, grad = jax.jit(jax.value_and_grad(loss))(case.input(key))
        results |= {f"out/{name}": value, f"grad/{name}/in/{key}": grad}
    return results


def _smooth(m, classes):
    """Our label_smooth, e / K on every class, that is the reference's e / (K - 1) on every wrong one."""
    return m.label_smooth * classes / (classes - 1)


def metabin_step(case):
    """MetaBIN: iterations; base step, gradients of the gates, gates, running statistics"""
    m, method, results = case.config, _metabin(case.config), {}
    theirs = {_metabin_key(k): k for k in case.weights()}
    state = _metabin_state(case, method)
    base = jax.jit(lambda state, batch: baseline.Baseline.step(method, state, {"train": batch}))
    meta = jax.jit(lambda state, train, test: method.meta(state, train, test, m.inner_ratio))

    def entries(place, tree):
        return {f"{place}/{theirs[k]}": v for k, v in nets.torch_entries(tree).items()}

    for i in range(m.steps):
        state, metrics = base(state, _metabin_batch(case, 2 * i))
        results |= {f"out/base{i}/loss_cls": metrics["ce"], f"out/base{i}/loss_triplet": metrics["triplet"]}
        results |= entries(f"out/base{i}", state.nets["net"])
        batch, order = _metabin_batch(case, 2 * i + 1), case.input(f"perm{i}")
        first = np.isin(batch["domain"], order[: m.mtrain])
        halves = [{k: v[rows] for k, v in batch.items()} for rows in (first, ~first)]
        state, grads, metrics = meta(state, *halves)
        shown = {"stc": "scatter", "triplet_add": "shuffle", "triplet_mtrain": "meta_triplet"}
        results |= {f"out/mtrain{i}/loss_{k}": metrics[name] for k, name in shown.items()}
        results[f"out/mtest{i}/loss_triplet_mtest"] = metrics["meta_test"]
        results |= entries(f"out/gate{i}", state.nets["net"]) | entries(f"out/meta{i}", state.nets["net"])
        for name, grad in zip(("inner", "outer"), grads, strict=True):
            tree = {"params": traverse_util.unflatten_dict(grad, sep="/")}
            results |= entries(f"grad/{name}{i}", tree)
    return results


def _metabin(m):
    """The method over the recorded backbone; its batches hold images as the network takes them."""
    tree = methods.defaults("metabin")
    tree["model"].update(norm="metabin", neck="bnneck")
    tree["loss"].update(triplet="euclidean", margin=m.margin, feature="before_bn")
    tree["loss"].update(label_smooth=_smooth(m, m.classes))
    tree["optim"].update(kind="sgd", lr=m.lr, momentum=m.momentum, weight_decay=m.weight_decay)
    tree["optim"].update(groups=(("bias$", m.bias_factor, None),), milestones=())
    tree["metabin"].update(train_domains=m.mtrain, gate_factor=m.gate_factor, first_base=0)
    method = metabin.MetaBin(namespace(tree), methods.Info(m.classes, 1))
    head = heads.GlobalHead(m.classes, neck="bnneck")
    method.encoder = heads.encoder(heads.ReIDNet(_Trunk(m.width, m.planes), head))
    method.view = lambda batch: batch["image"]
    return method


def _metabin_state(case, method):
    """State with the recorded weights."""
    image = _metabin_batch(case, 0)["image"]
    shapes = jax.eval_shape(lambda: method.encoder.init(jax.random.key(0), image))
    net = nets.fill(shapes, {_metabin_key(k): v for k, v in case.weights().items()}, case.dtype)
    state = method.fresh({"net": jax.tree.map(jnp.asarray, net)}, method.tx)
    return state._replace(opt=state.opt | {"gates": method.gate_tx.init(metabin.gates_of(net))})


def _metabin_batch(case, i):
    image = nets.channels_last(case.input(f"image{i}"))
    return {"image": image, "pid": case.input(f"pid{i}"), "domain": np.asarray(case.input(f"domain{i}"))}


_METABIN_NAMES = {
    r"^backbone\.": "",
    r"downsample\.conv\.": "downsample.0.",
    r"downsample\.bn\.": "downsample.1.",
    r"^heads\.classifier_norm\.": "neck.",
    r"^heads\.classifier_fc\.": "classifier.",
}


def _metabin_key(key):
    for pattern, name in _METABIN_NAMES.items():
        key = re.sub(pattern, name, key)
    return key
