"""PGFA (Miao et al., ICCV 2019) with the published code's settings.

Variants: occluded_duke, market, duke (384x128, 3 stripes, batches of 32, 60 epochs of SGD); partial (6
stripes, trained on Market for the partial sets); synthetic (small net, minutes on a CPU core),
synthetic_occluded (half hidden queries); smoke (seconds). All but the synthetic ones want
--config.data.points: AlphaPose's or OpenPose's points of all pictures. Start the full-size ones from ImageNet
weights (config.init.weights): the backbone learns ten times slower than the head.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def market(t):
    """Market-1501. Augmented by flips alone, as the code does it."""
    presets.image_set(t, "market1501")
    t["data"].update(height=384, width=128, ids=32, instances=1, erase=0.0)
    t["optim"].update(kind="sgd", lr=0.1, nesterov=True, groups=(("^base/", 0.1, None),), milestones=(40,))
    t["train"].update(epochs=60, eval_every=10)
    t["eval"].update(distance="ratio4")


def duke(t):
    """DukeMTMC-reID, Market's settings."""
    market(t)
    t["data"].update(name="dukemtmc")


def occluded_duke(t):
    """Occluded-Duke: the name lists over DukeMTMC-reID, or their own tree."""
    duke(t)
    t["data"].update(variant="occluded")


def partial(t):
    """Trained on Market for the partial sets: name them in config.eval.also. Values of the paper."""
    market(t)
    t["pgfa"].update(parts=6, lam=0.9)
    t["optim"].update(lr=0.02)
    t["eval"].update(distance="ratio7")


def synthetic(t):
    """The embedded data set, its true points and the narrow net, by Adam from random weights."""
    presets.synthetic(t)
    small(t)
    t["pgfa"].update(parts=4, dim=64)
    t["eval"].update(distance="ratio5")


def synthetic_occluded(t):
    """The embedded set whose queries are half hidden: a board in front of each, nothing in the gallery."""
    synthetic(t)
    t["data"]["synthetic"].update(kind="occluded")


def small(t):
    """What the synthetic variants share."""
    t["data"].update(points="true", erase=0.0)
    t["eval"].update(net="auto")


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    small(t)
    t["pgfa"].update(parts=2, dim=8)
    t["eval"].update(distance="ratio3")


VARIANTS = {
    "occluded_duke": occluded_duke,
    "market": market,
    "duke": duke,
    "partial": partial,
    "synthetic": synthetic,
    "synthetic_occluded": synthetic_occluded,
    "smoke": smoke,
}


def get_config(variant="occluded_duke"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("pgfa", variant, VARIANTS))
