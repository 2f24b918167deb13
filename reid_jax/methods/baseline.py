"""Strong baseline: one encoder, cross entropy + batch-hard triplet (BoT, BNNeck by config).

The shortest complete method; copy it to begin a new one.
"""

import jax
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.losses import identity
from reid_jax.methods import FIELDS_OF_SOME, Method, _steps
from reid_jax.methods._beside import METRICS as BESIDE
from reid_jax.methods._beside import Beside
from reid_jax.models import heads

TITLE = "Baseline"
METRICS = {"ce": "Identity cross entropy", "triplet": "Identity triplet", "accuracy": "Identity accuracy"}
METRICS |= {"circle": "Circle loss", "d_ap": "Distance to positives", "d_an": "Distance to negatives"}
METRICS |= BESIDE | {"generated": "Cross entropy of generated images"}
LABELS = "all"


class Baseline(Method):
    """The only stage."""

    accumulates = embeds_frames = True
    heeds = FIELDS_OF_SOME

    def __init__(self, config, info):
        super().__init__(config, info)
        self.network = heads.build(config.model, info.num_pids, info.axis_name, num_cams=info.num_cams)
        self.encoder = heads.encoder(self.network, config.train.accumulate)
        self.frames_apart = heads.frames_apart(config.model)
        self.beside = Beside(config, self.info)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)} | self.beside.tx
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def streams(self, state):
        """The default's, and images that show nobody beside it where there are some."""
        from reid_jax.data import streams

        made, data = super().streams(state), self.config.data
        if not data.generated:
            return made
        if self.info.unlabelled is None or self.config.train.accumulate != 1:
            raise ConfigError(
                "config.data.generated needs the images themselves and config.train.accumulate=1; set both, "
                "or leave it empty"
            )
        seed, rows = _steps.part_seed(self.config.seed, 1), self.info.unlabelled
        return made | {
            "generated": streams.shuffled(rows, data, seed, ids=data.generated_images, instances=1)
        }

    def init(self, key):
        image = self.blank()
        nets = {"net": self.encoder.init(key, image)}
        if self.beside.tx:
            branches, _ = jax.eval_shape(lambda v: self.encoder.apply(v, image, False), nets["net"])
            nets |= self.beside.init(key, branches)
        return self.fresh(nets, self.tx)

    def step(self, state, batch):
        drawn, batch, key = batch.get("generated"), batch["train"], self.key(state)
        image, pid = self.view(batch), batch["pid"]
        resting = _steps.rests(self.config.optim, self.info, state.step)

        def loss(nets):
            inputs = nets["net"], image, key, resting, batch.get("camid")
            out, stats = _steps.encoded(self.encoder, *inputs)
            ce, terms, watched = _steps.identity_terms(self.config.loss, out, pid, self.axis)
            more, alone = self.beside.terms(nets, out, pid, key)
            if drawn is not None:
                more["generated"], stats = self.lsro(nets["net"], stats, drawn, key, resting)
            total = sum((terms | more).values(), ce)
            metrics = {"loss": total, "ce": ce, "accuracy": _steps.accuracy(out, pid)}
            return total + alone, {"net": stats}, metrics | terms | more | watched, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def lsro(self, variables, stats, batch, key, resting=None):
        """(loss f[] of images that show nobody, batch_stats behind theirs): all classes are as likely.

        Zheng et al., ICCV 2017, eq. 7; the images go through the network in a pass of their own.
        """
        variables, key = {**variables, "batch_stats": stats}, jax.random.fold_in(key, 1)
        unknown = jnp.full_like(batch["camid"], -1)
        out, stats = _steps.encoded(self.encoder, variables, self.view(batch), key, resting, unknown)
        losses = [identity.cross_entropy(x, jnp.zeros_like(unknown), label_smooth=1.0) for x in out.logits]
        return self.config.loss.generated * _steps.joined(self.config.loss, losses), stats


STAGES = {"train": Baseline}
