"""ADL: unsupervised re-id by pseudo labels, feature refinement, adversarial disentangling (Chen et al. 2024).

The baseline is IICS (Xuan and Zhang, CVPR 2021): rounds of clustering and training within each camera
("intra"), then over all of them ("inter"). Every network is its own tree with its own optimiser:

    net      backbone with FRIFM       L_stage + lam L_ADL
    heads    classifiers of cameras    L_intra = sum over cameras of the cross entropy of its images
    joint    classifier of all images  L_inter = cross entropy + triplet
    encoder  E: f -> z                 lam L_ADL + lam_cam L_camera
    camera   H: z -> camera            lam_cam L_camera
    critic   D: (f, z) -> logit        L_D = -omega

One forward pass and one gradient of L_stage + lam L_ADL + lam_cam L_camera + L_D serve all players; who gets
gradient from what is a matter of the stops in `adversarial_losses`. `intra_step` and `inter_step` are the
training steps, `labels` clusters, `begin` prepares a stage.
"""

import copy
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.losses import adversarial, identity, triplet
from reid_jax.losses import batch as batches
from reid_jax.methods import Method, Phase, State, parts
from reid_jax.methods.adl import nets
from reid_jax.models import heads, pooling

TITLE = "ADL"
METRICS = {
    "loss_stage": "Loss on pseudo labels",
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "adl": "Adversarial loss",
    "omega": "Critic's value omega",
    "cam_ce": "Camera cross entropy",
    "cam_accuracy": "Camera accuracy",
}
ROWS = {  # of Table 4: (FRIFM, adversarial game)
    (True, True): "ADL",
    (True, False): "IICS with FRIFM",
    (False, True): "IICS with ADL's game",
    (False, False): "IICS",
}
PHASES = ("intra", "inter")
PLAYERS = ("encoder", "camera", "critic")  # of the adversarial game
_ROWS = 512  # images whose class scores are computed at a time


def title(config):
    """The row of the paper's Table 4 that a config is."""
    adl = config.adl
    row = ROWS[bool(adl.frifm_stages), bool(adl.adversarial_stages)]
    return row if adl.mode == "original" else f"{row}, mode {adl.mode}"


class Models(NamedTuple):
    """Networks and optimisers."""

    net: Any  # nets.Pooled
    heads: Any  # nets.CameraHeads
    joint: Any  # nets.JointHead
    encoder: Any  # nets.CameraEncoder
    camera: Any  # nets.CameraHead
    critic: Any  # nets.Critic
    tx: dict  # phase -> {network: optax chain} of the networks that it trains


def build(config, info):
    """Models of config.model and config.adl.

    Norms of heads, E and H take the statistics of the global batch under info.axis_name, the backbone those
    that model.bn_group says. Raises ConfigError for settings that cannot be.
    """
    adl, axis = config.adl, info.axis_name
    choice("adl.mode", adl.mode, ("original", "threshold"))
    choice("adl.transform", adl.transform, adversarial.TRANSFORMS)
    choice("adl.critic_input_norm", adl.critic_input_norm, adversarial.FORMS)
    unused = choice("adl.unused_classes", adl.unused_classes, ("auto", "keep", "mask"))
    mask = unused == "mask" or (unused == "auto" and adl.mode == "threshold")
    for stage in adl.adversarial_stages:
        choice("adl.adversarial_stages", stage, PHASES)
    stages = set(adl.frifm_stages)
    if not stages <= {1, 2, 3, 4}:
        raise ConfigError(f"config.adl.frifm_stages is {tuple(adl.frifm_stages)}; stages are 1, 2, 3 and 4")

    def refine(stage):
        return nets.Frifm(adl.frifm_ratio, name=f"frifm{stage}") if stage in stages else None

    base = heads.trunk(config.model, axis, refine if stages else None)
    return Models(
        nets.Pooled(base, pooling.build(config.model)),
        nets.CameraHeads(info.num_cams, adl.intra.clusters, mask, axis),
        nets.JointHead(adl.inter.clusters, mask, axis),
        nets.CameraEncoder(axis),
        nets.CameraHead(info.num_cams, axis),
        nets.Critic(),
        {phase: optimisers(config, phase) for phase in PHASES},
    )


def optimisers(config, phase):
    """{network: optax chain} of a phase: PyTorch's SGD; all but the backbone at head_lr, FRIFM too."""
    adl, own = config.adl, getattr(config.adl, phase)

    def sgd(rate):
        return parts.sgd(rate, momentum=adl.momentum, weight_decay=config.optim.weight_decay)

    def label(path, _):
        return "new" if any(str(k.key).startswith("frifm") for k in path) else "backbone"

    def labels(params):
        return jax.tree_util.tree_map_with_path(label, params)

    net = optax.partition({"backbone": sgd(own.lr), "new": sgd(own.head_lr)}, labels)
    players = PLAYERS if phase in adl.adversarial_stages else ()
    trained = ("heads" if phase == "intra" else "joint", *players)
    return {"net": net} | {name: sgd(own.head_lr) for name in trained}


# ---- states


def init_state(key, image, *, models, adversary=True):
    """Fresh State for images [B,H,W,3], with the optimisers of the intra phase; adversary: with E, H and D.

    It holds the heads of both phases, so that its structure never changes.
    """
    keys = dict(zip(("net", "heads", "joint", *PLAYERS), jax.random.split(key, 6), strict=True))
    net = dict(models.net.init(keys["net"], image[:1], False))
    size = jax.eval_shape(lambda: models.net.apply(net, image[:1], False)).shape[1]
    f = jnp.zeros((1, size))
    found = {"net": net, "heads": models.heads.init(keys["heads"], _repeated(f, models), False)}
    found["joint"] = models.joint.init(keys["joint"], f, False)
    if adversary:
        found["encoder"] = models.encoder.init(keys["encoder"], f, False)
        found["camera"] = models.camera.init(keys["camera"], f, False)
        found["critic"] = models.critic.init(keys["critic"], f, f)
    found = {name: _without_intermediates(v) for name, v in found.items()}
    return State(jnp.int32(0), found, fresh_optimisers(found, models))


def _without_intermediates(variables):
    return {k: v for k, v in variables.items() if k != "intermediates"}


def _repeated(f, models):
    """f [B,D] for every camera's head: [B,C,D]."""
    return jnp.broadcast_to(f[:, None], (len(f), models.heads.cameras, f.shape[-1]))


def fresh_optimisers(found, models):
    """Optimiser states of every network; a phase's own differ from another's by their rates only."""
    chains = models.tx["intra"] | models.tx["inter"]
    return {name: tx.init(found[name]["params"]) for name, tx in chains.items() if name in found}


def begin(state, labels, camid, *, phase, models, key):
    """State for a phase: a fresh classifier that knows its number of classes, fresh optimisers.

    labels: pseudo labels i[N] of the phase, camid i[N]; host arrays, outside jit. Backbone, E, H and D stay.
    """
    name = {"intra": "heads", "inter": "joint"}[phase]
    size = state.nets["joint"]["params"]["classifier"]["kernel"].shape[0]
    fresh = _fresh_head(getattr(models, name), key, size)
    used = class_counts(labels, camid, phase, models)
    fresh = {**fresh, "classes": {"used": jnp.asarray(used, jnp.int32)}}
    found = {**state.nets, name: fresh}
    return state._replace(nets=found, opt=fresh_optimisers(found, models))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _fresh_head(head, key, size):
    """Variables of a classifier of features f[B,size]; compiled once, not in every round."""
    f = jnp.zeros((1, head.cameras, size) if isinstance(head, nets.CameraHeads) else (1, size))
    return head.init(key, f, False)


def class_counts(labels, camid, phase, models):
    """Number of classes i[C] of every camera, or i[1] of all images, from pseudo labels (-1: none)."""
    labels, camid = np.asarray(labels), np.asarray(camid)
    if phase == "inter":
        return np.array([labels.max(initial=-1) + 1])
    return np.array([labels[camid == c].max(initial=-1) + 1 for c in range(models.heads.cameras)])


# ---- losses


def camera_by_camera(net, variables, image):
    """Train-mode features f[K,C,D] of images [K,C,H,W,3] and the new running statistics.

    The images of one camera at a time, in order: batch statistics are those of a camera, running ones move C
    times.
    """

    def one(stats, image):
        f, changed = net.apply({**variables, "batch_stats": stats}, image, True, mutable=["batch_stats"])
        return changed["batch_stats"], f

    images = jnp.moveaxis(image, 1, 0)
    if not unrolled(net):
        stats, f = lax.scan(one, variables["batch_stats"], images)
        return jnp.moveaxis(f, 0, 1), stats
    stats, found = variables["batch_stats"], []
    for x in images:
        stats, f = one(stats, x)
        found.append(f)
    return jnp.stack(found, 1), stats


def unrolled(net):
    """Whether the cameras are written out one after the other instead of a loop of the compiler.

    Where the backbone takes statistics over devices, as collectives in a loop can deadlock on simulated
    devices; and on CPUs, where a gradient through the loop takes several times as long.
    """
    return net.base.axis_name is not None or jax.default_backend() == "cpu"


def intra_loss(logits, pid):
    """L_intra, the sum of the cameras' cross entropies, of logits f[K,C,classes] and pid i32[K,C]: f[]."""
    cameras = logits.shape[1]
    return cameras * identity.cross_entropy(logits.reshape(-1, logits.shape[-1]), pid.reshape(-1))


def inter_loss(logits, f, pid, *, config, axis_name=None):
    """(L_inter, its cross entropy, its triplet loss, share of anchors nearer to their positive), each f[]."""
    ce = identity.cross_entropy(logits, pid)
    loss = config.loss
    tri, aux = triplet.batch_hard(f, pid, distance=loss.triplet, margin=loss.margin, axis_name=axis_name)
    return ce + config.adl.triplet * tri, ce, tri, aux["correct"]


def adversarial_losses(params, fixed, f, camid, permutation, *, models, adl, axis_name=None):
    """The game about the camera in f [B,D]: (total f[], {network: batch_stats}, metrics).

    params, fixed: {network: its params / variables} of E, H and D. camid i32[B]. permutation i32[N] of the
    global batch: the partners of the pairs that do not belong together.
    total = lam L_ADL + lam_cam L_camera + L_D.
    """
    stop = lax.stop_gradient
    live = choice("adl.encoder_input", adl.encoder_input, ("detached", "live")) == "live"

    def apply(name, x):
        variables = {**fixed[name], "params": params[name]}
        return getattr(models, name).apply(variables, x, True, mutable=["batch_stats"])

    z, encoder_stats = apply("encoder", f if live else stop(f))
    logits, camera_stats = apply("camera", z)
    loss_camera = identity.cross_entropy(logits, camid)

    def omega(f, z, phi):
        f, z = (adversarial.standardised(x, adl.critic_input_norm) for x in (f, z))
        own = batches.first_row(z, axis_name) + jnp.arange(len(z))
        other = batches.gather(z, axis_name)[permutation[own]]
        critic = [models.critic.apply({"params": phi}, f, z) for z in (z, other)]
        return adversarial.omega(*critic, axis_name)

    value = omega(f, z, stop(params["critic"]))
    loss_adl = adversarial.pull(value, adl.transform, adl.temperature)
    loss_critic = -omega(stop(f), stop(z), params["critic"])
    total = adl.lam * loss_adl + adl.lam_cam * loss_camera + loss_critic
    metrics = {"omega": value, "adl": loss_adl, "cam_ce": loss_camera}
    metrics["cam_accuracy"] = jnp.mean(logits.argmax(-1) == camid)
    stats = {"encoder": encoder_stats["batch_stats"], "camera": camera_stats["batch_stats"]}
    return total, stats, metrics


# ---- steps


def intra_step(state, batch, *, models, config, axis_name=None):
    """One step within the cameras: (State, batch) -> (State, {name: f32[]}).

    batch: K images of each of the C cameras, image j of camera c in row j C + c, on every device a K / n of
    them; pid i32[B]: pseudo labels, numbered for each camera apart.
    """
    image, pid = parts.view(config, batch, 0), batch["pid"]
    cameras = models.heads.cameras
    if len(image) % cameras:
        raise ConfigError(
            f"{len(image)} images on a device are not the same number of each of {cameras} cameras: make "
            "config.data.instances of this phase a multiple of the number of devices"
        )
    rows = (len(image) // cameras, cameras)

    def stage_loss(params):
        variables = {**state.nets["net"], "params": params["net"]}
        f, stats = camera_by_camera(models.net, variables, image.reshape(*rows, *image.shape[1:]))
        variables = {**state.nets["heads"], "params": params["heads"]}
        logits, changed = models.heads.apply(variables, f, True, mutable=["batch_stats"])
        value = intra_loss(logits, pid.reshape(rows))
        accuracy = jnp.mean(logits.argmax(-1) == pid.reshape(rows))
        stats = {"net": stats, "heads": changed["batch_stats"]}
        return value, f.reshape(-1, f.shape[-1]), stats, {"ce": value / cameras, "accuracy": accuracy}

    return update(state, batch, stage_loss, "intra", models=models, config=config, axis_name=axis_name)


def inter_step(state, batch, *, models, config, axis_name=None):
    """One step over all cameras: (State, batch) -> (State, {name: f32[]}); pid i32[B]: their joint labels."""
    image, pid = parts.view(config, batch, 0), batch["pid"]

    def stage_loss(params):
        variables = {**state.nets["net"], "params": params["net"]}
        f, changed = models.net.apply(variables, image, True, mutable=["batch_stats"])
        stats = {"net": changed["batch_stats"]}
        variables = {**state.nets["joint"], "params": params["joint"]}
        logits, changed = models.joint.apply(variables, f, True, mutable=["batch_stats"])
        stats["joint"] = changed["batch_stats"]
        value, ce, tri, _ = inter_loss(logits, f, pid, config=config, axis_name=axis_name)
        accuracy = jnp.mean(logits.argmax(-1) == pid)
        return value, f, stats, {"ce": ce, "triplet": tri, "accuracy": accuracy}

    return update(state, batch, stage_loss, "inter", models=models, config=config, axis_name=axis_name)


def update(state, batch, stage_loss, phase, *, models, config, axis_name=None):
    """The step of all players of a phase.

    stage_loss: function of {network: params} that gives (L_stage, f [B,D], {network: batch_stats}, metrics).
    """
    adl, chains = config.adl, models.tx[phase]
    names = [n for n in chains if n in state.nets]

    def loss(params):
        total, f, stats, metrics = stage_loss(params)
        metrics["loss_stage"] = total
        if "critic" in params:
            fixed = {n: state.nets[n] for n in PLAYERS}
            partners = permutation(config, state.step, len(f), axis_name)
            game = adversarial_losses(
                params, fixed, f, batch["camid"], partners, models=models, adl=adl, axis_name=axis_name
            )
            total, stats, metrics = total + game[0], stats | game[1], metrics | game[2]
        return total, (stats, {"loss": total, **metrics})

    params = {n: state.nets[n]["params"] for n in names}
    (_, (stats, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(params)
    grad, stats, metrics = parts.pmean((grad, stats, metrics), axis_name)
    found, opt = dict(state.nets), dict(state.opt)
    for n in names:
        new = parts.apply_gradient(chains[n], grad[n], opt[n], params[n])
        moved, opt[n] = _in_turn(n, new, (params[n], opt[n]), state.step, adl, "critic" in params)
        found[n] = {**found[n], "params": moved} | ({"batch_stats": stats[n]} if n in stats else {})
    metrics["lr"] = jnp.float32(getattr(adl, phase).lr)
    return state._replace(step=state.step + 1, nets=found, opt=opt), metrics


def _in_turn(name, new, old, step, adl, game):
    """`new`, or `old` where this network rests under schedule 'blocks'; the critic's block comes first."""
    schedule = choice("adl.schedule", adl.schedule, ("simultaneous", "blocks"))
    if schedule == "simultaneous" or not game:
        return new
    critic_moves = (step // adl.block) % 2 == 0
    moves = critic_moves if name == "critic" else ~critic_moves
    return jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, old)


def permutation(config, step, size, axis_name=None):
    """The partners of a step, the same on every device: i32[N] for `size` rows on each."""
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return jax.random.permutation(key, size * devices)


# ---- features


def embed(state, image, *, models, config, net="net"):
    """Test features f32[B,D] of images u8[B,H,W,3]: the mean of pooled features of image and mirror image.

    net "camera": E's camera feature of it.
    """
    image = parts.plain(config, image)
    both = jnp.concatenate([image, image[:, :, ::-1]])
    f = models.net.apply(state.nets["net"], both, False).reshape(2, len(image), -1).mean(0)
    return models.encoder.apply(state.nets["encoder"], f, False) if net == "camera" else f


def class_scores(state, features, *, models):
    """How every camera's classifier sees an image: softmax f32[B, C classes] of features f32[B,D]."""
    return _scores(models.heads, state.nets["heads"], features)


@functools.partial(jax.jit, static_argnums=0)
def _scores(heads_, variables, features):
    f = jnp.broadcast_to(features[:, None], (len(features), heads_.cameras, features.shape[1]))
    return jax.nn.softmax(heads_.apply(variables, f, False), -1).reshape(len(f), -1)


def all_class_scores(state, features, *, models):
    """`class_scores` of any number of features f[N,D], as a host array f32[N, C classes]."""
    out = np.empty((len(features), models.heads.cameras * models.heads.classes), np.float32)
    for start in range(0, len(features), _ROWS):
        part = np.asarray(features[start : start + _ROWS], np.float32)
        rows = np.zeros((_ROWS, part.shape[1]), np.float32)  # always as many: one compile
        rows[: len(part)] = part
        out[start : start + len(part)] = np.asarray(class_scores(state, rows, models=models))[: len(part)]
    return out


def mix(config, done):
    """mu: weight of the classifiers' similarity after `done` of config.adl.rounds rounds."""
    return config.adl.mix * (1 - done / config.adl.rounds) ** config.adl.mix_power


# ---- the stage


def stages(config, info):
    """The single stage "train", whose rounds have the phases intra and inter; see reid_jax.methods."""
    models, adl = build(config, info), config.adl
    shared = dict(models=models, config=config, axis_name=info.axis_name)

    def init(key, batch):
        image = parts.view(config, batch, 0)[:1]
        return init_state(key, image, models=models, adversary=bool(adl.adversarial_stages))

    def refresh(phase):
        def find(features, camid, state, done):
            from reid_jax.methods.adl import labels  # scikit-learn is not needed for the steps

            if phase == "intra":
                return labels.intra(features, camid, adl, progress=True)
            scores = all_class_scores(state, features, models=models)
            return labels.inter(features, scores, camid, mix(config, done), adl, progress=True)

        return find

    def begins(phase):
        def new(state, features, labels, camid, done):
            key = jax.random.fold_in(jax.random.key(config.seed), 2 * done + PHASES.index(phase))
            return begin(state, labels, camid, phase=phase, models=models, key=key)

        return new

    def phase(name, step, batches, data):
        epochs = getattr(adl, name).epochs

        def one(state, batch):
            return step(state, batch, **shared)

        return Phase(refresh(name), begins(name), one, batches, data, epochs)

    cameras = copy.deepcopy(config.data)
    cameras.ids, cameras.instances = info.num_cams, adl.intra.instances
    phases = {
        "intra": phase("intra", intra_step, "cameras", cameras),
        "inter": phase("inter", inter_step, "labels", config.data),
    }

    def embed_(state, image, net):
        return embed(state, image, models=models, config=config, net=net)

    def warm_start(state, load):
        return state._replace(nets={**state.nets, "net": load("net", state.nets["net"])})

    camera = "camera" if adl.adversarial_stages else ""
    whole = dict(phases=phases, rounds=adl.rounds, camera_net=camera)
    return {"train": Method(init, None, embed_, ("net",), warm_start, **whole)}
