"""Runners of the cases `dsanet__*`: function name = case name; the docstring's first line is shown."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.data import clips
from reid_jax.fields import namespace
from reid_jax.losses import disentangle, identity, triplet
from reid_jax.methods import Info, defaults, dsanet
from reid_jax.methods.dsanet import nets as modules
from reid_jax.models.backbones import resnet
from reid_jax.parity import nets


def frames_last(x):
    """Frame features N C T -> N T C and back."""
    return jnp.swapaxes(x, 1, 2)


# ---- modules


def _module(case, module, x, *args):
    """(variables, apply function of params and x) of a module with the case's weights."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, *args))
    entries = {k: v[:, :, 0] if v.ndim == 3 else v for k, v in case.weights().items()}  # 1-D convolutions
    variables = nets.fill(shapes, entries, case.dtype)
    return variables, lambda params, x: module.apply({**variables, "params": params}, x, *args)


def _grads(prefix, grads):
    return {f"grad/{prefix}{k}": v for k, v in nets.torch_entries({"params": grads}).items()}


def cel(case):
    """channel expansion: F_cam, f_cam in both poolings, gradients"""
    x, probe = nets.channels_last(case.input("X")), case.input("probe")
    features, results = probe.shape[1], {}
    for pool, name in (("max_mean", "f_cam_spatial_max_time_mean"), ("max", "f_cam")):
        module = modules.ChannelExpansion(features, pool=pool)
        variables, apply = _module(case, module, x, False)
        maps, results[f"out/{name}"] = apply(variables["params"], x)
    results["out/F_cam"] = nets.channels_first(maps)

    def loss(params, x):
        return (apply(params, x)[1] * probe).sum()

    grads, grad_x = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], x)
    return results | _grads("", grads) | {"grad/in/X": nets.channels_first(grad_x)}


def tlm(case):
    """target localisation: attention maps, features, gradients"""
    x, probe = nets.channels_last(case.input("F_ID")), nets.channels_last(case.input("probe"))
    variables, apply = _module(case, modules.Localisation(), x)

    def loss(params, x):
        out = apply(params, x)
        return (out["F_t"] * probe).sum(), out

    (_, out), (grads, grad_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        variables["params"], x
    )
    results = _grads("", grads) | {"grad/in/F_ID": nets.channels_first(grad_x)}
    return results | {f"out/{k}": v for k, v in _torch_axes(out).items()}


def _torch_axes(out):
    """Outputs of the network in the reference's axes."""
    frames = {k: frames_last(out[k]) for k in ("f_t", "f_tL", "f_tR") if k in out}
    maps = {k: nets.channels_first(out[k]) for k in ("F_ID", "F_t", "F_cam") if k in out}
    return {**out, **frames, **maps}


def fwg(case):
    """frame weights, pseudo labels and their loss; two sets of gradients"""
    f_t, probe, pid = frames_last(case.input("f_t")), case.input("probe"), case.input("pid")
    variables, apply = _module(case, modules.FrameWeights(), f_t)
    frame_ce = dsanet.frame_losses(case.input("frame_logits"), pid)
    d, w = modules.weights_of(frame_ce)
    out = apply(variables["params"], f_t)
    results = {f"out/{k}": v for k, v in out.items()}
    results |= {"out/frame_ce": frame_ce, "out/d": d, "out/w": w}
    results["out/softmax_of_minus_ce"] = jax.nn.softmax(-frame_ce, 1)

    def loss_w(params, f_t):
        return jnp.square(w - apply(params, f_t)["w_hat"]).mean()

    def probed(params, f_t):
        return (apply(params, f_t)["f_id"] * probe).sum()

    results["out/loss_w"] = loss_w(variables["params"], f_t)
    for name, function in (("loss_w", loss_w), ("probe", probed)):
        grads, grad_f = jax.jit(jax.grad(function, (0, 1)))(variables["params"], f_t)
        results |= _grads(f"{name}/", grads) | {f"grad/{name}/in/f_t": frames_last(grad_f)}
    return results


def sao(case):
    """switching and aggregation: features, loss, gradients"""
    perm, pid = case.input("perm"), case.input("pid")
    weight = jnp.asarray(case.weights()["cls.weight"])

    def loss(f_id, f_cam, weight):
        f_aug = modules.switch(f_id, f_cam, perm)
        return identity.cross_entropy(f_aug @ weight.T, pid), f_aug

    inputs = case.input("f_id"), case.input("f_cam"), weight
    (value, f_aug), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    results = {"out/f_aug": f_aug, "out/loss": value}
    return results | dict(zip(("grad/in/f_id", "grad/in/f_cam", "grad/cls.weight"), grads, strict=True))


def losses(case):
    """disentangling, intra-class and triplet losses, gradients"""
    f_id, f_cam, pid = case.input("f_id"), case.input("f_cam"), case.input("pid")
    results = {"out/dis_rows": disentangle.cosine_hinge(f_id, f_cam)}

    def hard(distance):
        return lambda f: triplet.batch_hard(f, pid, distance=distance, margin=case.config.margin)[0]

    forms = {
        "dis": lambda f: disentangle.cosine_hinge(f, f_cam).mean(),
        "ic_mean": lambda f: disentangle.intra_class(f, pid, reduce="mean"),
        "ic_sum": lambda f: disentangle.intra_class(f, pid, reduce="sum"),
        "tri_euclidean": hard("euclidean"),
        "tri_cosine": hard("cosine"),
    }
    for name, form in forms.items():
        results[f"out/{name}"], results[f"grad/{name}/in/f_id"] = jax.jit(jax.value_and_grad(form))(f_id)
    by_cam = jax.jit(jax.grad(lambda f: disentangle.cosine_hinge(f_id, f).mean()))(f_cam)
    return results | {"grad/dis/in/f_cam": by_cam}


def sampling(case):
    """restricted random sampling and test clips"""
    results = {}
    for length, frames in case.input("pairs").tolist():
        key = f"{length}_{frames}"
        chunks = clips.rrs_chunks(length, frames)
        u = np.asarray(case.input(f"u_{key}"))
        results[f"out/chunks_{key}"] = chunks
        results[f"out/train_{key}"] = clips.rrs(length, frames, u)
        results[f"out/test_{key}"] = chunks[:, 0]
        for layout in ("interleaved", "consecutive"):
            results[f"out/{layout}_{key}"] = getattr(clips, layout)(length, frames)
    return results


# ---- networks


def _config(m):
    """This library's config of a case's."""
    tree = defaults("dsanet")
    tree["loss"].update(triplet="euclidean", feature="before_bn", margin=getattr(m, "margin", 0.3))
    fields = {k: getattr(m, k) for k in ("lam", "lam_cam", "lam_frame") if hasattr(m, k)}
    tree["dsanet"].update(fields)
    return namespace(tree)


def _method(m):
    """(DsaNet, its network with the case's trunk)."""
    method = dsanet.DsaNet(_config(m), Info(m.n_id, m.n_cam))
    trunk = resnet.ResNet(resnet.Bottleneck, tuple(m.blocks), width=m.width)
    return method, method.network.clone(base=trunk)


def _variables(case, net, clip):
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), clip, False))
    entries = {_to_ours(k): v[:, :, 0] if v.ndim == 3 else v for k, v in case.weights().items()}
    return nets.fill(shapes, entries, case.dtype, layout="torchvision")


def _to_ours(key):
    return re.sub(r"^backbone\.", "", key)


def _to_theirs(entries):
    """Our keys -> the reference's, which calls the trunk backbone."""
    trunk = r"(conv1|bn1|layer\d)\."
    return {f"backbone.{k}" if re.match(trunk, k) else k: v for k, v in entries.items()}


LOSSES = {  # the reference's names
    "total": "loss",
    "id": "ce",
    "tri": "triplet",
    "dis": "disentangle",
    "ic": "intra_class",
    "cam": "cam_ce",
    "lr": "ce_sides",
    "aug": "ce_switched",
    "frame": "ce_frames",
    "w": "frame_weights",
}


def _all_cross_entropies(values, d):
    """The reference's sum of the cross entropies of clips and halves; d: config.dsanet."""
    sides = d.lam * (values["ce_sides"] + values["ce_switched"])
    return values["ce"] + sides + d.lam_cam * values["cam_ce"]


def net_train(case):
    """narrow network in training: features, all losses, all gradients, running statistics"""
    (method, net), clip = _method(case.config), nets.channels_last(case.input("clip"))
    pid, camid, perm = (case.input(k) for k in ("pid", "cam", "perm"))
    variables = _variables(case, net, clip)

    def loss(params, clip):
        all_ = {**variables, "params": params}
        out, changed = net.apply(all_, clip, True, perm, mutable=["batch_stats"])
        values = method.losses(out, pid, camid)
        return values["loss"], (out, values, changed)

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (out, values, changed)), (grads, grad_clip) = descend(variables["params"], clip)
    frame_ce = dsanet.frame_losses(out["logits_frame"], pid)
    results = {f"out/{k}": v for k, v in _torch_axes(out).items()}
    results |= {"out/frame_ce": frame_ce, "out/w": modules.weights_of(frame_ce)[1]}
    results |= {f"out/loss/{k}": values[name] for k, name in LOSSES.items()}
    results["out/loss/ce"] = _all_cross_entropies(values, method.config.dsanet)
    results |= {f"out/map_mean/{k}": out[k].mean(-1) for k in ("F_ID", "F_cam", "F_t")}
    results |= {f"out/state/{k}": v for k, v in _to_theirs(nets.torch_entries(changed)).items()}
    results |= {f"grad/{k}": v for k, v in _to_theirs(nets.torch_entries({"params": grads})).items()}
    return results | {"grad/in/clip_frame_mean": nets.channels_first(grad_clip).mean((-2, -1))}


def net_eval(case):
    """narrow network on a whole tracklet: clip features, mean, test feature"""
    m = case.config
    _, net = _method(m)
    sequence = jnp.moveaxis(case.input("sequence"), 0, -1)  # C T H W -> T H W C
    variables = _variables(case, net, sequence[None, : m.clip])
    run = jax.jit(lambda clip: net.apply(variables, clip, False))
    results = {}
    for layout in ("interleaved", "consecutive"):
        index = getattr(clips, layout)(len(sequence), m.clip)
        out = run(sequence[index])
        f_id = {"clip_f_id": out["f_id"], "f_id": out["f_id"].mean(0), "f_test": out["f_test"].mean(0)}
        results |= {f"out/{layout}/{k}": v for k, v in f_id.items()} | {f"out/{layout}/clip_index": index}
    return results


def net_full_eval(case):
    """full ResNet-50 width: attention, features"""
    (_, net), clip = _method(case.config), nets.channels_last(case.input("clip"))
    out = jax.jit(lambda v, clip: net.apply(v, clip, False))(_variables(case, net, clip), clip)
    return {f"out/{k}": v for k, v in _torch_axes(out).items()}


def param_counts(case):
    """numbers of parameters at full size, part by part"""
    results = {}
    for name, (num_pids, num_cams) in case.meta["config"].items():
        m = SimpleNamespace(width=64, blocks=(3, 4, 6, 3), n_id=num_pids, n_cam=num_cams)
        _, net = _method(m)
        clip = jax.ShapeDtypeStruct((1, 2, 64, 64, 3), jnp.float32)
        params = jax.eval_shape(lambda c, net=net: net.init(jax.random.key(0), c, False), clip)["params"]
        counts = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
        named = {"backbone": counts["base"], "cam_classifier": counts["cls_cam"]}
        named |= {k: counts[k] for k in ("cel", "tlm", "fwg")}
        named["necks"] = sum(n for k, n in counts.items() if k.startswith("neck_"))
        named["id_classifiers"] = sum(counts[f"cls_{k}"] for k in ("id", "lr", "frame"))
        named["total"] = sum(counts.values())
        results |= {f"out/{name}/{k}": np.array(v) for k, v in named.items()}
    return results
