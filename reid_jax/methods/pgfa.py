"""PGFA (Miao et al., ICCV 2019): stripes beside a vector that body points guide, for people partly hidden.

    L = lam * sum over stripes of CE + (1 - lam) * CE of the pose
    score = (s_pose + sum_i v_i v'_i s_i) / (1 + sum_i v_i v'_i),  s = (cosine + 1) / 2

v_i: whether stripe i is seen, by the points (data.points). The score is a ratio of two products of the stored
features, whose last parts + 1 numbers are weights: config.eval.distance is ratioN with N = parts + 1.
"""

import functools

import jax
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.losses import identity
from reid_jax.methods import Method, _matched, _steps
from reid_jax.models import backbones
from reid_jax.models.heads import encoder, pose
from reid_jax.models.layers import BatchNorm

TITLE = "PGFA"
FIELDS = dict(
    parts=3,  # stripes
    dim=256,  # numbers that a classifier sees
    dropout=0.5,
    lam=0.2,  # weight of the stripes' cross entropies; 1 - lam is the pose's
    threshold=0.2,  # confidence above which a body point counts
    # cell (exact means over the map's cells, on the device) | pil (as the published code, on the host: slow)
    heat="cell",
)
METRICS = {
    "part": "Identity cross entropy, sum of the stripes",
    "pose": "Identity cross entropy of the pose",
    "accuracy": "Identity accuracy of the pose",
}
LABELS = "all"
STUDY = _matched.STUDY


class Pgfa(Method):
    """The only stage."""

    def __init__(self, config, info):
        super().__init__(config, info)
        self.own = check(config, info)
        norm = functools.partial(
            BatchNorm, axis_name=backbones.group_axis(config.model, self.axis), rows=config.model.bn_rows
        )
        sizes = info.num_pids, self.own.dim, self.own.dropout
        block = functools.partial(pose.ClassBlock, *sizes, norm=norm, axis_name=self.axis)
        self.network = pose.PoseNet(backbones.build(config.model, self.axis), block, self.own.parts)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)
        self.study = _matched.of(self)

    def init(self, key):
        return self.fresh({"net": encoder(self.network).init(key, self.blank())}, self.tx)

    def streams(self, state):
        """data.ids * data.instances images a batch, each once an epoch."""
        from reid_jax.data import streams

        del state
        return {"train": streams.shuffled(self.info.labelled, self.config.data, self.config.seed)}

    def step(self, state, batch):
        batch, key = batch["train"], self.key(state)
        image, pid = self.view(batch), batch["pid"]
        heat = self.heat(batch, batch["flip"][:, 0], batch["crop"][:, 0])

        def loss(nets):
            rngs = {"dropout": key, "style": key}
            out, changed = self.network.apply(
                nets["net"], image, True, heat, mutable=["batch_stats"], rngs=rngs
            )
            part, whole = losses(out, pid)
            value = total(part, whole, self.own.lam)
            accuracy = jnp.mean(out.pose_logits.argmax(-1) == pid)
            metrics = {"loss": value, "part": part, "pose": whole, "accuracy": accuracy}
            return value, {"net": changed.get("batch_stats", {})}, metrics, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def heat(self, batch, flip=None, crop=None):
        """Function of a map's size (h, w) that gives heat maps f32[B,18,h,w] of a batch's points."""
        d, inputs = self.config.data, (batch["points"], batch["size"])
        if self.own.heat == "cell":
            options = dict(threshold=self.own.threshold, flip=flip, crop=crop, pad=d.pad_crop)
            return lambda shape: pose.cell_heat(*inputs, shape, (d.height, d.width), **options)
        draw = functools.partial(pose.pillow_heat, threshold=self.own.threshold)

        def drawn(shape):
            like = jax.ShapeDtypeStruct((*inputs[0].shape[:2], *shape), jnp.float32)
            heat = jax.pure_callback(lambda *a: draw(*a, shape), like, *inputs)
            return heat if flip is None else jnp.where(flip[:, None, None, None], heat[..., ::-1], heat)

        return drawn

    def embed(self, state, image, net):
        """Test features of pictures whose points are not known."""
        points, size = jnp.zeros((len(image), 18, 3)), jnp.ones((len(image), 2))
        return self.embed_batch(state, {"image": image, "points": points, "size": size}, net)

    def embed_batch(self, state, batch, net):
        """f32[B,D]: see `stored`; of pictures without a label points as if nothing were known of the pose."""
        if "points" not in batch:
            return self.embed(state, batch["image"], net)
        return stored(*self.parts(state, batch, net))

    def parts(self, state, batch, net):
        """(pose f[B,E], stripes f[B,P,C], whether these are seen f[B,P]) of pictures with points."""
        out = self.network.apply(state.nets[net], self.plain(batch["image"]), False, self.heat(batch))
        seen = pose.visible(batch["points"], batch["size"][:, 0], self.own.parts, self.own.threshold)
        return out.pose, out.stripes, seen

    def stripes(self, state, image, points, size):
        """What `_matched` studies."""
        batch = {"image": image, "points": points, "size": size}
        whole, parts, seen = self.parts(state, batch, self.nets[0])
        every = stored(whole, parts, jnp.ones_like(seen))
        features = {"stored": stored(whole, parts, seen), "every": every}
        return features | {"unit": _steps.unit(parts), "seen": seen}


def losses(out, pid):
    """(sum of the stripes' cross entropies f[], that of the pose f[]) of pose.Parts and labels i[B]."""
    parts = [identity.cross_entropy(logits, pid) for logits in out.logits]
    return sum(parts), identity.cross_entropy(out.pose_logits, pid)


def total(part, whole, lam):
    """The loss f[]."""
    return lam * part + (1 - lam) * whole


def stored(whole, parts, seen):
    """Test features f[B,D] of the pose's f[B,E], the stripes' f[B,P,C] and whether these are seen f[B,P].

    Columns a: pose u / sqrt2, 1 / sqrt2, of each stripe v u / sqrt2 and v / sqrt2, u having unit length; then
    b: 1, v. (a . a') / (b . b') is the score.
    """
    half, ones = 0.5**0.5, jnp.ones_like(whole[:, :1])
    seen = seen.astype(whole.dtype)
    stripes = (seen[..., None] * _steps.unit(parts) * half).reshape(len(parts), -1)
    a = [_steps.unit(whole) * half, ones * half, stripes, seen * half]
    return jnp.concatenate([*a, ones, seen], -1)


def check(config, info):
    """config.pgfa; ConfigError for fields that cannot be together, or training rows without points."""
    fields, data = config.pgfa, config.data
    within("pgfa", fields, parts=(1, None), dim=(1, None), threshold=(0, 1), lam=(0, 1))
    choice("pgfa.heat", fields.heat, ("cell", "pil"))
    if not 0 <= fields.dropout < 1:
        raise ConfigError(f"config.pgfa.dropout is {fields.dropout}; it must be 0 or more and below 1")
    if data.frames:
        raise ConfigError(f"config.data.frames is {data.frames}, but PGFA is for pictures: set it to 0")
    if fields.heat == "pil" and data.pad_crop:
        raise ConfigError("config.pgfa.heat=pil knows no crops: set config.data.pad_crop=0, or use cell")
    if config.eval.distance != f"ratio{fields.parts + 1}":
        raise ConfigError(
            f"config.eval.distance is {config.eval.distance!r}; features of {fields.parts} parts are "
            f"compared by their visible parts: set it to ratio{fields.parts + 1}"
        )
    if info.labelled is not None and "points" not in info.labelled.extras:
        raise ConfigError(
            "config.data.points is empty, and PGFA learns from body points: name a file or folder of "
            "AlphaPose's or OpenPose's JSON, or 'true' with synthetic pictures"
        )
    return fields


STAGES = {"train": Pgfa}
