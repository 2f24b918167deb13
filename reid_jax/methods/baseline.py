"""Strong baseline: one encoder, cross entropy + batch-hard triplet (BoT, BNNeck by config).

The shortest complete method; copy it to begin a new one.
"""

from reid_jax.methods import Method, _steps
from reid_jax.models import heads

TITLE = "Baseline"
METRICS = {"ce": "Identity cross entropy", "triplet": "Identity triplet", "accuracy": "Identity accuracy"}
LABELS = "all"


class Baseline(Method):
    """The only stage."""

    accumulates = embeds_frames = True

    def __init__(self, config, info):
        super().__init__(config, info)
        self.network = heads.build(config.model, info.num_pids, info.axis_name, num_cams=info.num_cams)
        self.encoder = heads.encoder(self.network, config.train.accumulate)
        self.frames_apart = heads.frames_apart(config.model)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def init(self, key):
        return self.fresh({"net": self.encoder.init(key, self.blank())}, self.tx)

    def step(self, state, batch):
        batch = batch["train"]
        image, pid = self.view(batch), batch["pid"]

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, self.key(state), batch["camid"])
            ce, tri = _steps.identity_losses(self.config.loss, out, pid, self.axis)
            metrics = {"loss": ce + tri, "ce": ce, "triplet": tri, "accuracy": _steps.accuracy(out, pid)}
            return ce + tri, {"net": stats}, metrics, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}


STAGES = {"train": Baseline}
