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

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import disentangle, identity, triplet
from reid_jax.methods import Method, _steps
from reid_jax.methods.dsanet import nets
from reid_jax.models import heads

TITLE = "DSANet"
FIELDS = dict(
    disentangle=True,  # channel expansion, camera head, L_dis
    intra_class=True,  # L_ic
    tlm=True,  # target localisation
    loss_lr=True,  # with its left/right head and loss
    fwg=True,  # frame weights
    loss_w=True,  # with their pseudo labels from a frame head
    sao=True,  # switching and aggregation
    lam=0.1,  # weight of L_aug, L_lr and L_w
    lam_cam=0.1,  # the paper: 0.5 on LS-VID
    lam_frame=0.1,  # of the frame head's own loss; 0: the literal equations
    lam_dis=1.0,  # of L_dis; the paper has no factor
    lam_ic=1.0,  # of L_ic; the paper has no factor
    fwg_std=2**0.5,  # of the frame weights' first kernel; 2**0.5: Kaiming's for one output (fan-out)
    cel_norm=False,  # batch norm in the channel expansion
    cel_relu=False,  # ReLU in it; without, L_dis is soon met by the sign of f_cam alone
    center=False,  # L_dis compares what f_ID and f_cam deviate from their running means
    center_momentum=0.9,  # of the old mean
    raw_triplet=-1,  # >= 0: from that step on the triplet sees f_ID before the neck, by Euclidean distance
    cel_pool="max",  # max (time and space) | max_mean (space, then mean over time)
    tlm_softmax="region",  # region | width
    neck=True,  # batch norm before every classifier
    detach_cam=False,  # L_aug passes f_cam no gradient
    lr_average=False,  # left and right features averaged over time first
    ic_reduce="mean",  # mean | sum over features (sum: the printed formula, 2048 times larger)
)
METRICS = {
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "cam_ce": "Camera cross entropy",
    "disentangle": "Positive cosine of identity and camera",
    "cosine": "Cosine of identity and camera",
    "cam_negative": "Share of negative entries of f_cam",
    "cam_spread": "Deviation of f_cam over that of f_ID",
    "intra_class": "Spread within identities",
    "ce_sides": "Left and right cross entropy",
    "ce_switched": "Switched cross entropy",
    "ce_frames": "Frame cross entropy",
    "frame_weights": "Error of the frame weights",
}
LABELS = "all"
LOOK = {  # the first two: more than the mean over many clips
    "F_ID": "identity map",
    "F_t": "identity map after localisation",
    "F_cam": "camera map",
}


class DsaNet(Method):
    """The only stage. Its test features are of clips, whose frames are weighted."""

    embeds_frames = True
    frames_apart = False
    look_deviation = ("F_ID", "F_t")  # else a pattern shows that is the same for all clips

    def __init__(self, config, info):
        super().__init__(config, info)
        d = config.dsanet
        if (d.sao or d.intra_class) and not d.disentangle:
            raise ConfigError("config.dsanet.sao and intra_class need config.dsanet.disentangle")
        if d.center and not d.disentangle:
            raise ConfigError(
                "config.dsanet.center needs config.dsanet.disentangle: L_dis is what it changes"
            )
        within("dsanet", d, center_momentum=(0, 1))
        self.camera_net = "camera" if d.disentangle else ""
        self.network = nets.Network(
            heads.trunk(config.model, self.axis),
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
            cel_relu=d.cel_relu,
            neck=d.neck,
            average_sides=d.lr_average,
            axis_name=self.axis,
        )
        self.tx = {"net": _steps.adam(config.optim, self.info)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def init(self, key):
        variables, memory = dict(self.network.init(key, self.blank(), False)), {}
        if self.config.dsanet.center:
            size = variables["params"]["cel"]["conv"]["kernel"].shape[-1]
            memory = {"means": {"f_id": jnp.zeros(size), "f_cam": jnp.zeros(size)}}
        return self.fresh({"net": variables}, self.tx, memory)

    def step(self, state, batch):
        d, batch = self.config.dsanet, batch["train"]
        clip, pid = self.view(batch), batch["pid"]
        partners = _steps.partners(self.key(state), len(pid), self.axis) if d.sao else None

        def loss(nets):
            options = dict(detach_cam=d.detach_cam, mutable=["batch_stats"])
            out, changed = self.network.apply(nets["net"], clip, True, partners, **options)
            metrics = self.losses(out, pid, batch["camid"], state.memory.get("means"), state.step)
            now = {n: out[n].mean(0) for n in state.memory.get("means", ())}
            return metrics["loss"], {"net": changed["batch_stats"]}, metrics, now

        new, metrics, now = _steps.descend(loss, state, self.tx, self.axis)
        if d.center:
            now = _steps.pmean(jax.lax.stop_gradient(now), self.axis)
            means = _steps.ema(state.memory["means"], now, d.center_momentum)
            new = new._replace(memory=state.memory | {"means": means})
        return new, metrics | {"lr": self.rate(state.step)}

    def losses(self, out, pid, camid, means=None, step=0):
        """Every loss of the outputs of `nets.Network`: {metric: f[]}, the total as "loss".

        pid, camid: i32[N]; means: of f_id and f_cam f[D], taken off before L_dis. Means over the device's
        clips; L_tri and L_ic are of the global batch.
        """
        d = self.config.dsanet
        branches = heads.Branches((out["logits_id"],), (out["f_id"],), (out["f_test"],), out["f_test"])
        ce, tri = _steps.identity_losses(self.config.loss, branches, pid, self.axis)
        if d.raw_triplet >= 0:
            options = dict(distance="euclidean", margin=self.config.loss.margin, axis_name=self.axis)
            raw = self.config.loss.triplet_weight * triplet.batch_hard(out["f_id"], pid, **options)[0]
            tri = jnp.where(step >= d.raw_triplet, raw, tri)
        values = {"ce": ce, "triplet": tri, "accuracy": _steps.accuracy(branches, pid)}
        total = ce
        if "logits_aug" in out:
            values["ce_switched"] = self.cross_entropy(out["logits_aug"], pid)
            total += d.lam * values["ce_switched"]
        if "logits_lr" in out:
            left, right = jnp.split(out["logits_lr"], 2)
            rows = jnp.repeat(pid, len(left) // len(pid))
            values["ce_sides"] = self.cross_entropy(left, rows) + self.cross_entropy(right, rows)
            total += d.lam * values["ce_sides"]
        if "f_cam" in out:
            values["cam_ce"] = self.cross_entropy(out["logits_cam"], camid)
            total += d.lam_cam * values["cam_ce"]
        total += tri
        if "f_cam" in out:
            pair = [out[n] - (means[n] if means else 0) for n in ("f_id", "f_cam")]
            values["disentangle"] = disentangle.cosine_hinge(*pair).mean()
            values |= self.watched(*pair)
            total += d.lam_dis * values["disentangle"]
            if d.intra_class:
                options = dict(reduce=d.ic_reduce, axis_name=self.axis)
                values["intra_class"] = disentangle.intra_class(out["f_id"], pid, **options)
                total += d.lam_ic * values["intra_class"]
        if "logits_frame" in out:
            frame_ce = frame_losses(out["logits_frame"], pid)
            w = jax.lax.stop_gradient(nets.weights_of(frame_ce)[1])
            values |= {"ce_frames": frame_ce.mean(), "frame_weights": jnp.square(w - out["w_hat"]).mean()}
            total += d.lam * values["frame_weights"] + d.lam_frame * values["ce_frames"]
        return values | {"loss": total}

    def watched(self, f_id, f_cam):
        """What L_dis leaves: {metric: f[]} of features f[N,D], no gradient."""
        f_id, f_cam = (jax.lax.stop_gradient(f) for f in (f_id, f_cam))
        spread = [jnp.sqrt(_steps.variance(f, self.axis).mean()) for f in (f_id, f_cam)]
        return {
            "cosine": disentangle.cosine(f_id, f_cam).mean(),
            "cam_negative": (f_cam < 0).mean(),
            "cam_spread": spread[1] / jnp.maximum(spread[0], 1e-12),
        }

    def cross_entropy(self, logits, labels):
        return identity.cross_entropy(logits, labels, label_smooth=self.config.loss.label_smooth)

    # ---- features

    def apply(self, state, clip):
        """All outputs of the network in test mode."""
        return self.network.apply(state.nets["net"], self.plain(clip), False)

    def embed(self, state, image, net):
        return self.apply(state, image)["f_cam" if net == "camera" else "f_test"]

    def embed_frames(self, state, clip, net):
        """One vector of a clip; the neck is affine, so the mean may follow it."""
        return self.embed(state, clip, net)[:, None]

    def embed_pooled(self, state, mean, net):
        return mean

    def look(self, state, clips):
        """Heat maps and the frames' weights.

        F_ID and F_t as they are, to be shown by what sets a clip's cells apart from those of others. F_cam
        has a sign, and its squares, as the paper draws them, show what is negative: its mean over channels.
        """
        out = self.apply(state, clips)
        names = ("F_ID", "F_t") if self.config.dsanet.tlm else ("F_ID",)
        maps = {f"map/{n}": out[n] for n in names}
        if "F_cam" in out:
            maps["map/F_cam"] = out["F_cam"].mean(-1)
        even = jnp.full(clips.shape[:2], 1 / clips.shape[1])
        return maps | {"weight": out.get("w_hat", even)}


def frame_losses(logits, pid):
    """Cross entropy of every frame with its clip's identity: logits f[N,T,K] -> f[N,T]."""
    logits = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logits, pid[:, None, None], 2)[:, :, 0]


STAGES = {"train": DsaNet}
