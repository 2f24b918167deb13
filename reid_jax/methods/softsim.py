"""Softened similarity (Lin et al., CVPR 2020): unsupervised, without clusters.

At first every image is a class of its own, told from all others by a table of their features. Then each is
also drawn to the k images that are least unlike it, by whole and by stripes; those of its own camera count
as more unlike. There is no official code: rules are of Bottom-up clustering (BUC), on which it was built, and
of an unofficial one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.errors import ConfigError
from reid_jax.eval import unlike
from reid_jax.fields import choice, within
from reid_jax.losses import batch as batches
from reid_jax.losses import contrast
from reid_jax.methods import Method, Part, _steps
from reid_jax.models import heads
from reid_jax.models.pooling import stripe_pool

TITLE = "Softened similarity"
FIELDS = dict(
    hard_epochs=20,  # of the first phase, every image a class of its own
    rounds=20,  # of reliable images and training, after it
    epochs=2,  # of a round
    soft=True,  # False: rounds go on with the first phase's loss
    k=4,  # reliable images of each
    lam=0.6,  # weight of the own class; the reliable images share the rest
    parts=8,  # stripes
    lambda_p=0.5,  # weight of the stripes' distances, against 1 - lambda_p of the whole's
    lambda_c=0.02,  # what images of one camera are more unlike
    temperature=0.1,
    momentum=0.5,  # m of v <- m v + (1 - m) f
    start="features",  # features | zeros: the table at first
    table="moving",  # moving | extracted: rows of rounds follow each step, or are the round's own features
)
METRICS = {"accuracy": "Accuracy, each image a class", "reliable": "Probability of the reliable images"}
LABELS = "none"


def reads_cameras(config):
    """What images of one camera are more unlike."""
    return config.softsim.lambda_c != 0


CAMERAS = reads_cameras


class SoftSim(Method):
    """The only stage: the first phase as one round, then the others. "parts": features of the stripes."""

    nets = ("net", "parts")

    def __init__(self, config, info):
        fields = config.softsim
        self.rounds = 1 + fields.rounds
        super().__init__(config, info)
        check(fields, info.num_images)
        self.network = heads.build(config.model, 0, info.axis_name)
        self.encoder = heads.encoder(self.network)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def measured(self, info):
        """An epoch is a pass over all images."""
        fields, data = self.config.softsim, self.config.data
        steps = max(info.num_images // (data.ids * data.instances), 1)
        epochs = fields.hard_epochs + fields.rounds * fields.epochs
        return info._replace(steps_per_epoch=steps, total_steps=int(epochs * steps))

    def init(self, key):
        """The table is empty until the first phase begins."""
        net = self.encoder.init(key, self.blank())
        size = self.encoder.apply(net, self.blank(), False)[0].test.shape[1]
        images, k = self.info.num_images, self.config.softsim.k
        memory = {"table": jnp.zeros((images, size)), "neighbours": jnp.full((images, k), -1, jnp.int32)}
        return self.fresh({"net": net}, self.tx, memory)

    def part(self, i):
        fields, streams = self.config.softsim, functools.partial(self.streams, i=i)
        if i == 0:
            step = functools.partial(self.step, lam=1.0, moving=True)
            return Part("hard", step, streams, epochs=fields.hard_epochs, begin=self.begin, round=1)
        if i > fields.rounds:
            return None
        lam, moving = fields.lam if fields.soft else 1.0, fields.table == "moving"
        step = functools.partial(self.step, lam=lam, moving=moving)
        features = ("net", "parts") if fields.lambda_p else ("net",)
        options = dict(begin=self.soften, features=features, round=i + 1)
        return Part("soft", step, streams, epochs=fields.epochs, **options)

    def streams(self, state, i):
        """Every image once an epoch."""
        from reid_jax.data import streams

        del state
        seed = _steps.part_seed(self.config.seed, i)
        return {"train": streams.shuffled(self.info.unlabelled, self.config.data, seed)}

    def begin(self, state, features):
        """The table before the first phase."""
        table = np.asarray(features, np.float32)
        if self.config.softsim.start == "zeros":
            table = np.zeros_like(table)
        return state._replace(memory={**state.memory, "table": table})

    def soften(self, state, features):
        """Reliable images of a round; features f[N,D] of "net" and f[N,P C] of "parts"."""
        fields, memory, whole = self.config.softsim, dict(state.memory), features["net"]
        parts = features.get("parts", whole[:, :0])
        parts = parts.reshape(len(whole), fields.parts, parts.shape[1] // fields.parts)
        weights = fields.k, fields.lambda_p, fields.lambda_c
        memory["neighbours"] = unlike.nearest(whole, parts, self.info.unlabelled.camid, *weights)
        if fields.table == "extracted":
            memory["table"] = np.asarray(whole, np.float32)
        return state._replace(memory=memory)

    def step(self, state, batch, lam, moving):
        """One training step; index i32[B]: rows of the set. All devices' features move the table."""
        fields, memory, batch = self.config.softsim, state.memory, batch["train"]
        image, index, near = self.view(batch), batch["index"], memory["neighbours"][batch["index"]]

        def loss_of(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, self.key(state))
            likely = log_likely(out.test, memory["table"], fields.temperature)
            value = soft_cross_entropy(likely, index, near, lam)
            shown = jnp.exp(jnp.take_along_axis(likely, jnp.maximum(near, 0), 1)).sum(1).mean()
            metrics = {"loss": value, "accuracy": jnp.mean(likely.argmax(1) == index), "reliable": shown}
            return value, {"net": stats}, metrics, out.test

        new, metrics, f = _steps.descend(loss_of, state, self.tx, self.axis)
        if moving:
            f, index = (batches.gather(x, self.axis) for x in (f, index))
            table = contrast.moved(memory["table"], f, index, fields.momentum)
            new = new._replace(memory={**memory, "table": table})
        return new, metrics | {"lr": self.rate(state.step)}

    def embed(self, state, image, net):
        if net != "parts":
            return super().embed(state, image, net)
        map_ = self.network.apply(state.nets["net"], self.plain(image), False, method="map")
        return stripe_features(map_, self.config.softsim.parts)


def check(fields, images):
    """ConfigError for fields of config.softsim that cannot be."""
    within("softsim", fields, hard_epochs=(0, None), rounds=(0, None), k=(1, None), parts=(1, None))
    within("softsim", fields, epochs=(0, None), lam=(0, 1), lambda_p=(0, 1), momentum=(0, 1))
    choice("softsim.start", fields.start, ("features", "zeros"))
    choice("softsim.table", fields.table, ("moving", "extracted"))
    if fields.temperature <= 0:
        raise ConfigError(f"config.softsim.temperature is {fields.temperature}; it must lie above 0")
    if images and fields.k >= images:
        raise ConfigError(f"config.softsim.k is {fields.k}, and there are {images} images: lower it")
    if fields.start == "zeros" and not fields.hard_epochs:
        raise ConfigError(
            "config.softsim.start is zeros, which a first phase must fill: set hard_epochs, or start=features"
        )


def stripe_features(map_, parts):
    """Unit features of equal horizontal stripes of maps [B,H,W,C], one behind the other: f[B,parts C]."""
    stripes = _steps.unit(stripe_pool(map_, parts))
    return stripes.reshape(len(stripes), -1)


def log_likely(f, table, temperature):
    """Logarithms of the probabilities of all images for unit features f [B,D]: [B,N]."""
    return jax.nn.log_softmax(f @ lax.stop_gradient(table).T / temperature)


def soft_cross_entropy(likely, index, near, lam):
    """-lam log p_own - (1 - lam) / k sum of log p over the reliable images near i32[B,k], batch mean."""
    own_class = jnp.take_along_axis(likely, index[:, None], 1)[:, 0]
    others = jnp.take_along_axis(likely, jnp.maximum(near, 0), 1).mean(1)  # -1: none yet, and lam is 1
    return -jnp.mean(lam * own_class + (1 - lam) * others)


STAGES = {"train": SoftSim}
