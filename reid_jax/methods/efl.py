"""EFL: mutual mean teaching with CLUB mutual-information minimisation (Liu, Li, Wang, BMVC 2022).

Six networks, each its own tree: students phi1, phi2; their moving averages m1, m2; the camera
encoder cam; the estimator q of the mutual information between identity and camera features.
`Efl.update` is Algorithm 1 on any encoder; the modes (the paper's Table 4) leave networks out.

    mode      phi1  phi2  m1 m2  cam q    loss of the students
    baseline   x                          CE + triplet
    fdm        x                  x  x    CE + triplet + lambda_mi MI
    mmt        x     x     x              (1 - lambda_kl) CE + triplet + lambda_kl KL
    full       x     x     x      x  x    all of it
"""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.losses import batch as batches
from reid_jax.losses import distill, mutual_info
from reid_jax.methods import Method, _steps
from reid_jax.models import club, heads

TITLE = "EFL"
FIELDS = dict(
    mode="full",  # full | mmt | fdm | baseline: the ablations build only what they need
    lambda_kl=0.5,
    lambda_mi=1e-4,
    mi_start=0,  # step from which lambda_mi acts
    alpha=0.999,  # EMA decay of the teachers
    ema_ramp=True,  # decay min(1 - 1 / (step + 1), alpha)
    n_mi=10,  # inner steps of Q
    mi_lr=1e-5,
    mi_weight_decay=5e-4,
    mi_hidden=1024,  # as in CLUB, halved inside
    mi_bound="exact",  # exact | sampled
)
METRICS = {
    "loss": "Total loss",
    "loss_id": "Identity loss",
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "kl": "KL to the other teacher",
    "mi": "Mutual information bound",
    "mie": "Estimator loss, first inner step",
    "mie_last": "Estimator loss, last inner step",
    "q_r2": "Estimator R²",
    "cam_ce": "Camera cross entropy",
    "cam_triplet": "Camera triplet",
    "cam_accuracy": "Camera accuracy",
}
LABELS = "all"
MODES = ("full", "mmt", "fdm", "baseline")
TEACHER = {"phi1": "m1", "phi2": "m2"}


class Efl(Method):
    """The only stage."""

    accumulates = embeds_frames = True
    heeds = ("model.classifier",)

    def __init__(self, config, info):
        super().__init__(config, info)
        mode, efl, optim = choice("efl.mode", config.efl.mode, MODES), config.efl, config.optim
        if efl.n_mi < 1:
            raise ConfigError(
                f"config.efl.n_mi is {efl.n_mi}; q needs at least 1 inner step (mode=mmt leaves q out)"
            )
        self.students = ("phi1", "phi2") if mode in ("full", "mmt") else ("phi1",)
        self.teaches, self.sees_cameras = mode in ("full", "mmt"), mode in ("full", "fdm")
        self.nets = ("m1", "m2", "phi1", "phi2", "mean") if self.teaches else ("phi1",)
        self.camera_net = "cam" if self.sees_cameras else ""
        self.network = heads.build(config.model, info.num_pids, info.axis_name)
        self.camera_network = heads.build(config.model, info.num_cams, info.axis_name)
        self.frames_apart = heads.frames_apart(config.model)
        self.encoder, self.camera = (
            heads.encoder(net, config.train.accumulate) for net in (self.network, self.camera_network)
        )
        self.q = club.Club(hidden_size=efl.mi_hidden)  # f_id -> (mean, log-variance) of f_cam
        trained = (*self.students, *(["cam"] if self.sees_cameras else []))
        nets = {"cam": self.camera_network}
        self.tx = {n: _steps.optimiser(optim, self.info, nets.get(n, self.network)) for n in trained}
        if self.sees_cameras:
            settings = dict(lr=efl.mi_lr, weight_decay=efl.mi_weight_decay, repeats=efl.n_mi)
            self.tx["q"] = _steps.adam(optim, self.info, **settings)
        self.rate = _steps.schedule(optim, self.info, optim.lr)

    def init(self, key):
        """Teachers are copies of their students."""
        keys = dict(zip(("phi1", "phi2", "cam", "q"), jax.random.split(key, 4), strict=True))
        image = self.blank()
        nets = {n: self.encoder.init(keys[n], image) for n in self.students}
        if self.teaches:
            nets |= {TEACHER[n]: jax.tree.map(jnp.copy, nets[n]) for n in self.students}
        if self.sees_cameras:
            nets["cam"] = self.camera.init(keys["cam"], image)
            f = jax.eval_shape(lambda: self.camera.apply(nets["cam"], image, False)[0].after_bn[0])
            zeros = jnp.zeros(f.shape, f.dtype)
            nets["q"] = {"params": self.q.init(keys["q"], zeros, zeros)["params"]}
        return self.fresh(nets, self.tx)

    # ---- the step

    def step(self, state, batch):
        batch = batch["train"]
        views = {n: self.view(batch, i) for i, n in enumerate(self.students)}
        new, metrics = self.update(state, views, batch["pid"], batch["camid"])
        if "mie" in metrics:
            metrics |= {"mie": metrics["mie"][0], "mie_last": metrics["mie"][-1]}
        return new, {**metrics, "lr": self.rate(state.step)}

    def update(self, state, views, pid, camid):
        """One training iteration (Algorithm 1): (State, views, labels) -> (State, metrics).

        metrics are f32[], but "mie", the loss of q before each inner step: f32[n_mi].

        views: {"phi1": x1, "phi2": x2}, each [B,H,W,3]; the camera encoder sees x1. pid, camid: i32[B]. Per
        device: hardest pairs and the batch moments in MI are those of the global batch.
        """
        efl, nets = self.config.efl, state.nets
        logits, teacher_stats = self.teacher_logits(nets, views)
        f_cam, cam_grads, cam_stats, metrics = self.camera_gradient(nets, views["phi1"], camid)
        fixed = {
            "teacher_logits": logits,
            "f_cam": f_cam,
            "q": nets["q"]["params"] if self.sees_cameras else None,
            "lambda_mi": efl.lambda_mi * (state.step >= efl.mi_start),
            "key": self.key(state),
        }
        grads, stats, features, id_metrics = self.student_gradients(nets, fixed, views, pid, cam_grads)
        teacher_stats = _steps.pmean(teacher_stats, self.axis)
        new = _steps.moved(state, self.tx, grads | cam_grads, stats | cam_stats)
        new = self.with_teachers(new, teacher_stats)
        metrics = id_metrics | metrics
        if self.sees_cameras:
            new, figures = self.with_estimator(new, features, f_cam)
            metrics |= figures
        return new._replace(step=state.step + 1), metrics

    def teacher_logits(self, nets, views):
        """Train-mode forward of the teachers, without gradient: ({student: logits}, {teacher: stats})."""
        logits, stats = {}, {}
        for student in self.students if self.teaches else ():
            out, stats[TEACHER[student]] = self.encoder.apply(nets[TEACHER[student]], views[student], True)
            logits[student] = lax.stop_gradient(out.logits[0])
        return logits, stats

    def camera_gradient(self, nets, image, camid):
        """Forward of cam and its gradient (steps 4 and 8): (f_cam, {net: grad}, {net: stats}, metrics)."""
        if not self.sees_cameras:
            return None, {}, {}, {}

        def loss(nets):
            out, stats = self.camera.apply(nets["cam"], image, True)
            ce, tri = _steps.identity_losses(self.config.loss, out, camid, self.axis)
            metrics = {"cam_ce": ce, "cam_triplet": tri, "cam_accuracy": _steps.accuracy(out, camid)}
            return ce + tri, {"cam": stats}, metrics, _steps.select_feature(self.config.loss, out)

        grads, stats, metrics, f_cam = _steps.gradient(loss, nets, ("cam",), self.axis)
        return lax.stop_gradient(f_cam), grads, stats, metrics

    def student_gradients(self, nets, fixed, views, pid, cam_grads):
        """Gradient of each student: ({net: grad}, {net: stats}, {net: feature}, metrics).

        One after the other and after the camera encoder's, so that only one network's activations are in
        memory. Metrics are summed over the students, as the paper's losses are; the accuracy is their mean.
        """
        grads, stats, features, metrics = {}, {}, {}, []
        for i, name in enumerate(self.students):
            mine = {**fixed, "key": jax.random.fold_in(fixed["key"], i)}
            mine["teacher_logits"] = next((v for n, v in fixed["teacher_logits"].items() if n != name), None)
            image = _steps.after(views[name], (cam_grads, grads))

            def loss(nets, name=name, mine=mine, image=image):
                total, batch_stats, metrics, feature = self.student_loss(nets[name], mine, image, pid)
                return total, {name: batch_stats}, metrics, feature

            grad, stat, metric, features[name] = _steps.gradient(loss, nets, (name,), self.axis)
            grads, stats, metrics = grads | grad, stats | stat, [*metrics, metric]
        total = jax.tree.map(lambda *x: sum(x), *metrics)
        return grads, stats, features, total | {"accuracy": total["accuracy"] / len(metrics)}

    def student_loss(self, net, fixed, image, pid):
        """One student's share of L_id + lambda_mi L_MIM (paper eq. 1, steps 1 to 5 of Algorithm 1).

        net: the student's variables. fixed: the other branch's teacher logits f32[B,K] or None; f_cam
        f32[B,D] or None; q's params; lambda_mi f32[]; key for the sampled bound. Returns (loss, batch_stats,
        metrics, feature).
        """
        efl, logits = self.config.efl, fixed["teacher_logits"]
        out, stats = self.encoder.apply(net, image, True)
        feature = _steps.select_feature(self.config.loss, out)
        ce, tri = _steps.identity_losses(self.config.loss, out, pid, self.axis)
        metrics = {"ce": ce, "triplet": tri, "accuracy": _steps.accuracy(out, pid)}
        total = ce + tri
        if logits is not None:
            metrics["kl"] = distill.kl(logits, out.logits[0])
            total = (1 - efl.lambda_kl) * ce + tri + efl.lambda_kl * metrics["kl"]
        metrics["loss_id"] = total
        if fixed["f_cam"] is not None:
            metrics["mi"] = self.mutual_information(feature, fixed)
            total += fixed["lambda_mi"] * metrics["mi"]
        return total, stats, {"loss": total, **metrics}, feature

    def mutual_information(self, f_id, fixed):
        """CLUB's upper bound of I(f_id; f_cam) (paper eq. 6); only f_id receives gradient."""
        mu, logvar = self.q.apply({"params": lax.stop_gradient(fixed["q"])}, f_id)
        f_cam = lax.stop_gradient(fixed["f_cam"])
        if choice("efl.mi_bound", self.config.efl.mi_bound, ("exact", "sampled")) == "exact":
            return mutual_info.club_exact(mu, logvar, f_cam, axis_name=self.axis)
        return mutual_info.club_sampled(mu, logvar, f_cam, fixed["key"], axis_name=self.axis)

    def with_teachers(self, state, stats):
        """State with the teachers a step on; their running statistics move by their own forward only."""
        efl, nets = self.config.efl, dict(state.nets)
        decay = _steps.ema_decay(state.step, efl.alpha, efl.ema_ramp)
        for student in self.students if self.teaches else ():
            name = TEACHER[student]
            mean = _steps.ema(nets[name]["params"], nets[student]["params"], decay)
            nets[name] = {"params": mean, "batch_stats": stats[name]}
        return state._replace(nets=nets)

    def with_estimator(self, state, features, f_cam):
        """(State with q n_mi Adam steps on, metrics), on fixed features (step 9).

        The features of all devices are gathered once and every device does the same steps: less to send
        than q's gradient n_mi times, and no collective inside the loop.
        """
        mu, _ = self.q.apply(state.nets["q"], features["phi1"])
        r2 = mutual_info.r2(mu, f_cam, axis_name=self.axis)
        features, f_cam = jax.tree.map(
            lambda f: batches.gather(f, self.axis), (lax.stop_gradient(features), f_cam)
        )

        def body(carry, _):
            params, opt = carry
            value, grad = jax.value_and_grad(self.estimator_loss)(params, features, f_cam)
            return _steps.apply_gradient(self.tx["q"], grad, opt, params), value

        start = state.nets["q"]["params"], state.opt["q"]
        (params, opt), losses = lax.scan(body, start, None, length=self.config.efl.n_mi)
        new = state._replace(nets={**state.nets, "q": {"params": params}}, opt={**state.opt, "q": opt})
        return new, _steps.pmean({"q_r2": r2, "mie": losses}, self.axis)

    def estimator_loss(self, q_params, features, f_cam):
        """L_MIE: CLUB's learning loss summed over the students (paper eq. 7), features detached."""
        total = 0.0
        for f_id in features.values():
            mu, logvar = self.q.apply({"params": q_params}, lax.stop_gradient(f_id))
            total += mutual_info.club_nll(mu, logvar, lax.stop_gradient(f_cam))
        return total

    # ---- features: "mean" is the sum of the unit features of the averaged networks

    def averaged(self):
        """Networks whose unit features "mean" adds up."""
        return ("m1", "m2") if self.teaches else self.students

    def embed(self, state, image, net):
        if net == "mean":
            return sum(_steps.unit(self.embed(state, image, n)) for n in self.averaged())
        encoder = self.camera if net == "cam" else self.encoder
        return encoder.apply(state.nets[net], self.plain(image), False)[0].test

    def embed_frames(self, state, clip, net):
        if net == "mean":
            return jnp.concatenate([self.embed_frames(state, clip, n) for n in self.averaged()], axis=-1)
        return self.net_of(net).apply(state.nets[net], self.plain(clip), False, method="vectors")

    def embed_pooled(self, state, mean, net):
        if net != "mean":
            return self.net_of(net).apply(state.nets[net], mean, False, method="head").test
        names = self.averaged()
        vectors = jnp.split(mean, len(names), axis=-1)
        return sum(_steps.unit(self.embed_pooled(state, v, n)) for n, v in zip(names, vectors, strict=True))

    def net_of(self, name):
        """The module of a network."""
        return self.camera_network if name == "cam" else self.network

    def warm_start(self, state, load):
        """Students and camera encoder; teachers become copies of their students, q stays fresh."""
        nets = dict(state.nets)
        for name in (*self.students, *(["cam"] if self.sees_cameras else [])):
            nets[name] = load(name, nets[name], "phi1")
        for student in self.students if self.teaches else ():
            nets[TEACHER[student]] = jax.tree.map(jnp.copy, nets[student])
        return state._replace(nets=nets)


def title(config):
    """Name of a run in tables: the modes are rows of the paper's Table 4."""
    return TITLE if config.efl.mode == "full" else f"{TITLE}, mode {config.efl.mode}"


STAGES = {"train": Efl}
