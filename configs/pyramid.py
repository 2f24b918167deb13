"""Pyramid (Zheng et al., CVPR 2019) with the settings of its authors' group's code.

Variants: market, duke, msmt17, cuhk03 (ResNet-101 at 384x128, 8 people x 8 images, 120 epochs of SGD);
market_r50; synthetic (small net, minutes on a CPU core); smoke (seconds). Rows of an ablation follow a dash,
market-both: always both losses; weighed: the paper's weights; ce: no triplet; whole: the whole map alone;
stripes: single stripes alone. Start the full-size ones from ImageNet weights (config.init.weights).
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def branches(t):
    """What all variants share: losses summed over the branches, a wide margin."""
    t["model"].update(head="pyramid")
    t["loss"].update(branches="sum", triplet="euclidean", margin=1.4)


def market(t, name="market1501"):
    """Market-1501. Augmented by flips alone."""
    presets.image_set(t, name)
    branches(t)
    t["data"].update(height=384, width=128, ids=8, instances=8, erase=0.0)
    t["model"].update(backbone="resnet101")
    t["optim"].update(kind="sgd", lr=0.01, milestones=(60, 70, 80, 90), gamma=0.5)
    t["train"].update(epochs=120, eval_every=10)


def market_r50(t):
    """Market-1501 with ResNet-50."""
    market(t)
    t["model"].update(backbone="resnet50")


def synthetic(t):
    """The embedded data set and the narrow net, by Adam from random weights; short-run values."""
    presets.synthetic(t)
    branches(t)
    t["model"].update(pyramid_stripes=4, pyramid_levels=(1, 2, 3, 4), pyramid_dim=32)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    branches(t)
    t["model"].update(pyramid_stripes=2, pyramid_levels=(1, 2), pyramid_dim=8)


VARIANTS = {
    "market": market,
    "duke": lambda t: market(t, "dukemtmc"),
    "msmt17": lambda t: market(t, "msmt17"),
    "cuhk03": lambda t: market(t, "cuhk03"),
    "market_r50": market_r50,
    "synthetic": synthetic,
    "smoke": smoke,
}
ROWS = {
    "both": {"pyramid": dict(switch=False)},
    "weighed": {"pyramid": dict(weigh=True)},
    "ce": {"loss": dict(triplet_weight=0.0)},
    "whole": {},
    "stripes": {"model": dict(pyramid_levels=(1,))},
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    name, row = split_row("pyramid", variant, VARIANTS, ROWS)
    t = presets.tree("pyramid", name, VARIANTS)
    for section, fields in ROWS.get(row, {}).items():
        t[section].update(fields)
    if row == "whole":
        t["model"].update(pyramid_levels=(t["model"]["pyramid_stripes"],))
    return ConfigDict(t)
