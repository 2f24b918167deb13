"""Runners of the cases `efl__*`: function name = case name; the docstring's first line is shown."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import methods
from reid_jax.data import clips
from reid_jax.errors import ConfigError
from reid_jax.eval import ranking
from reid_jax.fields import namespace
from reid_jax.losses import distill, identity, mutual_info
from reid_jax.losses import triplet as triplets
from reid_jax.methods import Info, _steps, efl
from reid_jax.models import club as club_net
from reid_jax.models import heads, pooling
from reid_jax.models.backbones import ap3d, resnest
from reid_jax.parity import nets
from reid_jax.parity.nets import net_results, net_variables, out

# ---- losses


def value_and_grads(name, function, inputs, **keys):
    """{out/NAME, grad/NAME/KEY}: a scalar function of inputs and its gradient by each of `keys`.

    keys: argument name -> recorded key of its gradient.
    """

    def call(chosen):
        return function(**{**inputs, **chosen})

    value, grads = jax.jit(jax.value_and_grad(call))({k: inputs[k] for k in keys})
    return {f"out/{name}": value} | {f"grad/{name}/{keys[k]}": g for k, g in grads.items()}


def club(case):
    """CLUB: q's outputs, exact and sampled bound, learning loss, gradients"""
    x, y = case.input("x"), case.input("y")
    net = club_net.Club(hidden_size=case.config.hidden_size)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, y))
    params = nets.fill(shapes, case.weights(), case.dtype)["params"]
    mu, logvar = net.apply({"params": params}, x)
    results = {"out/mu": mu, "out/logvar": logvar}
    forms = {
        "mi": mutual_info.club_exact,
        "learning_loss": mutual_info.club_nll,
        "mi_sampled": lambda mu, logvar, y: mutual_info.club_sampled(mu, logvar, y, case.input("perm")),
    }
    for name, form in forms.items():

        def loss(params, x, y, form=form):
            return form(*net.apply({"params": params}, x), y)

        value, (grads, grad_x, grad_y) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, x, y)
        results |= {f"out/{name}": value, f"grad/{name}/in/x": grad_x, f"grad/{name}/in/y": grad_y}
        results |= {f"grad/{name}/{k}": v for k, v in nets.torch_entries({"params": grads}).items()}
    return results


def mmt_losses(case):
    """MMT: cross entropy, KL, softmax triplets, gradients"""
    labels, e = case.input("labels"), case.config.smooth_epsilon
    logits = {"logits": case.input("logits"), "teacher": case.input("teacher_logits")}
    emb = {"emb": case.input("emb"), "teacher": case.input("teacher_emb")}

    def smooth(logits, teacher):
        return identity.cross_entropy(logits, labels, label_smooth=e)

    def plain(logits, teacher):
        return identity.cross_entropy(logits, labels)

    def hard(emb, teacher):
        return triplets.batch_hard(emb, labels, distance="softmax", margin=0.0)[0]

    by_logits = {
        "ce_smooth": smooth,
        "ce_plain": plain,
        "soft_ce": lambda logits, teacher: distill.soft_cross_entropy(teacher, logits),
        "kl": lambda logits, teacher: distill.kl(teacher, logits),
    }
    by_emb = {
        "tri_softmax_hard": hard,
        "tri_softmax_soft": lambda emb, teacher: triplets.softmax_soft(emb, teacher, labels),
    }
    results = {}
    for name, function in by_logits.items():
        results |= value_and_grads(name, function, logits, logits="in/logits")
    for name, function in by_emb.items():
        results |= value_and_grads(name, function, emb, emb="in/emb")
    return results


def triplet(case):
    """batch-hard triplets on identities and cameras: Euclidean, cosine, normalised; gradients"""
    emb, m, results = case.input("emb"), case.config, {}
    for target in ("id", "cam"):
        labels = case.input(f"labels_{target}")

        def hard(emb, distance, margin, labels=labels):
            return triplets.batch_hard(emb, labels, distance=distance, margin=margin)

        def normalized(emb, hard=hard):
            return hard(emb / jnp.linalg.norm(emb, axis=1, keepdims=True), "euclidean", m.normalized_margin)

        forms = {
            "euclidean": lambda emb, hard=hard: hard(emb, "euclidean", m.margin),
            "cosine": lambda emb, hard=hard: hard(emb, "cosine", m.margin),
            "normalized": normalized,
        }
        for name, form in forms.items():
            loss = value_and_grads(
                f"{name}_{target}", lambda emb, f=form: f(emb)[0], {"emb": emb}, emb="in/emb"
            )
            results |= loss
        results[f"out/normalized_prec_{target}"] = normalized(emb)[1]["correct"]
    return results


def ema(case):
    """moving average of a teacher at several steps"""
    student, mean = case.weights("student."), case.weights("mean.")
    trained = [k for k in mean if "running" not in k and not k.endswith("num_batches_tracked")]
    results = {}
    for step in case.config.steps:
        decay = _steps.ema_decay(jnp.int32(step), case.config.alpha, True)
        new = _steps.ema({k: jnp.asarray(mean[k]) for k in trained}, {k: student[k] for k in trained}, decay)
        results |= {f"out/step{step}/{k}": v for k, v in (mean | new).items()}
    return results


# ---- retrieval and clips


def retrieval(case):
    """CMC, mAP, kinds of first hits, distances"""
    q, g = (np.asarray(case.input(f"{side}_feat")) for side in "qg")
    labels = [case.arrays[f"in/{k}"] for k in ("q_pid", "g_pid", "q_cam", "g_cam")]
    ranked = ranking.rank(q, g, *labels, max_rank=len(g))
    kinds = np.array([ranked.breakdown[k] for k in ("same_id", "other_id_same_cam", "other_id_other_cam")])
    return {
        "out/dist": _all_distances(q, g),
        "out/cmc": ranked.cmc,
        "out/map": ranked.mAP,
        "out/top1_index": np.where(ranked.valid, ranked.top_index[:, 0], -1),
        "out/top1_percent": kinds,
        "out/top1_count": np.rint(kinds * ranked.valid.sum() / 100).astype(int),
        "out/prop": ranked.breakdown["prop"],
    }


def _all_distances(q, g):
    """Minus the cosine similarity [Q,G], read off top lists that leave nothing out."""
    labels = (np.zeros(len(q), int), np.zeros(len(g), int), np.zeros(len(q), int), np.ones(len(g), int))
    ranked = ranking.rank(q, g, *labels, topk=len(g))
    distance = np.empty((len(q), len(g)))
    np.put_along_axis(distance, ranked.top_index.astype(int), -ranked.top_score, 1)
    return distance


def begin_crop(case):
    """frames of the quick test clip"""
    lengths = case.input("lengths").tolist()
    return {f"out/index_{n}": clips.begin_crop(n, case.config.size) for n in lengths}


# ---- layers


def splat(case):
    """split attention: output, running statistics, gradients"""
    m = case.config
    _only(m, kernel=3, padding=1)
    module = resnest.SplitAttention(m.channels, m.radix, m.groups)
    return nets.module_results(case, module, case.train)


def apm(case):
    """appearance-preserving module: output, gradients"""
    m = case.config
    module = ap3d.AppearancePreserving(m.time_dim, m.temperature, m.contrastive_att)

    def joined(y):  # [B,T,time,H,W,C] -> [B,T time,H,W,C]
        return y.reshape(y.shape[0], -1, *y.shape[3:])

    return nets.module_results(case, module, joined=joined)


def app3dc(case):
    """appearance-preserving 3D convolution: output, gradients"""
    m = case.config
    contrastive = getattr(m, "contrastive_att", True)
    module = ap3d.App3dConv(m.out_channels, m.stride, m.time_dim, m.temperature, contrastive)
    return nets.module_results(case, module)


def nonlocal3d(case):
    """non-local block: output, gradients"""
    m = case.config
    return nets.module_results(case, ap3d.NonLocal(m.sub_sample, m.inter_channels), case.train)


def _only(config, **supported):
    """Raises ConfigError when a field of the case has a value that this library does not offer."""
    for field, value in supported.items():
        if getattr(config, field, value) != value:
            raise ConfigError(f"{field} {getattr(config, field)!r} is not supported, only {value!r}")


# ---- backbones


def resnet50_mmt(case):
    """ResNet50, MMT's form: stages, pooled, feature or logits, running statistics"""
    m = case.config
    fields = dict(last_stride=m.last_stride, stem_relu=m.stem_relu, pool=m.pool)
    net = nets.build(m.num_classes, m.num_features, neck="bnneck", **fields)
    image = nets.channels_last(case.input("image"))
    variables = net_variables(case, net, image)
    results = net_results(net, variables, image, case.train, "mmt")
    return out(results | {"feature": results["unit"]})


resnet50_mmt_train = resnet50_mmt


def resnet50_plain(case):
    """ResNet50, plain ReID form: stages, pooled"""
    m = case.config
    fields = dict(last_stride=m.last_stride, stem_relu=m.stem_relu, pool=m.pool)
    net = nets.build(1, neck="none", **fields)
    image = nets.channels_last(case.input("image"))
    entries = {k: v for k, v in case.weights().items() if not k.startswith("classifier.")}  # not recorded
    return out(net_results(net, net_variables(case, net, image, entries), image, case.train))


def resnest50(case):
    """ResNeSt50: stages, pooled, logits"""
    m = case.config
    _only(m, avg_down=True, avd=True, avd_first=False)
    if m.dilation not in (1, 2):
        raise ConfigError(
            f"dilation {m.dilation}: only 1 (last stride 2) and 2 (last stride 1) are supported"
        )
    fields = dict(radix=m.radix, cardinality=m.groups, width=m.bottleneck_width, stem_width=m.stem_width)
    trunk = resnest.ResNeSt(3 - m.dilation, **fields)
    net = heads.ReIDNet(trunk, heads.GlobalHead(m.num_classes, neck="none"))
    image = nets.channels_last(case.input("image"))
    entries = {
        k.replace("fc.", "classifier.") if k.startswith("fc.") else k: v for k, v in case.weights().items()
    }
    variables = net_variables(case, net, image, entries, optional=())
    return out(net_results(net, variables, image, case.train))


resnest50_s1 = resnest50


def c2d_resnet50(case):
    """ResNet50 on clips, AP3D's code: stages, frames, feature, training mode"""
    m = case.config
    trunk = ap3d.Ap3dResNet50(
        m.last_stride,
        temporal=tuple(map(tuple, m.c3d_idx)),
        non_local=tuple(map(tuple, m.nl_idx)),
        temperature=m.temperature,
        contrastive=m.contrastive_att,
    )
    net = heads.ReIDNet(trunk, heads.GlobalHead(m.num_classes, pooling.Maximum()))
    clip = nets.channels_last(case.input("clip"))
    variables = net_variables(case, net, clip)
    trained = net_results(net, variables, clip, True, "ap3d")
    results = trained if case.train else net_results(net, variables, clip, False)
    after = {k: v for k, v in trained.items() if k.startswith("after/")}
    return out(results | after | {f"train_{k}": v for k, v in trained.items()})


ap3dnl_resnet50 = c2d_resnet50


# ---- whole training steps


LOSSES = ("ce", "triplet", "kl", "loss_id", "mi", "cam_ce", "cam_triplet")


def train_step_a(case):
    """whole EFL iterations: losses, first gradients, all states of six networks"""
    m, method = case.config, step_method(case.config)
    state = start_state(case, method)
    begin = {n: step_entries(v) for n, v in state.nets.items()}
    results = first_gradients(case, state, method)
    step = jax.jit(method.update)
    for i in range(m.iterations):
        state, metrics = step(state, step_views(case, i), case.input("pid"), case.input("camid"))
        results[f"out/loss_{i}"] = np.array([metrics[n] for n in LOSSES])
        results[f"out/mie_{i}"] = metrics["mie"]
        for net, variables in state.nets.items():
            for key, value in step_entries(variables).items():
                results[f"out/after{i}/{net}.{key}"] = value
                results[f"out/delta{i}/{net}.{key}"] = value - begin[net][key]
    return results


train_step_b = train_step_a


def step_config(m):
    """This library's config of a case's."""
    tree = methods.defaults("efl")
    tree["model"].update(neck="ap3d" if m.neck_bias_trained else "bnneck")
    tree["loss"].update(feature=m.feature, triplet=m.triplet, margin=m.margin, label_smooth=m.label_smooth)
    tree["optim"].update(lr=m.lr, weight_decay=m.weight_decay, eps=m.adam_eps, milestones=())
    tree["efl"].update(lambda_kl=m.lambda_kl, lambda_mi=m.lambda_mi, alpha=m.alpha, ema_ramp=m.ema_ramp)
    tree["efl"].update(n_mi=m.n_mi, mi_lr=m.mi_lr, mi_weight_decay=m.weight_decay, mi_hidden=m.hidden_size)
    return namespace(tree)


def step_method(m):
    """EFL over the tiny trunk."""
    method = efl.Efl(step_config(m), Info(m.classes, m.cameras, 1000, 1000))

    def encoder(classes):
        head = heads.GlobalHead(classes, neck=method.config.model.neck)
        return heads.encoder(heads.ReIDNet(nets.TinyTrunk(m.width, m.dim), head))

    method.encoder, method.camera = encoder(m.classes), encoder(m.cameras)
    method.q = club_net.Club(hidden_size=m.hidden_size)
    return method


def start_state(case, method):
    """State with the recorded weights of all six networks."""
    image = jnp.asarray(step_views(case, 0)["phi1"][:1])
    method.blank = lambda: image
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    nets_ = {}
    for name, net in shapes.nets.items():
        entries = case.weights(f"{name}.")
        if name != "q" and "bn.bias" not in entries:  # frozen at 0
            entries["bn.bias"] = np.zeros_like(entries["bn.weight"])
        nets_[name] = nets.fill(net, {_to_ours(k): v for k, v in entries.items()}, case.dtype)
    return method.fresh(jax.tree.map(jnp.asarray, nets_), method.tx)


def _to_ours(key):
    return key.replace("bn.", "neck.", 1) if key.startswith("bn.") else key


def step_entries(variables):
    """{the case's key: array} of one network."""
    entries = nets.torch_entries(variables)
    return {k.replace("neck.", "bn.", 1) if k.startswith("neck.") else k: v for k, v in entries.items()}


def step_views(case, i):
    return {f"phi{v}": nets.channels_last(case.input(f"x{v}_{i}")) for v in (1, 2)}


def first_gradients(case, state, method):
    """Gradients of iteration 0, without weight decay; q's those of its first inner step."""
    views, pid, camid = step_views(case, 0), case.input("pid"), case.input("camid")

    def gradients(nets_):
        f_cam, cam_grads, _, _ = method.camera_gradient(nets_, views["phi1"], camid)
        fixed = {
            "teacher_logits": method.teacher_logits(nets_, views)[0],
            "f_cam": f_cam,
            "q": nets_["q"]["params"],
            "lambda_mi": method.config.efl.lambda_mi,
            "key": jax.random.key(0),
        }
        grads, _, features, _ = method.student_gradients(nets_, fixed, views, pid, cam_grads)
        q_grad = jax.grad(method.estimator_loss)(nets_["q"]["params"], features, f_cam)
        return grads | cam_grads | {"q": q_grad}

    return {
        f"grad/{net}.{key}": value
        for net, grad in jax.jit(gradients)(state.nets).items()
        for key, value in step_entries({"params": grad}).items()
    }
