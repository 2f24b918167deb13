"""Runners of the cases `direid__*`: function name = case name; the docstring's first line is shown."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reid_jax import methods
from reid_jax.config import namespace
from reid_jax.data import degrade
from reid_jax.errors import ConfigError
from reid_jax.eval import protocols, ranking
from reid_jax.losses import distill, identity
from reid_jax.losses import triplet as triplets
from reid_jax.methods import Info, State, direid
from reid_jax.methods.direid import attention as attentions
from reid_jax.methods.direid import dfen as second
from reid_jax.methods.direid import gan, judges, stage
from reid_jax.methods.direid import nets as modules
from reid_jax.models import gan as layers
from reid_jax.models.backbones import resnet
from reid_jax.parity import nets
from reid_jax.parity.compare import Within

# ---- modules with the sizes that the weights have


def _count(entries, pattern):
    """Number of different values of a pattern's group among the keys."""
    return len({match[1] for k in entries if (match := re.match(pattern, k))})


def _trunk(entries, config=None):
    """ResNet of the keys model.*; stages may be absent."""
    if getattr(config, "backbone", "base") != "base":
        raise ConfigError(f"backbone {config.backbone!r} is not supported, only 'base'")
    counts = tuple(_count(entries, rf"model\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    there = next(i for i, count in enumerate(counts) if count)
    width = len(entries[f"model.layer{there + 1}.0.conv1.weight"])
    return resnet.ResNet(resnet.Bottleneck, counts, 2, width=width // 2**there)


def _class_block(entries, prefix="classifier."):
    dim, classes = (len(entries[f"{prefix}{k}.bias"]) for k in ("add_block.0", "classifier.0"))
    return layers.ClassBlock(classes, dim, 0.0)


def _content_encoder(entries, config=None):
    def size(key):
        return len(entries[f"head.{key}.bias"])

    last = _count(entries, r"head\.content\.(\d+)\.") - 1
    widths = size("aspp.fuse.conv"), size("content.0.conv.conv")
    head = modules.Head(size(f"content.{last}.conv"), size(f"identity.{last}.conv"), widths)
    return modules.ContentEncoder(_trunk(entries, config), head, _class_block(entries))


def _identity_encoder(entries, shared, config=None):
    trunk = _trunk(entries, config)
    return modules.IdentityEncoder(trunk, _class_block(entries), first=4 if shared else 0)


def _degradation_encoder(entries):
    dim, width = len(entries["conv3_real.bias"]), len(entries["conv1.conv.bias"])
    return modules.DegradationEncoder(dim, width, share=True)


def _generator(entries):
    content, hidden = (
        len(entries[k]) for k in ("dec.res.model.0.model.0.conv.bias", "mlp_w1.model.0.fc.bias")
    )
    return layers.Generator(content, hidden, _count(entries, r"mlp_w(\d+)\."))


def _discriminator(entries):
    scales, blocks = _count(entries, r"nets\.(\d+)\."), _count(entries, r"nets\.0\.(\d+)\.model")
    return layers.Discriminator(scales, len(entries["nets.0.0.conv.bias"]), blocks)


def _fill(case, module, entries, *args):
    """Variables of a module with a case's weights."""
    shapes = jax.eval_shape(lambda: modules.init(module, jax.random.key(0), *args))
    return jax.tree.map(jnp.asarray, nets.fill(shapes, entries, case.dtype, layout="direid"))


def _entries(variables, prefix=""):
    """{the reference's key: array}."""
    entries = nets.torch_entries(variables, "direid")
    return {prefix + re.sub(r"^E_id\.model", "model", k): v for k, v in entries.items()}


def _norms(case, name, grads):
    """Norms of the gradients {key: array} and their names, in the case's order as far as it has them."""
    recorded = case.arrays.get(f"out/gradnorm_names/{name}", np.array([], str)).tolist()
    names = [n for n in recorded if n in grads] + sorted(set(grads) - set(recorded))
    return {
        f"out/gradnorm_names/{name}": np.array(names),
        f"out/gradnorm/{name}": np.array([np.linalg.norm(grads[n]) for n in names]),
    }


def _image(case, name):
    return nets.channels_last(case.input(name))


def _only(grads, pattern):
    return {k: v for k, v in grads.items() if re.match(pattern, k)}


def content_encoder(case):
    """content encoder: f, c, classifier, neck, stages, norms of gradients or running statistics"""
    x, ct_f, ct_c = _image(case, "x"), case.input("ct_f"), _image(case, "ct_c")
    entries = case.weights()
    net = _content_encoder(entries, case.config)
    variables = _fill(case, net, entries, x)

    def forward(params, method):
        all_variables = {**variables, "params": params}
        out, stats = layers.call(net, all_variables, x, train=case.train, method=method)
        loss = ((out[0] if method is None else out) * ct_f).sum()
        return loss + (0 if method else (out[1] * ct_c).sum()), (out, stats)

    descend = jax.jit(jax.grad(forward, has_aux=True), static_argnums=1)
    grads, ((f, c), stats) = descend(variables["params"], None)
    results = {"out/f": f, "out/c": nets.channels_first(c)}
    results |= {f"out/after/{k}": v for k, v in _entries({"batch_stats": stats}).items()}
    results |= _norms(case, "forward", _only(_entries({"params": grads}), r"head\."))
    if not case.train:
        id_grads = _entries({"params": descend(variables["params"], "identity")[0]})
        reached = r"model\.|head\.(aspp|invariance|identity)\."
        results |= _norms(case, "identity", _only(id_grads, reached))
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
    x, ct, entries = _image(case, "x"), case.input("ct"), case.weights()
    net = _degradation_encoder(entries)
    variables = _fill(case, net, entries, x)
    results = {}
    for name, method, head in (("real", None, "conv3_sync"), ("syn", "synthetic", "conv3_real")):

        def loss(params, x, method=method):
            d = net.apply({"params": params}, x, method=method)
            return (d * ct).sum(), d

        (grads, grad_x), d = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
        results[f"out/d_{name}"] = d
        results |= _norms(case, name, _only(_entries({"params": grads}), rf"(?!{head})"))
        results.setdefault("grad/in/x", nets.channels_first(grad_x))
    return results


def generator(case):
    """generator: modulation, maps inside, image, gradients of content and code"""
    inputs, ct, entries = (_image(case, "c"), case.input("d")), _image(case, "ct"), case.weights()
    net = _generator(entries)
    variables = _fill(case, net, entries, *inputs)

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
    return results | _norms(case, "image", _entries({"params": grads}))


def discriminator(case):
    """discriminator: score maps, prediction, gradients"""
    x, entries = _image(case, "x"), case.weights()
    net = _discriminator(entries)
    variables = _fill(case, net, entries, x)

    def loss(params, x):
        maps = net.apply({"params": params}, x)
        return sum((o * _image(case, f"ct{s}")).sum() for s, o in enumerate(maps)), maps

    (grads, grad_x), maps = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    results = {f"out/scale{s}": nets.channels_first(o) for s, o in enumerate(maps)}
    results["out/predict_x_x2"] = judges.predict(net, variables, x, _image(case, "x2"))[:, None]
    results["grad/in/x"] = nets.channels_first(grad_x)
    return results | _norms(case, "out", _entries({"params": grads}))


def classifier(case):
    """ClassBlock: neck and logits in both modes, gradients"""
    x, ct, entries, results = case.input("x"), case.input("ct"), case.weights(), {}
    net = _class_block(entries, "")
    variables = nets.fill(jax.eval_shape(lambda: net.init(jax.random.key(0), x, False)), entries, case.dtype)
    for mode in ("eval", "train"):

        def loss(x, mode=mode):
            (neck, p), _ = layers.call(net, variables, x, train=mode == "train")
            return (p * ct).sum(), (neck, p)

        grad, out = jax.grad(loss, has_aux=True)(x)
        results |= {f"out/neck_{mode}": out[0], f"out/p_{mode}": out[1], f"grad/{mode}/in/x": grad}
    return results


def attention(case):
    """attention modules: every branch, both modes"""
    f_sen, f_d, entries, results = case.input("f_sen"), case.input("f_d"), case.weights(), {}

    def size(key):
        return len(entries[key])

    latent = size("guided.deg2latent.fc.bias")
    guided = attentions.GuidedAttention(
        size("guided.latent2weight.weight"), size("guided.identity2latent.model.0.fc.bias"), latent
    )
    calls = {
        "from_deg": (guided, "guided.", (f_sen, f_d, True)),
        "from_id": (guided, "guided.", (f_sen, f_d, False)),
        "self": (guided, "guided.", (f_sen, None, None)),
    }
    for form in ("sigmoid", "softmax"):
        outputs, hidden = (size(f"free_{form}.mlp.model.{i}.fc.bias") for i in (3, 0))
        pairs = form == "softmax"
        module = attentions.Attention(outputs // (1 + pairs), hidden, pairs)
        calls[f"free_{form}"] = (module, f"free_{form}.", (f_d,))
    for name, (module, prefix, args) in calls.items():
        shapes = jax.eval_shape(lambda m=module, a=args: m.init(jax.random.key(0), *a, False))
        variables = nets.fill(shapes, case.weights(prefix), case.dtype, layout="direid")
        for mode in ("eval", "train"):
            results[f"out/{mode}/{name}"] = layers.call(module, variables, *args, train=mode == "train")[0]
    return results


# ---- second stage


def _second_stage(case, shared, source):
    """(variables, Dfen) of a case's networks; source: config.direid.attention_input."""
    fields = dict(dfen="shared" if shared else "dual", replay="off", attention_input=source)
    if source != "none":
        fields["attention_form"] = "guided"
    method = second.Dfen(_config(case, direid=fields), INFO)
    entries = {n: case.weights(f"{n}.") for n in method.modules}
    method.modules["E_con"] = _content_encoder(entries["E_con"])
    method.modules["E_id"] = _identity_encoder(entries["E_id"], shared)
    method.modules["C"] = _class_block(entries["C"], "")
    if source != "none":
        sizes = ("latent2weight.weight", "identity2latent.model.0.fc.bias", "deg2latent.fc.bias")
        method.modules["A_deg"] = attentions.GuidedAttention(*(len(entries["A_deg"][k]) for k in sizes))
    if source == "code":
        method.modules["E_deg"] = _degradation_encoder(entries["E_deg"])
    shapes = jax.eval_shape(lambda: method.init_networks(jax.random.key(0), _image(case, "x")))
    variables = {n: nets.fill(s, entries[n], case.dtype, layout="direid") for n, s in shapes.items()}
    return jax.tree.map(jnp.asarray, variables), method


def dfen(case):
    """DFEN on one stem: logits, features, test features, with and without attention"""
    x, results = _image(case, "x"), {}
    for prefix, source in (("", "none"), ("att/", "self")):
        variables, method = _second_stage(case, True, source)
        out, _ = jax.jit(lambda v, m=method: m.forward(v, x, case.train))(variables)
        results |= {f"out/{prefix}{k}": v for k, v in out._asdict().items()}
        results |= {f"out/{prefix}test_{k}": v for k, v in out.test().items()}
    return results


def dfen_dual(case):
    """DFEN with two backbones: logits, features by both ways of the attention"""
    x, results = _image(case, "x"), {}
    for name, source in (("from_deg", "code"), ("from_id", "self")):
        variables, method = _second_stage(case, False, source)
        if source == "code":
            results["out/f_d"] = method.apply(variables, "E_deg", x)
        out, _ = jax.jit(lambda v, m=method: m.forward(v, x, case.train))(variables)
        results |= {f"out/{name}/{k}": v for k, v in out._asdict().items()}
    return results


# ---- losses


def _value_and_grads(name, function, inputs, names):
    value, grads = jax.value_and_grad(lambda a: function(**(inputs | a)))({n: inputs[n] for n in names})
    return {f"out/{name}": value} | {f"grad/{name}/in/{n}": g for n, g in grads.items()}


def basic_losses(case):
    """L1, L2, smooth L1, KL, JS, cross entropy, gradients"""
    images, logits = ({n: case.input(n) for n in names} for names in ("ab", "pq"))
    on_images = {
        "l1": judges.l1,
        "l2": lambda a, b: jnp.square(a - b).mean(),
        "smooth_l1": lambda a, b: optax.huber_loss(a, b).mean(),
    }
    on_logits = {
        "kl": lambda p, q: distill.kl(p, q, detach=False),
        "js": lambda p, q: distill.js(p, q),
        "kl_detach": lambda p, q: distill.kl(p, q),
        "ce": lambda p, q: identity.cross_entropy(p, case.input("t")),
    }
    results = {}
    for name, form in on_images.items():
        results |= _value_and_grads(name, form, images, "ab")
    for name, form in on_logits.items():
        results |= _value_and_grads(name, form, logits, "pq")
    return results


def triplet(case):
    """batch-hard triplet plain and on unit features, with cross entropy; distances, gradients"""
    t, inputs, results = case.input("t"), {n: case.input(n) for n in "fp"}, {}
    same, margin = t[:, None] == t, case.config.margin

    def hard(f):
        return triplets.batch_hard(f, t, distance="euclidean", margin=margin)[0]

    def unit(f):
        return f / (jnp.linalg.norm(f, axis=1, keepdims=True) + 1e-12)

    for name, form in (("plain", lambda f: f), ("normalized", unit)):
        d = triplets.pairwise(form(inputs["f"]), metric="euclidean")
        results[f"out/{name}_ap"] = jnp.where(same, d, -jnp.inf).max(1)
        results[f"out/{name}_an"] = jnp.where(same, jnp.inf, d).min(1)
        results |= _value_and_grads(name, lambda f, p, form=form: hard(form(f)), inputs, "f")
    loss = _config(case, loss=dict(margin=margin)).loss
    results |= _value_and_grads("ce_tri", lambda f, p: stage.reid(p, f, t, loss), inputs, "fp")
    return results


def reid_losses(case):
    """second stage with replay: weighted losses, gradients"""
    m, target, results = case.config, case.input("target"), {}
    names = [k[3:] for k in case.arrays if k.startswith("in/") and k[-1] in "12"]
    inputs = {n: case.input(n) for n in names}
    weights = dict(w_fuse=m.w_id_fuse, w_inv_reid=m.w_id_inv, w_sen_reid=m.w_id_sen, w_replay=m.w_id_smooth)
    for form in ("kl_detach", "js_detach"):
        method = second.Dfen(_config(case, direid=weights | dict(replay_loss=form, replay="off")), INFO)

        def total(chosen, method=method):
            all_ = inputs | chosen
            first = {f: all_.get(f"{f}1") for f in second.Outputs._fields}
            terms = method.losses(second.Outputs(**first), target, all_["p_inv2"])
            total = sum(terms.values())
            return total, terms | {"total": total}

        grads, terms = jax.grad(total, has_aux=True)(inputs)
        results |= {f"out/{form}/loss_reid_{k}": v for k, v in terms.items()}
        results |= {f"grad/{form}/in/{k}": v for k, v in grads.items()}
    return results


def gan_losses_3scale(case):
    """primitives of the first stage: values, gradients of images and of all parameters"""
    m, entries = case.config, case.weights()
    net, label = _discriminator(entries), case.input("label")[:, 0]
    images = {n: _image(case, n) for n in ("fake", "real")}
    variables = _fill(case, net, entries, images["real"])
    rank = dict(margin=m.margin)
    discriminators = {
        "dis": lambda v, a: judges.dis(net, v, a["fake"], a["real"], penalty=m.w_grad),
        "rank_dis": lambda v, a: judges.rank_dis(net, v, a["fake"], a["real"], penalty=m.w_grad, **rank),
        "rank_dis_labels": lambda v, a: judges.rank_dis(
            net, v, a["fake"], a["real"], label, penalty=m.w_grad, **rank
        ),
    }
    generators = {
        "gen_as_real": lambda v, a: judges.gen(net, v, a["fake"]),
        "gen_as_fake": lambda v, a: judges.gen(net, v, a["fake"], False),
        "rank_gen": lambda v, a: judges.rank_gen(net, v, a["fake"], a["real"], **rank),
        "rank_gen_labels": lambda v, a: judges.rank_gen(net, v, a["fake"], a["real"], label, **rank),
    }
    results = {
        "out/predict_fake_real": judges.predict(net, variables, images["fake"], images["real"])[:, None]
    }
    for reduction, reduce in (("map", lambda o: o), ("mean", judges.mean_score)):
        _, squares = judges.penalised(net, variables, images["real"], reduce)
        results |= {f"out/squared_grad_{reduction}_scale{s}": v for s, v in enumerate(squares)}
    for name, form in discriminators.items():
        value, grads = jax.value_and_grad(form)(variables, images)
        named = _entries(grads)
        results |= {f"out/{name}": value, **{f"grad/{name}/{k}": v for k, v in named.items()}}
        results |= _norms(case, name, named)
    for name, form in generators.items():
        value, grads = jax.value_and_grad(form, 1)(variables, images)
        results |= {f"out/{name}": value}
        results |= {f"grad/{name}/in/{k}": nets.channels_first(g) for k, g in grads.items()}
    return results


gan_losses_1scale = gan_losses_3scale


# ---- first stage as a whole, operation by operation: in float64 it compiles for more than half an hour


INFO = Info(num_pids=1, num_cams=1)  # the number of identities is that of a case's classifiers


def _config(case, **sections):
    """The journal's config with fields of sections changed; networks that it says by itself are small."""
    tree = methods.defaults("direid")
    tree["direid"].update(direid.PRESETS["journal"])
    tree["model"].update(backbone="slim")
    tree["data"].update(height=64, width=32)
    tree["loss"].update(triplet="euclidean", feature="before_bn", label_smooth=0.0)
    for section, fields in sections.items():
        tree[section].update(fields)
    return namespace(tree)


def _first_stage(case, config):
    """(variables, Ddgan) of a case's five networks."""
    method = gan.Ddgan(config, INFO)
    build = dict(E_con=_content_encoder, E_deg=_degradation_encoder, G=_generator)
    build |= dict(D_real=_discriminator, D_deg=_discriminator)
    entries = {n: case.weights(f"{n}.") for n in build}
    method.modules = {n: make(entries[n]) for n, make in build.items()}
    image = _image(case, "x_a")[:1]
    shapes = jax.eval_shape(lambda: gan.init_networks(method.modules, jax.random.key(0), image))
    filled = {n: nets.fill(shapes[n], entries[n], case.dtype, layout="direid") for n in build}
    return jax.tree.map(jnp.asarray, filled), method


def _weights(m):
    """config.direid's weights of a case's."""
    return dict(
        w_real=m["real"], w_deg=m["deg"], w_inv=m["inv"], w_id=m["id"], w_recon=m["rec"], w_cycle=m["rec"]
    )


def _draws(cross, first=False):
    return gan.Draws(jnp.bool_(cross), jnp.bool_(first), jax.random.key(0))


def dil_losses(case):
    """first stage's losses, both phases, semi and un: values, images, norms of all gradients"""
    m, results = case.config, {}
    x_a, x_b = _image(case, "x_a"), _image(case, "x_b")
    batch = dict(x_i=x_a, x_j=x_b, x_k=x_b, pid_i=case.input("l_a"), pid_k=case.input("l_b"))
    for name, cross, mode in (("self", False, "un"), ("inter_semi", True, "semi"), ("inter_un", True, "un")):
        fields = _weights(m.weights) | dict(self_kl=bool(m.enable_kl))
        variables, method = _first_stage(case, _config(case, data=dict(pairs=mode), direid=fields))
        params = gan.trained(variables, (*gan.GENERATOR, *gan.DISCRIMINATORS))

        def generator(params, variables, batch, method=method, cross=cross):
            all_ = gan.with_params(variables, params)
            out, stats = method.encode(all_, *gan.pair(batch, cross), cross, train=case.train)
            terms, _ = method.generator_losses(all_, out, stats, batch, cross, train=case.train)
            total = sum(terms.values())
            return total, (terms | {"total": total}, out)

        def discriminators(params, out, first, method=method, cross=cross):
            judging = {n: {"params": p} for n, p in params.items()}
            terms = method.discriminator_losses(judging, out, batch, _draws(cross, first), cross)
            total = sum(terms.values())
            return total, terms | {"total": total}

        grads, (terms, out) = jax.grad(generator, has_aux=True)(params, variables, batch)
        results |= _images(name.split("_")[0], out)
        results |= {f"out/{name}/gen/loss_gen_{k}": v for k, v in terms.items()}
        results |= _norms(case, f"{name}_gen", _reached(grads, method.active(cross)))
        descend = jax.grad(discriminators, has_aux=True)
        for tag, first in (("dis_ab", True), ("dis_ba", False)):
            tag = "dis" if cross else tag  # the cross phase has no draw
            grads, terms = descend({n: params[n] for n in gan.DISCRIMINATORS}, out, first)
            results |= {f"out/{name}/{tag}/loss_dis_{k}": v for k, v in terms.items()}
            results |= _norms(case, f"{name}_{tag}", _reached(grads, method.active(cross)))
    return results


def _images(phase, out):
    pairs = {k: v for k, v in out.items() if k.startswith("x_")}
    results = {f"out/{phase}/{k}": nets.channels_first(v) for k, v in pairs.items()}
    return results | {f"out/{phase}/{k}_absmean": jnp.abs(v).mean() for k, v in pairs.items()}


def _reached(grads, active):
    """{key: gradient} of the parameters of the groups that a phase trains, as the step has it."""
    groups = gan.split_groups(grads)
    reached = gan.join_groups({g: groups[g] for g in groups.keys() & active})
    return {k: v for net, tree in reached.items() for k, v in _entries({"params": tree}, f"{net}.").items()}


def dil_steps(case):
    """whole iterations of the first stage by the library's step: losses, how far groups move, statistics"""
    m = case.config
    optim = dict(lr=m.lr, gamma=0.1, b1=m.betas[0], b2=m.betas[1], weight_decay=m.weight_decay)
    fields = dict(self_kl=bool(m.enable_kl), gan_milestones=m.milestones_after_iterations)
    mode = "semi" if m.folder_type.startswith("semi") else "un"
    config = _config(case, optim=optim, data=dict(pairs=mode), direid=fields)
    variables, method = _first_stage(case, config)
    params = gan.trained(variables, (*gan.GENERATOR, *gan.DISCRIMINATORS))
    opt = {g: method.tx.init(leaves) for g, leaves in gan.split_groups(params).items()}
    state, results = State(jnp.int32(0), variables, opt), {}
    batch = {f"x_{ours}": _image(case, f"x_{theirs}") for ours, theirs in zip("ijk", "abc", strict=True)}
    batch |= {"pid_i": case.input("l_a"), "pid_k": case.input("l_c")}
    names = {"gen_total": "loss", "dis_total": "dis"} | {
        f"gen_{t}": f"gen_{t}" for t in gan.TERMS if t != "pre"
    }
    names |= {f"dis_{t}": f"dis_{t}" for t in ("real", "deg")}
    iterations = sum(k.startswith("out/lr/") for k in case.arrays)
    for i in range(iterations):
        results[f"out/lr/{i + 1}"] = method.rate(state.step)
        draws = method.draw(state)._replace(first=jnp.bool_(False))
        state, metrics = method.phase(state, batch, draws, bool(draws.cross))
        results |= {f"out/loss/{i + 1}/loss_{k}": metrics[v] for k, v in names.items()}
        results |= {f"out/moved/{i + 1}/{k}": v for k, v in _moved(variables, state.nets).items()}
    for net, tree in state.nets.items():
        after = _entries({"batch_stats": tree.get("batch_stats", {})}, f"{net}.")
        results |= {f"out/after/{k}": v for k, v in after.items()}
    return results


def _moved(before, after):
    """L2 distances of groups of parameters: networks and their first modules."""
    squares = {}
    for net, tree in after.items():
        old = _entries({"params": before[net]["params"]}, f"{net}.")
        for key, value in _entries({"params": tree["params"]}, f"{net}.").items():
            square = float(((value - old[key]) ** 2).sum())
            for group in (net, ".".join(key.split(".")[:2])):
                squares[group] = squares.get(group, 0.0) + square
    return {group: square**0.5 for group, square in squares.items()}


# ---- degradations and evaluation


def degradations(case):
    """down-sampling, gamma and resizing of pictures: equal bytes"""
    image, results = case.arrays["in/image"], {}
    for name in case.under("out/"):
        operation, *values = name.split("/")
        if operation == "down":
            output = degrade.shrink(image, float(values[0]))
        elif operation == "down_resized":
            output = degrade.enlarge(degrade.shrink(image, float(values[0])), 256, 128)[::2, ::2]
        elif operation == "gamma":
            output = degrade.darken(image, *map(float, values))
        else:
            output = degrade.enlarge(image, 256, 128)[::2, ::2]
        results[f"out/{name}"] = output
    return results


def evaluation(case):
    """multi-shot and single-shot figures"""
    q, g = ([case.arrays[f"in/{side}_{k}"] for k in ("f", "id", "cam")] for side in ("query", "gallery"))

    def figures(ranked, mean):
        return np.array([*(ranked.cmc[min(r, len(ranked.cmc)) - 1] for r in (1, 5, 10, 20)), mean])

    def arrays(rows):
        return [x for pair in zip(q, [a[rows] for a in g], strict=True) for x in pair]

    ids = len(np.unique(g[1]))
    multi = ranking.rank(*arrays(slice(None)))
    once = protocols.single_shot(*arrays(slice(ids, 2 * ids)), trials=1)
    many = protocols.single_shot(*arrays(slice(ids, None)), trials=2000)
    return {
        "out/multi_shot": figures(multi, multi.mAP_trapezoid),
        "out/single_shot_one_per_id": figures(once, once.mAP),
        "out/single_shot_many_trials": Within(figures(many, many.mAP), 0.02),
    }
