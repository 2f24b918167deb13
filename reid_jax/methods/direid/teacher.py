"""DI-REID's teacher: E_id, a ReID network by cross entropy and triplet loss on its pooled feature."""

import jax.numpy as jnp

from reid_jax.methods import _steps
from reid_jax.methods.direid import nets as networks
from reid_jax.methods.direid.stage import Stage, moved, reid


class Teacher(Stage):
    """Stage "teacher"."""

    nets = ("sen",)

    def __init__(self, config, info):
        super().__init__(config, info)
        self.modules = {"E_id": networks.identity_encoder(config, info)}
        self.tx = {"E_id": _steps.optimiser(config.optim, self.info)}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def init(self, key):
        return self.fresh({"E_id": networks.init(self.modules["E_id"], key, self.blank())}, self.tx)

    def step(self, state, batch):
        x, pid, key = self.view(batch["train"]), batch["train"]["pid"], self.device_key(self.key(state))

        def loss(nets):
            f, stats = self.call(nets, "E_id", x, train=True)
            nets = moved(nets, {"E_id": stats})
            (_, logits), stats = self.call(nets, "E_id", f, train=True, method="classify", key=key)
            total = reid(logits, f, pid, self.config.loss, self.axis)
            accuracy = jnp.mean(logits.argmax(-1) == pid)
            return total, {"E_id": stats}, {"loss": total, "accuracy": accuracy}, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def features(self, nets, x, net):
        f, _ = self.call(nets, "E_id", x, train=False)
        return self.call(nets, "E_id", f, train=False, method="classify")[0][0]

    def warm_start(self, state, load):
        return state._replace(nets={"E_id": load("E_id", state.nets["E_id"])})
