"""OSNet (Zhou et al., ICCV 2019), its narrower forms and those with instance norm, with torchreid's settings.

Variants: market, duke, msmt17 (x1.0, 250 epochs, cosine), each also with the other recipes behind a dash:
market-step (x1.0, 150 epochs), market-x0_75, market-x0_5, market-x0_25, market-ibn, market-ain;
msmt17_all-ain and the like: from all images of MSMT17, to be tested on other sets (config.eval.also);
synthetic, synthetic_ain (small nets, minutes on a CPU core); smoke (seconds). Start the full-size ones from
torchreid's ImageNet weights (config.init.weights): the classifier trains alone for ten epochs.
"""

import functools

from ml_collections import ConfigDict

from reid_jax import presets

JITTER = (0.2, 0.15, 0.0)  # of brightness and contrast


def osnet(t):
    """What all variants share: cross entropy alone, a feature behind a ReLU, batches of all images."""
    t["model"].update(head="fc")
    t["loss"].update(label_smooth=0.1, triplet_weight=0.0)
    t["data"].update(batches="shuffled", erase=0.0)


def full_size(t, name):
    """x1.0 with the cosine schedule."""
    presets.image_set(t, name)
    osnet(t)
    t["data"].update(ids=64, instances=1)
    t["model"].update(backbone="osnet_x1_0")
    t["optim"].update(kind="amsgrad", lr=1.5e-3, schedule="cosine_epochs")
    t["optim"].update(freeze=("^(?!classifier)",), freeze_epochs=10, freeze_norms_eval=True)
    t["train"].update(epochs=250, eval_every=50)
    t["eval"].update(distance="euclidean")


def stepped(t, backbone, epochs=150, every=60, **optim):
    """The rate falls to a tenth every so many epochs."""
    t["model"].update(backbone=backbone)
    t["optim"].update(schedule="step", milestones=tuple(range(every, epochs, every)), **optim)
    t["train"].update(epochs=epochs)


def small(t, backbone):
    """The two narrowest: twice the batch, twice the rate."""
    stepped(t, backbone, 180, 80, lr=3e-3)
    t["data"].update(ids=128)


def ain(t):
    """OSNet-AIN, for other sets than the one it trains on."""
    t["model"].update(backbone="osnet_ain_x1_0")
    t["data"].update(jitter=JITTER)
    t["train"].update(epochs=100)
    t["eval"].update(distance="cosine")


def ibn(t):
    """OSNet-IBN."""
    stepped(t, "osnet_ibn_x1_0")
    t["data"].update(jitter=JITTER)


RECIPES = {
    "": lambda t: None,
    "-step": lambda t: stepped(t, "osnet_x1_0"),
    "-x0_75": lambda t: stepped(t, "osnet_x0_75"),
    "-x0_5": lambda t: small(t, "osnet_x0_5"),
    "-x0_25": lambda t: small(t, "osnet_x0_25"),
    "-ibn": ibn,
    "-ain": ain,
}


def variant(t, name, recipe, train_on="train"):
    """A data set with one of RECIPES."""
    full_size(t, name)
    t["data"].update(train_on=train_on)
    RECIPES[recipe](t)


def synthetic(t, backbone="osnet_x0_25"):
    """The embedded data set and a narrow net, by Adam from random weights; short-run values."""
    presets.synthetic(t)
    osnet(t)
    t["model"].update(backbone=backbone, fc_dim=128)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    osnet(t)
    t["model"].update(backbone="osnet", osnet_widths=(4, 8, 8, 8), osnet_streams=2, fc_dim=8)


SETS = {
    "market": dict(name="market1501"),
    "duke": dict(name="dukemtmc"),
    "msmt17": dict(name="msmt17"),
    "msmt17_all": dict(name="msmt17", train_on="all"),
}
VARIANTS = {
    f"{label}{recipe}": functools.partial(variant, recipe=recipe, **fields)
    for label, fields in SETS.items()
    for recipe in RECIPES
}
VARIANTS |= {
    "synthetic": synthetic,
    "synthetic_ain": lambda t: synthetic(t, "osnet_ain_x0_25"),
    "smoke": smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("baseline", variant, VARIANTS))
