"""DG-Net's teacher T: a ReID network by cross entropy alone, every image once an epoch."""

import numpy as np

from reid_jax.data import streams
from reid_jax.methods import _steps
from reid_jax.methods.baseline import Baseline
from reid_jax.methods.dgnet import nets as networks
from reid_jax.models import heads


class Teacher(Baseline):
    """Stage "teacher": the baseline with one ClassBlock."""

    heeds = ("optim.freeze_norms_eval",)

    def __init__(self, config, info):
        super().__init__(config, info)
        self.network = networks.teacher(config, info)
        self.encoder = heads.encoder(self.network, config.train.accumulate)
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}

    def view(self, batch, i=0):
        """Images in the size in which the other stage shows them to the teacher."""
        return networks.enlarged(super().view(batch, i), self.config.dgnet.scale2)

    def plain(self, image):
        return networks.enlarged(super().plain(image), self.config.dgnet.scale2)

    def blank(self):
        d = self.config.data
        return _steps.plain(self.config, np.zeros((1, d.height, d.width, 3), np.uint8))

    def streams(self, state):
        """data.ids * data.instances images a batch."""
        del state
        return {"train": streams.shuffled(self.info.labelled, self.config.data, self.config.seed)}
