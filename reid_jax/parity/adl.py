"""Runners of the cases `adl__*`: function name = case name; the docstring's first line is shown."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.eval import ranking
from reid_jax.eval import rerank as reranking
from reid_jax.fields import namespace
from reid_jax.losses import adversarial, identity
from reid_jax.losses import triplet as triplets
from reid_jax.methods import Info, adl, defaults
from reid_jax.methods.adl import labels, steps
from reid_jax.methods.adl import nets as modules
from reid_jax.models.backbones import resnet
from reid_jax.models.norms import aibn as norms
from reid_jax.parity import nets
from reid_jax.parity.compare import Partition, Within


def _config(**fields):
    """This library's config with fields of config.adl."""
    tree = defaults("adl")
    tree["adl"].update(fields)
    tree["loss"].update(triplet="euclidean", feature="before_bn")
    return namespace(tree)


def _filled(case, module, entries, *args):
    """Variables of a module for these arguments, from {our key in PyTorch's layout: array}."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    shapes = {k: v for k, v in shapes.items() if k in ("params", "batch_stats")}
    return nets.fill(shapes, entries, case.dtype, layout="torchvision")


def _renamed(entries, names):
    """{key: array} with the beginnings of keys that `names` translates; others are left out."""
    pairs = ((k, a, b) for k in entries for a, b in names.items() if k.startswith(f"{a}."))
    return {b + k[len(a) :]: entries[k] for k, a, b in pairs}


def _torch(params, names=None):
    """{PyTorch key: array} of params; names: {key of the case: ours}."""
    entries = nets.torch_entries({"params": params})
    return _renamed(entries, {b: a for a, b in names.items()}) if names else entries


# ---- backbone


def _both_modes(case, module, entries, alpha, x, upstream):
    """Of an eval pass and of a train pass after it: y, gradients of sum(y upstream) and statistics after."""
    variables = _filled(case, module, entries, x, False, *alpha)

    def loss(params, x, alpha, train):
        all_ = {**variables, "params": params}
        y, changed = module.apply(all_, x, train, *alpha, mutable=["batch_stats"])
        return (y * upstream).sum(), (y, changed)

    modes = {}
    descend = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    for mode in ("eval", "train"):
        (_, (y, changed)), (grads, grad_x, grad_a) = descend(variables["params"], x, alpha, mode == "train")
        grads = _torch(grads) | {"in/x": nets.channels_first(grad_x)}
        modes[mode] = nets.channels_first(y), grads | ({"adaptive_weight": grad_a[0]} if alpha else {})
    return modes, nets.torch_entries(changed)


def aibn(case):
    """AIBN layer: eval and train, mixing weights, running values, gradients"""
    x, upstream = (nets.channels_last(case.input(k)) for k in ("x", "upstream"))
    module = norms.AdaptiveNorm(momentum=case.config.momentum, epsilon=case.config.eps)
    results = {}
    for i, alpha in enumerate(case.input("alphas")):
        modes, after = _both_modes(case, module, case.weights(), (alpha[None],), x, upstream)
        for mode, (y, grads) in modes.items():
            results |= {f"out/{mode}.a{i}.y": y} | {f"grad/{mode}.a{i}/{k}": v for k, v in grads.items()}
        results |= {f"out/train.a{i}.{k}_after": v for k, v in after.items()}
    return results


def aibn_block(case):
    """bottleneck with AIBN: eval and train, one mixing weight, gradients"""
    m, x, upstream = case.config, *(nets.channels_last(case.input(k)) for k in ("x", "upstream"))
    entries = case.weights() | {"adaptive_weight": np.asarray(case.input("alpha")).reshape(1)}
    block = resnet.Bottleneck(m.planes, m.stride, norms=norms.Adaptive(), stage=4)
    modes, after = _both_modes(case, block, entries, (), x, upstream)
    results = {f"out/after/{k}": v for k, v in after.items()}
    for mode, (y, grads) in modes.items():
        results |= {f"out/{mode}.y": y} | {f"grad/{mode}/{k}": v for k, v in grads.items()}
    return results


def backbone(case):
    """ResNet with AIBN: pooled features, mirror mean, running statistics"""
    m, x = case.config, nets.channels_last(case.input("x"))
    trunk = resnet.ResNet(resnet.Bottleneck, tuple(m.layers), m.last_stride, norms=norms.Adaptive())
    net = modules.Pooled(trunk)
    alphas = {f"{k}.adaptive_weight": case.input(f"alpha/{k}") for k in case.under("in/alpha/")}
    entries = case.weights() | {k: np.asarray(v).reshape(1) for k, v in alphas.items()}
    variables = _filled(case, net, entries, x, False)
    run = jax.jit(lambda v, x: net.apply(v, x, False))
    pooled = run(variables, x)
    mean = (pooled + run(variables, x[:, :, ::-1])) / 2
    trained, changed = jax.jit(lambda v, x: net.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    results = {"pooled": pooled, "pooled_train": trained, "flip_mean": mean}
    results["flip_mean_normalised"] = mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
    for key, value in nets.torch_entries(changed).items():
        *module, leaf = key.split(".")
        results["_".join(["stem" if module == ["bn1"] else "_".join(module), leaf, "after"])] = value
    return nets.out(results)


def frifm(case):
    """FRIFM: output, masks, shares, gradients"""
    m, x, upstream = case.config, *(nets.channels_last(case.input(k)) for k in ("x", "upstream"))
    module = modules.Frifm(m.ratio, m.floor, m.fuse_floor)
    linear = ("channel1.", "channel2.", "squeeze.", "select.")
    entries = {
        k: v[:, :, 0, 0] if k.startswith(linear) and v.ndim == 4 else v for k, v in case.weights().items()
    }
    variables = _filled(case, module, entries, x)

    def loss(params, x):
        y, seen = module.apply({"params": params}, x, mutable=["intermediates"])
        return (y * upstream).sum(), (y, seen["intermediates"]["masks"][0])

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (y, masks)), (grads, grad_x) = descend(variables["params"], x)
    results = dict(zip(("channel_mask", "spatial_mask", "branch_weight"), masks, strict=True))
    results = nets.out(results | {"y": nets.channels_first(y)})
    grads = {k: v[..., None, None] if v.ndim == 2 else v for k, v in _torch(grads).items()}
    return results | {f"grad/{k}": v for k, v in grads.items()} | {"grad/in/x": nets.channels_first(grad_x)}


# ---- losses of the baseline


def intra_loss(case):
    """classifiers of cameras: logits, losses, running statistics, gradients"""
    m = case.config
    cameras, widest = len(m.classes), max(m.classes)
    f = jnp.stack([case.input(f"feature{i}") for i in range(cameras)], 1)
    pid = jnp.stack([case.input(f"label{i}") for i in range(cameras)], 1)
    heads = modules.CameraHeads(cameras, widest, mask=True)
    w = [case.weights(f"classifier.{i}.") for i in range(cameras)]

    def wide(key):
        return jnp.concatenate([jnp.asarray(x[key]) for x in w])

    kernel = [np.pad(x["1.weight"].T, ((0, 0), (0, widest - len(x["1.weight"])))) for x in w]
    params = {"neck": {"scale": wide("0.weight"), "bias": 0 * wide("0.weight")}, "kernel": jnp.stack(kernel)}
    stats = {"neck": {"mean": wide("0.running_mean"), "var": wide("0.running_var")}}
    used = {"used": jnp.array(m.classes)}

    def loss(params, f):
        variables = {"params": params, "batch_stats": stats, "classes": used}
        logits, changed = heads.apply(variables, f, True, mutable=["batch_stats"])
        return steps.intra_loss(logits, pid), (logits, changed["batch_stats"]["neck"])

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (logits, after)), (grads, grad_f) = descend(params, f)
    results = {"out/loss": value}
    for i, n in enumerate(m.classes):
        scores = logits[:, i]
        results |= {
            f"out/logits{i}": scores[:, :n],
            f"out/loss{i}": identity.cross_entropy(scores, pid[:, i]),
        }
        results[f"out/accuracy{i}"] = jnp.mean(scores.argmax(-1) == pid[:, i])
        for k in ("mean", "var"):
            results[f"out/running_{k}{i}"] = after[k].reshape(cameras, -1)[i]
        scale = grads["neck"]["scale"].reshape(cameras, -1)[i]
        results |= {f"grad/in/feature{i}": grad_f[:, i], f"grad/classifier.{i}.0.weight": scale}
        results[f"grad/classifier.{i}.1.weight"] = grads["kernel"][i, :, :n].T
    return results


def inter_loss(case):
    """joint classifier with triplet: losses, gradients"""
    m, f, pid = case.config, case.input("feature"), case.input("label")
    head, config = modules.JointHead(m.classes), _config(triplet=m.a)
    config.loss.margin = m.margin
    method = adl.Adl(config, Info(1, 1))
    names = {"classifier.0": "neck", "classifier.1": "classifier"}
    entries = _renamed(case.weights(), names)
    entries["neck.bias"] = np.zeros_like(entries["neck.weight"])
    variables = _filled(case, head, entries, f, False)

    def loss(params, f):
        all_ = {**variables, "params": params}
        logits, _ = head.apply(all_, f, True, mutable=["batch_stats", "classes"])
        value, *terms = method.inter_loss(logits, f, pid)
        return value, (*terms, jnp.mean(logits.argmax(-1) == pid))

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, terms), (grads, grad_f) = descend(variables["params"], f)
    metrics = zip(("cross_entropy", "triplet", "triplet_accuracy", "accuracy"), terms, strict=True)
    results = nets.out({"loss": value} | dict(metrics)) | {"grad/in/feature": grad_f}
    return results | {f"grad/{k}": v for k, v in _torch(grads, names).items()}


def triplet(case):
    """batch-hard triplet: losses, shares, gradients"""
    pid, results = case.input("label"), {}
    for i in range(sum(k.startswith("in/feature") for k in case.arrays)):
        margin = case.input(f"margin{i}")

        def hard(f, margin=margin):
            return triplets.batch_hard(f, pid, distance="euclidean", margin=margin)

        (value, aux), grad = jax.value_and_grad(hard, has_aux=True)(case.input(f"feature{i}"))
        results |= {f"out/loss{i}": value, f"out/precision{i}": aux["correct"], f"grad/in/feature{i}": grad}
    return results


def schedule(case):
    """weight of the classifiers' similarity; rates and counts of what is trained"""
    m = case.config
    config = _config(
        rounds=m.epochs,
        mix=m.mix_rate,
        mix_power=m.power,
        momentum=0.0,
        frifm_stages=(),
        adversarial_stages=(),
        intra=adl.FIELDS["intra"] | dict(lr=0.1 * m.lr, head_lr=m.lr),
    )
    config.model.norm, config.optim.weight_decay = "aibn", m.weight_decay
    config.data.height = config.data.width = 64
    method = adl.Adl(config, Info(1, 2))
    results = {"out/mix_rate": np.array([method.mix(e) for e in case.arrays["in/epoch"]])}
    init = jax.eval_shape(method.init, jax.random.key(0))
    body, head = jax.tree.leaves(init.nets["net"]["params"]), init.nets["heads"]["params"]
    trained = {"kernel": head["kernel"], "scale": head["neck"]["scale"]}  # the norm's bias is frozen
    results["out/body_tensors"] = len(body)
    results["out/head_tensors"] = method.cameras * len(trained)
    results["out/body_scalars"] = sum(x.size for x in body)
    results["out/mixing_weights"] = sum(x.size == 1 for x in body)
    for name, key in (("net", "body_lr"), ("heads", "head_lr")):
        tx, params = method.tx["intra"][name], {"base": jnp.ones(1, case.dtype)}
        move, _ = tx.update(params, tx.init(params), {"base": jnp.zeros(1, case.dtype)})
        results[f"out/{key}"] = -move["base"]
    return results


# ---- clustering and retrieval


def similarity(case):
    """similarity of images by every camera's classifier"""
    logits = [case.input(f"logits{i}") for i in range(len(case.config.classes))]
    scores = np.concatenate([jax.nn.softmax(x, -1) for x in logits], 1)
    return {"out/scores": scores, "out/jaccard": labels.similarity(scores)}


def rerank(case):
    """re-ranking of one set (IICS), float64 and as published in half precision"""
    distance, results = np.asarray(case.input("distance")), {}
    for i, settings in enumerate(case.config.settings):
        reranked = reranking.square(distance, form="iics", **settings)
        results |= {f"out/final{i}": reranked, f"out/final{i}_half": Within(reranked, 6e-3)}
    return results


def cluster(case):
    """clusters within cameras and over all: distances, labels by number and by threshold"""
    m, feature = case.config, np.asarray(case.input("feature"))
    camera, scores = case.arrays["in/camera"], np.asarray(case.input("scores"))
    shared = dict(k1=m.k1, k2=m.k2, lambda_value=m.lambda_value)

    def by(mode, stage, clusters):
        fields = adl.FIELDS[stage] | dict(clusters=clusters, quantile=getattr(m, f"quantile_{stage}"))
        return _config(mode=mode, **{stage: fields}, **shared).adl

    results = {}
    for key, mode in (("fixed", "original"), ("threshold", "threshold")):
        clusters = m.n_intra if mode == "original" else len(feature)
        intra = labels.intra(feature, camera, by(mode, "intra", clusters))
        for i in np.unique(camera):
            results[f"out/intra_{key}{i}"] = Partition(intra[camera == i])
        for name, weight in m.mix.items():
            clusters = m.n_inter if mode == "original" else len(feature)
            assigned = labels.inter(feature, scores, camera, weight, by(mode, "inter", clusters))
            results[f"out/inter_{key}_{name}"] = Partition(assigned)
    for i in np.unique(camera):
        distance = labels.cosine_distance(feature[camera == i])
        results[f"out/intra_rank_distance{i}"] = reranking.square(distance, **shared)
    for name, weight in m.mix.items():
        distance = labels.mixed_distance(feature, scores, camera, weight)
        results[f"out/inter_distance_{name}"] = distance
        results[f"out/inter_rank_distance_{name}"] = reranking.square(distance, **shared)
    few = feature[case.arrays["in/few_index"]]
    assigned = labels.intra(few, np.zeros(len(few), int), by("original", "intra", m.few["asked"]))
    return results | {"out/intra_few": Partition(assigned)}


def eval(case):
    """CMC and mAP from distances"""
    names = ("query_id", "gallery_id", "query_camera", "gallery_camera")
    ids = [case.arrays[f"in/{k}"] for k in names]
    ranked = ranking.rank_distances(np.asarray(case.input("distance")), *ids, max_rank=case.config.topk)
    return {"out/cmc": ranked.cmc, "out/mean_ap": ranked.mAP}


# ---- the game


def mutual_information(case):
    """omega, its exp and the JS estimate: values, gradients"""
    f, z, permutation = (case.input(k) for k in ("identity", "camera", "permutation"))
    critic = modules.Critic(case.config.hidden)
    params = _filled(case, critic, case.weights(), f, z)["params"]

    def logits(params, f, z):
        return (critic.apply({"params": params}, f, x) for x in (z, z[permutation]))

    def omega(params, f, z):
        return adversarial.omega(*logits(params, f, z))

    joint, marginal = logits(params, f, z)
    value = omega(params, f, z)
    results = {"joint_logit": joint, "marginal_logit": marginal, "omega": value, "js": adversarial.js(value)}
    results["exp_omega"] = adversarial.pull(value, "exp")
    half = adversarial.NO_DEPENDENCE / 2
    results["dim_positive"] = jax.nn.log_sigmoid(joint).mean() - half
    results["dim_negative"] = -jax.nn.log_sigmoid(-marginal).mean() + half
    results = nets.out(results)
    objectives = {
        "omega": lambda x: adversarial.pull(x, "linear"),
        "exp_omega": lambda x: adversarial.pull(x, "exp"),
        "exp_omega_50": lambda x: adversarial.pull(x, "exp", 50),
        "discriminator": lambda x: -x,
    }
    for name, of in objectives.items():
        grads, *inputs = jax.jit(jax.grad(lambda *a, of=of: of(omega(*a)), (0, 1, 2)))(params, f, z)
        grads = _torch(grads) | dict(zip(("in/identity", "in/camera"), inputs, strict=True))
        results |= {f"grad/{name}/{k}": v for k, v in grads.items()}
    return results


_ENCODER = {"0": "bn0", "1": "fc1", "2": "bn2", "4": "fc4", "5": "bn5"}
_CAMERA = {"0": "fc0", "1": "bn1", "3": "fc3"}
_CRITIC = {"0": "fc1", "2": "fc2", "4": "fc3"}


def _game(case, f, names, **fields):
    """(Adl with these fields, variables of E, H and D); names: {player: {start of a case's key: ours}}."""
    method = adl.Adl(_config(**fields), Info(1, case.config.cameras))
    args = {"encoder": (f, False), "camera": (f, False), "critic": (f, f)}
    weights = case.weights()
    variables = {n: _filled(case, method.modules[n], _renamed(weights, names[n]), *args[n]) for n in args}
    return method, variables


def _with_params(variables, params):
    return {n: {**v, "params": params[n]} for n, v in variables.items()}


def _game_grads(prefix, grads, grad_f, names):
    entries = {k: v for n in grads for k, v in _torch(grads[n], names[n]).items()}
    return {f"grad/{prefix}/{k}": v for k, v in entries.items()} | {f"grad/{prefix}/in/feature": grad_f}


def adl_modules(case):
    """E, H and D of the ADL code: outputs, losses, gradients"""
    m, f, camid = case.config, case.input("feature"), case.input("camera")
    names = {
        "encoder": {f"encoder.seq.{k}": v for k, v in _ENCODER.items()},
        "camera": {f"camera_head.{k}": v for k, v in _CAMERA.items()},
        "critic": {f"discriminator.discrimintor.{k}": v for k, v in _CRITIC.items()},
    }
    method, variables = _game(case, f, names)
    encoder, camera, critic = (method.modules[n] for n in adl.PLAYERS)

    def forward(params, f):
        all_ = _with_params(variables, params)
        z, _ = encoder.apply(all_["encoder"], f, True, mutable=["batch_stats"])
        other = z[case.input("permutation")]
        joint, marginal = (critic.apply(all_["critic"], f, x) for x in (z, other))
        logits, _ = camera.apply(all_["camera"], z, True, mutable=["batch_stats"])
        omega = adversarial.omega(joint, marginal)
        values = {"omega": omega, "camera_loss": identity.cross_entropy(logits, camid)}
        pull = adversarial.pull(omega, "exp", m.temperature)
        values["feature_loss"] = m.camera_weight * values["camera_loss"] + pull
        pairs = {"joint": joint, "marginal": marginal}
        probability = {f"{k}_probability": jax.nn.sigmoid(v) for k, v in pairs.items()}
        return values | {"discriminator_loss": -omega, "z_train": z} | probability

    params = {n: v["params"] for n, v in variables.items()}
    results = nets.out(jax.jit(forward)(params, f))
    results["out/z_eval"] = encoder.apply(variables["encoder"], f, False)
    for name in ("discriminator", "feature"):
        grads, grad_f = jax.jit(jax.grad(lambda *a, n=name: forward(*a)[f"{n}_loss"], (0, 1)))(params, f)
        results |= _game_grads(name, grads, grad_f, names)
    return results


def adl_objective(case):
    """the whole game: losses, gradients of all players, with every option"""
    m, f, camid = case.config, case.input("feature"), case.input("camera")
    names = {
        "encoder": {f"encoder.{k}": v for k, v in _ENCODER.items()},
        "camera": {f"camera_head.{k}": v for k, v in _CAMERA.items()},
        "critic": {f"critic.fc{i}": f"fc{i}" for i in (1, 2, 3)},
    }
    results = {}
    for tag in sorted({k.split("/")[1].rpartition(".")[0] for k in case.arrays if k.startswith("out/")}):
        fields = dict(zip(("encoder_input", "transform", "critic_input_norm"), tag.split("."), strict=True))
        fields |= dict(lam=m.adl_weight, lam_cam=m.camera_weight)
        method, variables = _game(case, f, names, **fields)
        params = {n: v["params"] for n, v in variables.items()}

        def loss(params, f, method=method, variables=variables):
            permutation = case.input("permutation")
            total, _, metrics, _ = method.game(_with_params(variables, params), f, camid, permutation)
            return total, metrics

        (total, metrics), (grads, grad_f) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, f)
        values = {"omega": metrics["omega"], "adl": metrics["adl"], "camera": metrics["cam_ce"]}
        values["total"] = total
        results |= {f"out/{tag}.{k}": v for k, v in values.items()}
        results |= _game_grads(tag, grads, grad_f, names)
    return results
