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
gradient from what is a matter of the stops in `game`. Round r consists of the parts 2 r (intra) and 2 r + 1
(inter); `begin` labels the images and makes a fresh classifier, `intra_step` and `inter_step`, of steps.py,
train.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import adversarial
from reid_jax.methods import Part, _steps
from reid_jax.methods.adl import critic, nets
from reid_jax.methods.adl.steps import Steps
from reid_jax.models import heads, pooling

TITLE = "ADL"
FIELDS = dict(
    rounds=40,  # of clustering and training within cameras, then over all
    mode="original",  # fixed numbers of clusters | threshold: cut at a quantile of the distances
    intra=dict(  # within cameras
        clusters=600,  # of each camera; the width of its classifier in either mode
        quantile=0.0025,  # threshold mode
        instances=8,  # images of each camera in a batch
        lr=5e-4,  # of the backbone
        head_lr=5e-3,  # of everything else
        epochs=2,  # of a round
    ),
    inter=dict(  # over all cameras; batches are data.ids x data.instances
        clusters=800, quantile=0.0017, lr=1e-3, head_lr=1e-2, epochs=2
    ),
    momentum=0.9,  # SGD; the decay is optim.weight_decay
    triplet=1.0,  # weight of the triplet loss (inter)
    # keep | mask: classes that a round leaves without images stay in the softmax, or count for nothing;
    # auto: keep in mode original, as IICS, mask in mode threshold
    unused_classes="auto",
    k1=20,  # re-ranking before clustering: length of the reciprocal lists,
    k2=6,  # images a set is averaged over,
    lambda_value=0.3,  # weight of the original distance
    mix=0.02,  # weight of the classifiers' similarity in round 0,
    mix_power=0.6,  # falling as (1 - round / rounds) ** mix_power
    dense_limit=20_000,  # more images are clustered over neighbour lists, see methods/adl/labels.py
    candidates=100,  # there: nearest images by feature that may become neighbours
    frifm_stages=(1, 2, 3, 4),  # of the backbone, with a FRIFM behind them; () = none
    frifm_ratio=16,
    adversarial_stages=("intra", "inter"),  # phases with the game against E, H and D; () = none
    lam=0.5,  # weight of L_ADL
    lam_cam=0.1,  # weight of the camera classifier's loss
    encoder_input="detached",  # detached | live: whether E's losses reach the backbone through its input
    transform="exp",  # exp | linear: L_ADL is exp(omega / temperature) or omega
    temperature=1.0,
    critic_input_norm="layer",  # layer | none
    schedule="simultaneous",  # simultaneous | blocks: critic and all others move in turn
    block=10,  # steps of a turn
    encoder_plays=True,  # False: E gets no gradient of L_ADL, and cannot win by hiding the camera
    critic_optim="sgd",  # sgd | adam: of the critic
    critic_lr=0.0,  # 0: head_lr
    critic_steps=1,  # of the critic in a step of all players, on the same features with other partners
    held_out=0,  # test pictures by which the critic's omega is measured at every evaluation; 0 = none
    aibn_lr=0.0,  # of AIBN's mixing weights; 0: that of the backbone
    frifm_lr=0.0,  # of the FRIFMs; 0: head_lr
    frifm_from=1,  # round from which on they train
)
METRICS = {
    "loss_stage": "Loss on pseudo labels",
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "adl": "Adversarial loss",
    "omega": "Critic's value omega",
    "cam_ce": "Camera cross entropy",
    "cam_accuracy": "Camera accuracy",
    "aibn": "Weight of batch statistics in AIBN, mean",
    "aibn_most": "Weight of batch statistics in AIBN, largest",
}
STUDY = {
    "title": "The critic on people that were not trained on",
    "link": "Critic",
    "lead": "omega of pairs of features and camera features that belong together, and of shuffled ones: from "
    "-1.386 (the critic tells nothing) to 0. A critic at the floor has nothing to teach the features.",
    "figures": {
        "omega_held_out": ("omega", "of test pictures"),
        "bound": ("bound", "of the Jensen-Shannon divergence by it: 0 at the floor, at most 0.69"),
    },
}
LABELS = "none"
CAMERAS = True
ROWS = {  # of the paper's Table 4: (FRIFM, adversarial game)
    (True, True): "ADL",
    (True, False): "IICS with FRIFM",
    (False, True): "IICS with ADL's game",
    (False, False): "IICS",
}
PHASES = {"intra": "heads", "inter": "joint"}  # of a round in order: the classifier that each trains
PLAYERS = ("encoder", "camera", "critic")  # of the adversarial game
_ROWS = 512  # images whose class scores are computed at a time


class Adl(Steps):
    """The only stage.

    Norms of heads, E and H take the statistics of the global batch, the backbone those that model.bn_group
    says. Raises ConfigError for settings that cannot be.
    """

    def __init__(self, config, info):
        super().__init__(config, info)
        adl = config.adl
        self.rounds, self.cameras = adl.rounds, info.num_cams
        self.players = PLAYERS if adl.adversarial_stages else ()
        self.camera_net = "camera" if self.players else ""
        within("adl", adl, rounds=(1, None), candidates=(1, None))
        within("adl", adl, k1=(1, None), k2=(1, None), lambda_value=(0, 1))
        for phase in PHASES:
            within(f"adl.{phase}", getattr(adl, phase), clusters=(1, None), quantile=(0, 1))
        for phase in adl.adversarial_stages:
            choice("adl.adversarial_stages", phase, tuple(PHASES))
        choice("adl.schedule", adl.schedule, ("simultaneous", "blocks"))
        choice("adl.transform", adl.transform, adversarial.TRANSFORMS)
        choice("adl.critic_input_norm", adl.critic_input_norm, adversarial.FORMS)
        self.live = choice("adl.encoder_input", adl.encoder_input, ("detached", "live")) == "live"
        choice("adl.critic_optim", adl.critic_optim, ("sgd", "adam"))
        within("adl", adl, critic_steps=(1, None), held_out=(0, None), frifm_from=(1, None))
        self.modules = self.networks()
        if self.players and adl.held_out:
            self.study = critic.study(self)
        self.tx = {phase: self.optimisers(phase) for phase in PHASES}

    def networks(self):
        """{name: module}, those of the game where it is played."""
        adl, axis, cameras = self.config.adl, self.axis, self.cameras
        choice("adl.mode", adl.mode, ("original", "threshold"))
        unused = choice("adl.unused_classes", adl.unused_classes, ("auto", "keep", "mask"))
        mask = unused == "mask" or (unused == "auto" and adl.mode == "threshold")
        modules = {
            "net": nets.Pooled(self.backbone(), pooling.build(self.config.model)),
            "heads": nets.CameraHeads(cameras, adl.intra.clusters, mask, axis),
            "joint": nets.JointHead(adl.inter.clusters, mask, axis),
        }
        if self.players:
            game = nets.CameraEncoder(axis), nets.CameraHead(cameras, axis), nets.Critic()
            modules |= dict(zip(PLAYERS, game, strict=True))
        return modules

    def backbone(self):
        """config.model's with a FRIFM behind some of its stages."""
        adl, stages = self.config.adl, set(self.config.adl.frifm_stages)
        if not stages <= {1, 2, 3, 4}:
            raise ConfigError(
                f"config.adl.frifm_stages is {tuple(adl.frifm_stages)}; stages are 1, 2, 3 and 4"
            )

        def refine(stage):
            return nets.Frifm(adl.frifm_ratio, name=f"frifm{stage}") if stage in stages else None

        return heads.trunk(self.config.model, self.axis, refine if stages else None)

    def optimisers(self, phase):
        """{network: optax chain} of a phase: PyTorch's SGD; all but the backbone at head_lr, FRIFM too."""
        adl, rates = self.config.adl, getattr(self.config.adl, phase)

        def sgd(rate):
            return _steps.sgd(rate, momentum=adl.momentum, weight_decay=self.config.optim.weight_decay)

        def label(path, _):
            names = [str(k.key) for k in path]
            if adl.aibn_lr and names[-1] == "adaptive_weight":
                return "aibn"
            return "new" if any(n.startswith("frifm") for n in names) else "backbone"

        def labels(params):
            return jax.tree_util.tree_map_with_path(label, params)

        chains = {"backbone": sgd(rates.lr), "new": sgd(adl.frifm_lr or rates.head_lr)}
        net = optax.partition(chains | ({"aibn": sgd(adl.aibn_lr)} if adl.aibn_lr else {}), labels)
        players = PLAYERS if phase in adl.adversarial_stages else ()
        chains = {"net": net} | {name: sgd(rates.head_lr) for name in (PHASES[phase], *players)}
        if players:
            rate = adl.critic_lr or rates.head_lr
            chains["critic"] = optax.adam(rate) if adl.critic_optim == "adam" else sgd(rate)
        return chains

    def measured(self, info):
        """info as it is: no rate depends on the number of steps."""
        return info

    # ---- states

    def init(self, key):
        """With the heads of both phases: the state keeps its structure. No image has a label."""
        names = ("net", *PHASES.values(), *PLAYERS)
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        image, net = self.blank(), self.modules["net"]
        variables = {"net": net.init(keys["net"], image, False)}
        f = jax.eval_shape(lambda: net.apply(variables["net"], image, False))
        f = jnp.zeros(f.shape, f.dtype)
        inputs = {"heads": (self.to_every_head(f), False), "joint": (f, False)}
        inputs |= {"encoder": (f, False), "camera": (f, False), "critic": (f, f)}
        for name in (*PHASES.values(), *self.players):
            variables[name] = self.modules[name].init(keys[name], *inputs[name])
        variables = {n: {k: v for k, v in x.items() if k != "intermediates"} for n, x in variables.items()}
        memory = {"labels": jnp.full(self.info.num_images, -1, jnp.int32)}
        if self.config.adl.frifm_from > 1:
            memory["frifm"] = jnp.float32(0)  # whether they train
        return self.fresh(variables, self.tx["intra"] | self.tx["inter"], memory)

    def to_every_head(self, f):
        """f [B,D] for the head of every camera: [B,C,D]."""
        return jnp.broadcast_to(f[:, None], (len(f), self.cameras, f.shape[-1]))

    def part(self, i):
        if i >= len(PHASES) * self.rounds:
            return None
        phase = tuple(PHASES)[i % 2]
        return Part(
            phase,
            self.intra_step if phase == "intra" else self.inter_step,
            functools.partial(self.streams, i=i),
            epochs=getattr(self.config.adl, phase).epochs,
            begin=functools.partial(self.begin, i),
            round=i // 2 + 1 if phase == "inter" else 0,
            labels_by_camera=phase == "intra",
        )

    def streams(self, state, i):
        """Batches of part `i` by the pseudo labels, which stand for identities."""
        from reid_jax.data import streams

        data, rows, labels = self.config.data, self.info.unlabelled, state.memory["labels"]
        seed = _steps.part_seed(self.config.seed, i)
        if i % 2:
            return {"train": streams.pk(rows, data, seed, labels=labels)}
        count = self.config.adl.intra.instances
        return {"train": streams.cameras(rows, data, seed, labels=labels, instances=count)}

    def begin(self, i, state, features):
        """State for part `i`: labels of the images by features f[N,D], and what `relabelled` makes new."""
        from reid_jax.methods.adl import labels  # scikit-learn is not needed for the steps

        adl, camid = self.config.adl, self.info.unlabelled.camid
        if i % 2:
            scores = self.class_scores(state, features)
            new = labels.inter(features, scores, camid, self.mix(i // 2), adl, progress=True)
        else:
            new = labels.intra(features, camid, adl, progress=True)
        return self.relabelled(i, state, new)

    def relabelled(self, i, state, labels):
        """State for part `i` with pseudo labels i[N] (-1: none); host code.

        The classifier that the part trains is fresh and knows its numbers of classes, optimisers are fresh;
        backbone, E, H and D stay.
        """
        name = tuple(PHASES.values())[i % 2]
        size = state.nets["joint"]["params"]["classifier"]["kernel"].shape[0]
        classifier = self.fresh_head(name, jax.random.fold_in(jax.random.key(self.config.seed), i), size)
        used = jnp.asarray(self.class_counts(i, labels), jnp.int32)
        variables = {**state.nets, name: {**classifier, "classes": {"used": used}}}
        memory = {**state.memory, "labels": np.asarray(labels, np.int32)}
        if "frifm" in memory:
            memory["frifm"] = np.float32(i // 2 + 1 >= self.config.adl.frifm_from)
        new = self.fresh(variables, self.tx["intra"] | self.tx["inter"], memory)
        return new._replace(step=state.step)

    @functools.partial(jax.jit, static_argnums=(0, 1, 3))
    def fresh_head(self, name, key, size):
        """Variables of classifier `name` of features f[B,size]; compiled once, not in every round."""
        f = jnp.zeros((1, size))
        return self.modules[name].init(key, self.to_every_head(f) if name == "heads" else f, False)

    def class_counts(self, i, labels):
        """Numbers of classes in pseudo labels: i[C] of the cameras or, in parts over all images, i[1].

        At least 1, so that the scores of a classifier without classes are numbers.
        """
        labels, camid = np.asarray(labels), np.asarray(self.info.unlabelled.camid)
        groups = [labels] if i % 2 else [labels[camid == c] for c in range(self.cameras)]
        return np.array([max(group.max(initial=-1) + 1, 1) for group in groups])

    def mix(self, done):
        """mu: weight of the classifiers' similarity after `done` rounds."""
        return self.config.adl.mix * (1 - done / self.rounds) ** self.config.adl.mix_power

    def class_scores(self, state, features):
        """How every camera's classifier sees images: host array f32[N, C classes] of features f[N,D]."""
        scores = np.empty((len(features), self.cameras * self.config.adl.intra.clusters), np.float32)
        for start in range(0, len(features), _ROWS):
            block = np.asarray(features[start : start + _ROWS], np.float32)
            rows = np.zeros((_ROWS, block.shape[1]), np.float32)  # always as many: one compile
            rows[: len(block)] = block
            scores[start : start + len(block)] = self.softmax(state.nets["heads"], rows)[: len(block)]
        return scores

    @functools.partial(jax.jit, static_argnums=0)
    def softmax(self, variables, features):
        """Softmax f32[B, C classes] of every camera's classifier, one after the other."""
        logits = self.modules["heads"].apply(variables, self.to_every_head(features), False)
        return jax.nn.softmax(logits, -1).reshape(len(features), -1)

    def embed(self, state, image, net):
        """Mean of the pooled features of image and mirror image; net "camera": E's camera feature of it."""
        image = self.plain(image)
        both = jnp.concatenate([image, image[:, :, ::-1]])
        f = self.modules["net"].apply(state.nets["net"], both, False).reshape(2, image.shape[0], -1).mean(0)
        return self.modules["encoder"].apply(state.nets["encoder"], f, False) if net == "camera" else f


def title(config):
    """Name of a run in tables: the paper's Table 4, and the mode where it is not IICS'."""
    adl = config.adl
    row = ROWS[bool(adl.frifm_stages), bool(adl.adversarial_stages)]
    return row if adl.mode == "original" else f"{row}, mode {adl.mode}"


STAGES = {"train": Adl}
