"""PCB (Sun et al., ECCV 2018): a classifier for every horizontal stripe, by the published code.

The baseline with head "stripes", cross entropies summed over the stripes and no triplet (configs/pcb.py), on
batches that hold every image once an epoch.
"""

from reid_jax.methods.baseline import Baseline

TITLE = "PCB"
METRICS = {"ce": "Identity cross entropy, sum of the stripes", "accuracy": "Identity accuracy"}
LABELS = "all"


class Pcb(Baseline):
    """The only stage."""

    def streams(self, state):
        """data.ids * data.instances images a batch, each once an epoch."""
        from reid_jax.data import streams

        del state
        return {"train": streams.shuffled(self.info.labelled, self.config.data, self.config.seed)}


STAGES = {"train": Pcb}
