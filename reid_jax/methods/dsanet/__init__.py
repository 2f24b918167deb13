"""DSANet: video ReID by disentangling, switching and aggregation (Kim, Cho, Lee, WACV 2023).

One network (`nets.py`) with an identity and a camera feature. `losses` is the paper's section 3, module by
module; what a row of its Table 2 leaves out is not built:

    config.dsanet     builds                              loss terms
    disentangle       CEL, camera head                    lambda_dis L_dis, lambda_cam L_cam, lambda_ic L_ic
                                                          (if intra_class)
    tlm (+ loss_lr)   attention (+ left/right head)       lambda L_lr
    fwg (+ loss_w)    frame weights (+ frame head)        lambda L_w, lambda_frame L_frame
    sao               nothing                             lambda L_aug
    always            trunk, identity head                L_id, L_tri
"""

import jax
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.losses import disentangle, identity, triplet
from reid_jax.methods import Method, State, parts
from reid_jax.methods.dsanet import nets
from reid_jax.models import heads

TITLE = "DSANet"
METRICS = {
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "cam_ce": "Camera cross entropy",
    "disentangle": "Cosine of identity and camera",
    "intra_class": "Spread within identities",
    "ce_sides": "Left and right cross entropy",
    "ce_switched": "Switched cross entropy",
    "ce_frames": "Frame cross entropy",
    "frame_weights": "Error of the frame weights",
}
LOOK = {"F_ID": "identity map", "F_t": "identity map after localisation", "F_cam": "camera map"}
LOGGED = {  # loss -> its name in metrics.jsonl
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


def build(config, info):
    """The network of config.model and config.dsanet."""
    d = config.dsanet
    if (d.sao or d.intra_class) and not d.disentangle:
        raise ConfigError("config.dsanet.sao and intra_class need config.dsanet.disentangle")
    return nets.DsaNet(
        heads.trunk(config.model, info.axis_name),
        info.num_pids,
        info.num_cams,
        disentangle=d.disentangle,
        tlm=d.tlm,
        sides=d.loss_lr,
        fwg=d.fwg,
        frames=d.loss_w,
        tlm_softmax=choice("dsanet.tlm_softmax", d.tlm_softmax, ("region", "width")),
        fwg_std=d.fwg_std,
        cel_norm=d.cel_norm,
        cel_pool=choice("dsanet.cel_pool", d.cel_pool, ("max", "max_mean")),
        neck=d.neck,
        average_sides=d.lr_average,
        axis_name=info.axis_name,
    )


def losses(out, pid, camid, *, config, axis_name=None):
    """Every loss of the outputs of `nets.DsaNet`: {name: f[]}, "total" among them.

    pid, camid: i32[N]. Means over the device's clips; L_tri and L_ic are of the global batch.
    """
    d, loss = config.dsanet, config.loss

    def ce(logits, labels):
        return identity.cross_entropy(logits, labels, label_smooth=loss.label_smooth)

    feature = out["f_id"] if loss.feature == "before_bn" else out["f_test"]
    tri, _ = triplet.batch_hard(feature, pid, distance=loss.triplet, margin=loss.margin, axis_name=axis_name)
    found = {"id": ce(out["logits_id"], pid), "tri": tri}
    total_ce = found["id"]
    if "logits_aug" in out:
        found["aug"] = ce(out["logits_aug"], pid)
        total_ce += d.lam * found["aug"]
    if "logits_lr" in out:
        left, right = jnp.split(out["logits_lr"], 2)
        rows = jnp.repeat(pid, len(left) // len(pid))
        found["lr"] = ce(left, rows) + ce(right, rows)
        total_ce += d.lam * found["lr"]
    if "f_cam" in out:
        found["cam"] = ce(out["logits_cam"], camid)
        total_ce += d.lam_cam * found["cam"]
    found["ce"] = total_ce
    total = total_ce + tri
    if "f_cam" in out:
        found["dis"] = disentangle.cosine_hinge(out["f_id"], out["f_cam"]).mean()
        total += d.lam_dis * found["dis"]
        if d.intra_class:
            found["ic"] = disentangle.intra_class(out["f_id"], pid, reduce=d.ic_reduce, axis_name=axis_name)
            total += d.lam_ic * found["ic"]
    if "logits_frame" in out:
        frame_ce = frame_losses(out["logits_frame"], pid)
        w = jax.lax.stop_gradient(nets.weights_of(frame_ce)[1])
        found |= {"frame": frame_ce.mean(), "w": jnp.square(w - out["w_hat"]).mean()}
        total += d.lam * found["w"] + d.lam_frame * found["frame"]
    return found | {"total": total}


def frame_losses(logits, pid):
    """Cross entropy of every frame with its clip's identity: logits f[N,T,K] -> f[N,T]."""
    logits = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logits, pid[:, None, None], 2)[:, :, 0]


def permutation(config, step, size):
    """The random partners of SAO, the same on every device: i32[size]."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return jax.random.permutation(key, size)


def stages(config, info):
    """The single stage "train"; see reid_jax.methods for the contract."""
    net = build(config, info)
    tx = parts.adam(config.optim, info)
    lr = parts.schedule(config.optim, info, config.optim.lr)

    def init(key, batch):
        variables = dict(net.init(key, parts.view(config, batch, 0)[:1], False))
        return State(jnp.int32(0), {"net": variables}, {"net": tx.init(variables["params"])})

    def step(state, batch):
        variables, clip = state.nets["net"], parts.view(config, batch, 0)
        pid, camid = batch["pid"], batch["camid"]
        devices = 1 if info.axis_name is None else jax.lax.axis_size(info.axis_name)
        partners = permutation(config, state.step, len(pid) * devices) if config.dsanet.sao else None

        def loss(params):
            all_ = {"params": params, "batch_stats": variables["batch_stats"]}
            options = dict(detach_cam=config.dsanet.detach_cam, mutable=["batch_stats"])
            out, changed = net.apply(all_, clip, True, partners, **options)
            found = losses(out, pid, camid, config=config, axis_name=info.axis_name)
            metrics = {name: found[key] for key, name in LOGGED.items() if key in found}
            metrics["accuracy"] = jnp.mean(out["logits_id"].argmax(-1) == pid)
            return found["total"], (changed["batch_stats"], metrics)

        (_, (stats, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        grad, stats, metrics = parts.pmean((grad, stats, metrics), info.axis_name)
        params, opt = parts.apply_gradient(tx, grad, state.opt["net"], variables["params"])
        new = {"net": {"params": params, "batch_stats": stats}}
        return State(state.step + 1, new, {"net": opt}), {**metrics, "lr": lr(state.step)}

    def apply(state, clip):
        return net.apply(state.nets["net"], parts.plain(config, clip), False)

    def embed(state, clip, name):
        return apply(state, clip)["f_cam" if name == "camera" else "f_test"]

    def look(state, clip):
        """Heat maps, the sum of squares over channels, and the frames' weights."""
        out = apply(state, clip)
        maps = {n: jnp.square(out[n]).sum(-1) for n in ("F_ID", "F_t", "F_cam") if n in out}
        if not config.dsanet.tlm:
            del maps["F_t"]
        even = jnp.full(clip.shape[:2], 1 / clip.shape[1])
        return {f"map/{n}": m for n, m in maps.items()} | {"weight": out.get("w_hat", even)}

    def embed_frames(state, clip, name):
        """One vector a clip, whose frames are weighted; the neck is affine, so the mean may follow it."""
        return embed(state, clip, name)[:, None]

    def embed_pooled(state, mean, name):
        return mean

    def warm_start(state, load):
        return state._replace(nets={"net": load("net", state.nets["net"])})

    whole = dict(embed_frames=embed_frames, embed_pooled=embed_pooled, frames_apart=False)
    whole |= dict(look=look, camera_net="camera" if config.dsanet.disentangle else "")
    return {"train": Method(init, step, embed, ("net",), warm_start, **whole)}
