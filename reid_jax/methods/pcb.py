"""PCB with refined part pooling (Sun et al., ECCV 2018): a classifier for every part, by the published code.

"pcb" is the baseline with head "stripes", cross entropies summed over the stripes and no triplet
(configs/pcb.py), on batches that hold every image once an epoch. "rpp" takes its net over and tells the parts
pixel by pixel (head "refined"): the pixels' classifier alone learns first, all else as in a test (the
paper's induction), then everything together.
"""

from reid_jax.fields import choice, namespace, overlay, plain, within
from reid_jax.methods import FIELDS_OF_SOME, Part, _steps
from reid_jax.methods.baseline import Baseline

TITLE = "PCB"
FIELDS = dict(
    induce=5.0,  # epochs of the induction; 0: all together from the start, as in the published code
    induce_lr=0.1,  # its learning rate
)
METRICS = {"ce": "Identity cross entropy, sum of the stripes", "accuracy": "Identity accuracy"}
LABELS = "all"
MASK = "local_mask"  # the pixels' classifier
CONSTANT = {"schedule": "step", "milestones": (), "warmup_steps": 0}


class Pcb(Baseline):
    """Stage "pcb": equal stripes."""

    heeds = FIELDS_OF_SOME[:-1]  # no generated images

    def streams(self, state):
        """data.ids * data.instances images a batch, each once an epoch."""
        from reid_jax.data import streams

        del state
        return {"train": streams.shuffled(self.info.labelled, self.config.data, self.config.seed)}


class Rpp(Pcb):
    """Stage "rpp": refined parts; the optimiser of the induction is kept under "mask"."""

    def __init__(self, config, info):
        within("pcb", config.pcb, induce=(0, None), induce_lr=(0, None))
        choice("model.head", config.model.head, ("stripes", "refined"))
        config = namespace(overlay(plain(config), {"model": {"head": "refined"}}))
        super().__init__(config, info)
        constant = namespace(plain(config.optim) | {"groups": (), "freeze": (), **CONSTANT})
        self.induction = {"mask": _steps.optimiser(constant, self.info, lr=config.pcb.induce_lr)}

    def init(self, key):
        state = super().init(key)
        mask = state.nets["net"]["params"][MASK]
        return state._replace(opt={**state.opt, "mask": self.induction["mask"].init(mask)})

    def inherit(self, state, load, extract):
        """All of stage "pcb", which has no classifier of pixels; nothing where that stage is left out."""
        del extract
        if "pcb" in self.config.train.skip:
            return state
        earlier, fresh = load("pcb", "net"), state.nets["net"]["params"][MASK]
        net = {**earlier, "params": {**earlier["params"], MASK: fresh}}
        return state._replace(nets={**state.nets, "net": net})

    def part(self, i):
        joint = Part("joint", self.step, self.streams, self.info.total_steps)
        induced = Part("induced", self.induced, self.streams, epochs=self.config.pcb.induce)
        parts = (induced, joint) if self.config.pcb.induce else (joint,)
        return parts[i] if i < len(parts) else None

    def induced(self, state, batch):
        """A step of the pixels' classifier, all else as in a test."""
        batch, net = batch["train"], state.nets["net"]
        image, pid = self.view(batch), batch["pid"]

        def whole(mask):
            return {**net, "params": {**net["params"], MASK: mask["params"]}}

        def loss(nets):
            out, _ = self.encoder.apply(whole(nets["mask"]), image, False)
            ce, tri = _steps.identity_losses(self.config.loss, out, pid, self.axis)
            metrics = {"loss": ce + tri, "ce": ce, "triplet": tri, "accuracy": _steps.accuracy(out, pid)}
            return ce + tri, {}, metrics, None

        alone = state._replace(nets={"mask": {"params": net["params"][MASK]}})
        new, metrics, _ = _steps.descend(loss, alone, self.induction, self.axis)
        new = new._replace(nets={**state.nets, "net": whole(new.nets["mask"])})
        return new, metrics | {"lr": self.config.pcb.induce_lr + 0.0 * metrics["loss"]}


STAGES = {"pcb": Pcb, "rpp": Rpp}
