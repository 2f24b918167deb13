"""EFL: mutual mean teaching with CLUB mutual-information minimisation (Liu, Li, Wang, BMVC 2022).

Six networks, each its own tree: students phi1, phi2; their moving averages m1, m2; the camera
encoder cam; the estimator q of the mutual information between identity and camera features.
`update` is Algorithm 1 on any encoder; the modes (the paper's Table 4) leave networks out.

    mode      phi1  phi2  m1 m2  cam q    loss of the students
    baseline   x                          CE + triplet
    fdm        x                  x  x    CE + triplet + lambda_mi MI
    mmt        x     x     x              (1 - lambda_kl) CE + triplet + lambda_kl KL
    full       x     x     x      x  x    all of it
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.losses import batch as batches
from reid_jax.losses import distill, mutual_info
from reid_jax.methods import Method, State, _optim, parts
from reid_jax.models import club, heads

MODES = ("full", "mmt", "fdm", "baseline")
TEACHER = {"phi1": "m1", "phi2": "m2"}


class Models(NamedTuple):
    """Networks and optimisers; `update` needs nothing else of them."""

    identity: Any  # Encoder of phi1, phi2, m1, m2
    camera: Any  # Encoder of cam
    q: Any  # linen module: f_id -> (mean, log-variance) of f_cam
    tx: dict  # optax chain of each trained network


def students(mode):
    """Names of the trained identity encoders."""
    return ("phi1", "phi2") if mode in ("full", "mmt") else ("phi1",)


def has_camera(mode):
    """Whether cam and q exist."""
    return mode in ("full", "fdm")


def student_loss(params, fixed, image, pid, *, models, config, axis_name):
    """One student's share of L_id + lambda_mi L_MIM (paper eq. 1, steps 1 to 5 of Algorithm 1).

    params: the student's, the only argument that is differentiated. fixed: its batch_stats; the other
    branch's teacher logits f32[B,K] or None; f_cam f32[B,D] or None; q's params; lambda_mi f32[]; key
    for the sampled bound. Returns (loss, {"stats", "feature", "metrics"}).
    """
    efl, logits = config.efl, fixed["teacher_logits"]
    variables = {"params": params, "batch_stats": fixed["stats"]}
    out, stats = models.identity.apply(variables, image, True)
    feature = parts.select_feature(config.loss, out)
    ce, tri = parts.identity_losses(config.loss, out, pid, axis_name)
    metrics = {"ce": ce, "triplet": tri, "accuracy": jnp.mean(out.logits[0].argmax(-1) == pid)}
    total = ce + tri
    if logits is not None:
        metrics["kl"] = distill.kl(logits, out.logits[0])
        total = (1 - efl.lambda_kl) * ce + tri + efl.lambda_kl * metrics["kl"]
    metrics["loss_id"] = total
    if fixed["f_cam"] is not None:
        metrics["mi"] = mutual_information(feature, fixed, models=models, config=config, axis_name=axis_name)
        total += fixed["lambda_mi"] * metrics["mi"]
    return total, {"stats": stats, "feature": feature, "metrics": {"loss": total, **metrics}}


def student_grads(state, fixed, views, pid, cam_grad=(), **shared):
    """Gradient of each student and what its loss returns: ({student: grad}, {student: aux}).

    One after the other and after the camera encoder's, so that only one network's activations are in
    memory.
    """
    grads, aux = {}, {}
    for i, name in enumerate(n for n in TEACHER if n in state.nets):
        net = state.nets[name]
        mine = {
            **fixed,
            "stats": net["batch_stats"],
            "teacher_logits": next((v for n, v in fixed["teacher_logits"].items() if n != name), None),
            "key": jax.random.fold_in(fixed["key"], i),
        }
        image = parts.after(views[name], (cam_grad, grads))
        descend = jax.grad(student_loss, has_aux=True)
        grads[name], aux[name] = descend(net["params"], mine, image, pid, **shared)
    return grads, aux


def sum_metrics(aux):
    """Metrics summed over the students, as the paper's losses are; the accuracy is their mean."""
    metrics = jax.tree.map(lambda *x: sum(x), *(a["metrics"] for a in aux.values()))
    return {**metrics, "accuracy": metrics["accuracy"] / len(aux)}


def mutual_information(f_id, fixed, *, models, config, axis_name):
    """CLUB's upper bound of I(f_id; f_cam) (paper eq. 6); only f_id receives gradient."""
    mu, logvar = models.q.apply({"params": lax.stop_gradient(fixed["q"])}, f_id)
    f_cam = lax.stop_gradient(fixed["f_cam"])
    if choice("efl.mi_bound", config.efl.mi_bound, ("exact", "sampled")) == "exact":
        return mutual_info.club_exact(mu, logvar, f_cam, axis_name=axis_name)
    return mutual_info.club_sampled(mu, logvar, f_cam, fixed["key"], axis_name=axis_name)


def camera_step(state, image, camid, *, models, config, axis_name):
    """Forward of cam and its gradient (steps 4 and 8): (f_cam, grad, batch_stats, metrics)."""
    variables = state.nets["cam"]

    def loss(params):
        out, stats = models.camera.apply({**variables, "params": params}, image, True)
        ce, tri = parts.identity_losses(config.loss, out, camid, axis_name)
        metrics = {
            "cam_ce": ce,
            "cam_triplet": tri,
            "cam_accuracy": jnp.mean(out.logits[0].argmax(-1) == camid),
        }
        return ce + tri, (parts.select_feature(config.loss, out), stats, metrics)

    (_, (f_cam, stats, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return lax.stop_gradient(f_cam), grad, stats, metrics


def estimator_loss(q_params, features, f_cam, *, models):
    """L_MIE: CLUB's learning loss summed over the students (paper eq. 7), features detached."""
    total = 0.0
    for f_id in features.values():
        mu, logvar = models.q.apply({"params": q_params}, lax.stop_gradient(f_id))
        total += mutual_info.club_nll(mu, logvar, lax.stop_gradient(f_cam))
    return total


def estimator_steps(q_params, opt, features, f_cam, *, models, config, axis_name):
    """n_mi Adam steps of q on fixed features (step 9); returns params, opt, losses f32[n_mi].

    The features of all devices are gathered once and every device does the same steps: less to send
    than q's gradient n_mi times, and no collective inside the loop.
    """
    features, f_cam = jax.tree.map(
        lambda f: batches.gather(f, axis_name), (lax.stop_gradient(features), f_cam)
    )

    def body(carry, _):
        params, opt = carry
        value, grad = jax.value_and_grad(estimator_loss)(params, features, f_cam, models=models)
        params, opt = parts.apply_gradient(models.tx["q"], grad, opt, params)
        return (params, opt), value

    (params, opt), losses = lax.scan(body, (q_params, opt), None, length=config.efl.n_mi)
    return params, opt, losses


def teacher_logits(state, views, *, models):
    """Train-mode forward of the teachers, without gradient: ({student: logits}, {teacher: stats})."""
    logits, stats = {}, {}
    for student, teacher in TEACHER.items():
        if teacher in state.nets:
            out, stats[teacher] = models.identity.apply(state.nets[teacher], views[student], True)
            logits[student] = lax.stop_gradient(out.logits[0])
    return logits, stats


def update(state, views, pid, camid, *, models, config, axis_name=None):
    """One training iteration (Algorithm 1): (State, views, labels) -> (State, metrics).

    metrics are f32[], but "mie", the loss of q before each inner step: f32[n_mi].

    views: {"phi1": x1, "phi2": x2}, each [B,H,W,3]; the camera encoder sees x1.
    pid, camid: i32[B]. Per device under `axis_name`: hardest pairs and the batch moments in MI are
    those of the global batch, means are averaged over devices.
    """
    efl = config.efl
    shared = dict(models=models, config=config, axis_name=axis_name)
    names = [n for n in TEACHER if n in state.nets]
    nets, opt, metrics, f_cam, cam_grad = dict(state.nets), dict(state.opt), {}, None, ()

    logits, teacher_stats = teacher_logits(state, views, models=models)
    if "cam" in nets:
        f_cam, cam_grad, cam_stats, metrics = camera_step(state, views["phi1"], camid, **shared)
    fixed = {
        "teacher_logits": logits,
        "f_cam": f_cam,
        "q": nets["q"]["params"] if "q" in nets else None,
        "lambda_mi": efl.lambda_mi * (state.step >= efl.mi_start),
        "key": jax.random.fold_in(jax.random.key(config.seed), state.step),
    }
    grads, aux = student_grads(state, fixed, views, pid, cam_grad, **shared)
    metrics = sum_metrics(aux) | metrics

    stats = {n: a["stats"] for n, a in aux.items()}
    grads, stats, teacher_stats = parts.pmean((grads, stats, teacher_stats), axis_name)
    for n in names:
        params, opt[n] = parts.apply_gradient(models.tx[n], grads[n], opt[n], nets[n]["params"])
        nets[n] = {"params": params, "batch_stats": stats[n]}
    decay = parts.ema_decay(state.step, efl.alpha, efl.ema_ramp)
    for n in names:
        if TEACHER[n] in nets:  # running statistics move by the teacher's own forward only
            mean = parts.ema(nets[TEACHER[n]]["params"], nets[n]["params"], decay)
            nets[TEACHER[n]] = {"params": mean, "batch_stats": teacher_stats[TEACHER[n]]}
    if "cam" in nets:
        cam_grad, cam_stats = parts.pmean((cam_grad, cam_stats), axis_name)
        params, opt["cam"] = parts.apply_gradient(
            models.tx["cam"], cam_grad, opt["cam"], nets["cam"]["params"]
        )
        nets["cam"] = {"params": params, "batch_stats": cam_stats}
        features = {n: a["feature"] for n, a in aux.items()}
        mu, _ = models.q.apply(nets["q"], features["phi1"])
        metrics["q_r2"] = mutual_info.r2(mu, f_cam, axis_name=axis_name)
        q, opt["q"], losses = estimator_steps(nets["q"]["params"], opt["q"], features, f_cam, **shared)
        nets["q"] = {"params": q}
        metrics["mie"] = losses
    return State(state.step + 1, nets, opt), parts.pmean(metrics, axis_name)


def build_models(config, info):
    """Encoders, q and the optimiser of each network that the mode trains."""
    mode = choice("efl.mode", config.efl.mode, MODES)
    efl, optim = config.efl, config.optim
    if efl.n_mi < 1:
        raise ConfigError(
            f"config.efl.n_mi is {efl.n_mi}; q needs at least 1 inner step (mode=mmt leaves q out)"
        )
    models = [heads.build(config.model, n, info.axis_name) for n in (info.num_pids, info.num_cams)]
    identity, camera = (heads.encoder(net, config.train.accumulate) for net in models)
    trained = _optim.trained(models[0].frozen)
    tx = {n: parts.adam(optim, info, mask=trained) for n in students(mode)}
    if has_camera(mode):
        tx["cam"] = parts.adam(optim, info, mask=trained)
        tx["q"] = parts.adam(optim, info, lr=efl.mi_lr, weight_decay=efl.mi_weight_decay, repeats=efl.n_mi)
    return Models(identity, camera, club.Club(hidden_size=efl.mi_hidden), tx)


def init_state(key, image, *, models, mode):
    """Fresh State for images [B,H,W,3]; teachers are copies of their students."""
    keys = dict(zip(("phi1", "phi2", "cam", "q"), jax.random.split(key, 4), strict=True))
    nets = {n: models.identity.init(keys[n], image) for n in students(mode)}
    if mode in ("full", "mmt"):
        nets |= {TEACHER[n]: jax.tree.map(jnp.copy, nets[n]) for n in students(mode)}
    if has_camera(mode):
        nets["cam"] = models.camera.init(keys["cam"], image)
        f = jax.eval_shape(lambda: models.camera.apply(nets["cam"], image, False)[0].after_bn[0])
        zeros = jnp.zeros(f.shape, f.dtype)
        nets["q"] = {"params": models.q.init(keys["q"], zeros, zeros)["params"]}
    opt = {n: tx.init(nets[n]["params"]) for n, tx in models.tx.items()}
    return State(jnp.int32(0), nets, opt)


def stages(config, info):
    """The single stage "train"; see reid_jax.methods for the contract."""
    models = build_models(config, info)
    mode = config.efl.mode
    encoder = heads.build(config.model, info.num_pids, info.axis_name)  # its parts, for tracklets
    camera = heads.build(config.model, info.num_cams, info.axis_name)
    lr = parts.schedule(config.optim, info, config.optim.lr)

    def init(key, batch):
        return init_state(key, parts.view(config, batch, 0)[:1], models=models, mode=mode)

    def step(state, batch):
        views = {n: parts.view(config, batch, i) for i, n in enumerate(students(mode))}
        pid, camid = batch["pid"], batch["camid"]
        new, metrics = update(
            state, views, pid, camid, models=models, config=config, axis_name=info.axis_name
        )
        if "mie" in metrics:
            metrics |= {"mie": metrics["mie"][0], "mie_last": metrics["mie"][-1]}
        return new, {**metrics, "lr": lr(state.step)}

    def embed(state, image, net):
        if net != "mean":
            model = models.camera if net == "cam" else models.identity
            return parts.test_feature(state.nets[net], model, config, image)
        return sum(
            parts.unit(parts.test_feature(state.nets[n], models.identity, config, image))
            for n in averaged(state)
        )

    def averaged(state):
        """Networks whose unit features "mean" adds up."""
        return [n for n in ("m1", "m2") if n in state.nets] or list(students(mode))

    def embed_frames(state, image, net):
        names = averaged(state) if net == "mean" else [net]
        model = camera if net == "cam" else encoder
        return jnp.concatenate(
            [parts.test_vectors(state.nets[n], model, config, image) for n in names], axis=-1
        )

    def embed_pooled(state, mean, net):
        if net != "mean":
            return parts.pooled_feature(state.nets[net], camera if net == "cam" else encoder, mean)
        names = averaged(state)
        vectors = jnp.split(mean, len(names), axis=-1)
        features = (
            parts.pooled_feature(state.nets[n], encoder, v) for n, v in zip(names, vectors, strict=True)
        )
        return sum(map(parts.unit, features))

    def warm_start(state, load):
        """Students and camera encoder; teachers become copies of their students, q stays fresh."""
        nets = dict(state.nets)
        for name in (*students(mode), *(["cam"] if has_camera(mode) else [])):
            nets[name] = load(name, nets[name], "phi1")
        for student, teacher in TEACHER.items():
            if teacher in nets:
                nets[teacher] = jax.tree.map(jnp.copy, nets[student])
        return state._replace(nets=nets)

    nets = ("m1", "m2", "phi1", "phi2", "mean") if mode in ("full", "mmt") else ("phi1",)
    able = dict(embed_frames=embed_frames, embed_pooled=embed_pooled, accumulates=True)
    able["camera_net"] = "cam" if has_camera(mode) else ""
    apart = heads.frames_apart(config.model)
    return {"train": Method(init, step, embed, nets, warm_start, **able, frames_apart=apart)}
