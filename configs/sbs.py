"""SBS, fast-reid's stronger baseline (He et al., 2020): circle softmax, soft-margin triplet after the neck.

Variants: market, duke, msmt17 (384x128, 4 x 16, 60 epochs); market_ibn (ResNet-50 IBN-a); synthetic (small
net, minutes on a CPU core); smoke (seconds). Classifiers behind a dash: market-linear, -cosface, -arcface.
Start the full-size ones from ImageNet weights (config.init.weights): the backbone rests for 1000 steps.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

BACKBONE, IBN, SMALL = "resnet50", "resnet50_ibn_a", "slim"


def losses(t):
    """What all variants share: cosines with the circle loss's margin, soft-margin triplet after the neck."""
    t["model"].update(neck="bnneck", pool="gem", classifier="circle", classifier_std=0.01)
    t["loss"].update(triplet="euclidean", soft_margin=True, feature="after_bn")
    t["loss"].update(label_smooth=0.1, smoothing="others")


def market(t, name="market1501", backbone=BACKBONE):
    """Market-1501."""
    presets.image_set(t, name)
    losses(t)
    t["data"].update(height=384, width=128, ids=4, instances=16, pad_crop=10, autoaugment=0.1)
    t["data"].update(erase_area=(0.02, 0.33), erase_aspect=(0.3, 3.3), erase_aspect_log=True, erase_tries=10)
    t["data"].update(erase_fill=(0.0, 0.0, 0.0))
    t["model"].update(backbone=backbone)
    t["optim"].update(lr=3.5e-4, weight_decay=5e-4, freeze=("^base/",), freeze_steps=1000)
    t["optim"].update(schedule="cosine_epochs", delay_epochs=30, lowest=0.002)
    t["optim"].update(warmup_steps=2000, warmup_factor=0.1, delay_warmup=True)
    t["train"].update(epochs=60)


def synthetic(t):
    """The embedded data set and a narrow ResNet, from random weights; short-run values."""
    presets.synthetic(t)
    losses(t)
    t["model"].update(backbone=SMALL, classifier_scale=16.0)


def smoke(t):
    """Seconds; the backbone rests for three of its steps."""
    presets.smoke(t)
    losses(t)
    t["data"].update(autoaugment=0.1)
    t["model"].update(backbone=SMALL, slim_width=2, slim_blocks=(1, 1), classifier_scale=16.0)
    t["optim"].update(freeze=("^base/",), freeze_steps=3)


VARIANTS = {
    "market": market,
    "market_ibn": lambda t: market(t, backbone=IBN),
    "duke": lambda t: market(t, "dukemtmc"),
    "msmt17": lambda t: market(t, "msmt17"),
    "synthetic": synthetic,
    "smoke": smoke,
}
ROWS = {
    "linear": {"model": dict(classifier="linear")},
    "cosface": {"model": dict(classifier="cosface", classifier_scale=30.0, classifier_margin=0.35)},
    "arcface": {"model": dict(classifier="arcface", classifier_scale=30.0, classifier_margin=0.5)},
}


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-CLASSIFIER; ConfigError for an unknown one."""
    name, row = split_row("sbs", variant, VARIANTS, ROWS)
    t = presets.tree("baseline", name, VARIANTS)
    for section, fields in ROWS.get(row, {}).items():
        t[section].update(fields)
    return ConfigDict(t)
