"""Softened similarity (Lin et al., CVPR 2020), unsupervised with cameras; there is no official code.

Variants: market, duke, msmt17 (256x128, 16 images, 20 epochs and 20 rounds of 2, Adam as the other
unsupervised methods); market_buc (Bottom-up clustering's SGD and empty table), market_unofficial (the
unofficial code's net, images, rate and table); synthetic (small net, the data set of configs/adl.py's,
minutes on a CPU core); smoke (seconds). Any field can be changed on the command line:
--config.softsim.lambda_c=0.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def market(t):
    """Market-1501. Milestones count passes over the images, intervals count rounds."""
    presets.image_set(t, "market1501")
    t["data"].update(ids=16, instances=1, pad_crop=10)
    t["model"].update(head="contrast", pool="avg")
    t["optim"].update(lr=3.5e-4, milestones=(16,))
    t["train"].update(eval_every=4, checkpoint_every=1)


def market_buc(t):
    """Bottom-up clustering's optimiser: SGD of 0.1, the backbone's a tenth of it."""
    market(t)
    t["optim"].update(kind="sgd", lr=0.1, momentum=0.9, nesterov=True, groups=(("^base/", 0.1, None),))
    t["softsim"].update(start="zeros")


def market_unofficial(t):
    """The unofficial code's: plain SGD, a map of 256 channels, large images, no augmentation."""
    market(t)
    t["data"].update(ids=8, height=768, width=256, flip=0.0, pad_crop=0, erase=0.0)
    t["model"].update(head="contrast_reduced")
    t["optim"].update(kind="sgd", lr=0.01, momentum=0.0, milestones=(15,))
    t["softsim"].update(hard_epochs=0, rounds=25, epochs=1, lam=0.9, table="extracted")


def synthetic(t):
    """The embedded data set and the narrow net; short-run values. To start from config.init as ADL does."""
    presets.synthetic(t)
    t["data"].update(ids=32, instances=1, pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=4, checkpoint_every=4)
    t["model"].update(head="contrast")
    t["optim"].update(lr=1e-3, schedule="step", milestones=(24,), warmup_steps=0)
    t["softsim"].update(hard_epochs=4, rounds=12, parts=4)


def smoke(t):
    """Seconds: the first phase and two rounds."""
    presets.smoke(t)
    t["data"].update(ids=8, instances=1, pad_crop=2)
    t["model"].update(head="contrast")
    t["optim"].update(schedule="step", milestones=(2,), warmup_steps=0)
    t["train"].update(eval_every=1)
    t["softsim"].update(hard_epochs=1, rounds=2, epochs=0.5, parts=2, k=2)


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": presets.on("msmt17", market),
    "market_buc": market_buc,
    "market_unofficial": market_unofficial,
    "synthetic": synthetic,
    "smoke": smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("softsim", variant, VARIANTS))
