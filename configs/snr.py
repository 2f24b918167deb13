"""SNR (Jin et al., CVPR 2020): style normalisation and restitution, to be used on sets it has never seen.

Variants: market, duke (24 x 4); sources (Market-1501 + DukeMTMC-reID + CUHK03 + MSMT17 together); synthetic
(three synthetic sets, small net, minutes on a CPU core); smoke (seconds). Behind a dash, rows of the
ablation: market-no_restitution (instance norm alone), -no_loss, -plus, -minus, and -entropy, the loss of the
code that was published, for classification. Start the full-size ones from ImageNet weights
(config.init.weights).

No code for re-identification was published; rates, weights of the stages and batches are the paper's as they
are remembered, the number of epochs is ours.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def losses(t):
    """The strong baseline's losses, without erasing."""
    t["data"].update(erase=0.0)
    t["model"].update(neck="bnneck")
    t["loss"].update(triplet="euclidean", margin=0.3, feature="before_bn", label_smooth=0.1)


def market(t):
    """Market-1501."""
    presets.image_set(t, "market1501")
    losses(t)
    t["data"].update(ids=24, instances=4, pad_crop=10)
    t["optim"].update(lr=8e-4, milestones=tuple(range(40, 240, 40)), gamma=0.5)
    t["optim"].update(warmup_epochs=20, warmup_factor=0.01)
    t["train"].update(epochs=240)


def synthetic(t):
    """Three synthetic sets of a style each and the narrow net, from random weights; short-run values."""
    presets.synthetic(t)
    losses(t)
    t["data"].update(name="synthetic+synthetic2+synthetic3")
    t["data"]["synthetic"].update(style=1)
    t["snr"].update(stages=(2, 3, 4), weights=(0.1, 0.5, 0.5), reduction=8)
    t["train"].update(steps=800)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    losses(t)
    t["snr"].update(stages=(2, 3), weights=(0.1, 0.5), reduction=4)


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "sources": presets.on("market1501+dukemtmc+cuhk03+msmt17", market),
    "synthetic": synthetic,
    "smoke": smoke,
}
ROWS = {
    "no_restitution": lambda t: t["snr"].update(restore=False),
    "no_loss": lambda t: t["snr"].update(loss="none"),
    "plus": lambda t: t["snr"].update(minus=False),
    "minus": lambda t: t["snr"].update(plus=False),
    "entropy": lambda t: entropy(t["snr"]),
}


def entropy(own):
    """0.01 of every stage but the last."""
    own.update(loss="entropy", stages=own["stages"][:-1], weights=(0.01,) * (len(own["stages"]) - 1))


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("snr", variant, VARIANTS, ROWS)
    tree = presets.tree("snr", name, VARIANTS)
    if row:
        ROWS[row](tree)
    return ConfigDict(tree)
