"""AGW (Ye et al., PAMI 2021) with the published settings: generalised mean, weighted triplet, center loss.

Variants: market, duke, cuhk03, msmt17 (ReID-Survey's code, 256x128, 16 x 4, 120 epochs); fastreid_market
(fast-reid's AGW: exponent fixed, no center loss, its own cross entropy, erasing and rates); synthetic (small
net, minutes on a CPU core); smoke (seconds). Rows of its ablation behind a dash: market-no_wrt, ...
Start the full-size ones from ImageNet weights (config.init.weights).
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

BACKBONE, SMALL = "resnet50_nl", "slim_nl"


def losses(t):
    """What all variants share: weighted triplet and center loss on the pooled vector, smoothed classes."""
    t["model"].update(neck="bnneck", pool="gem")
    t["loss"].update(triplet="euclidean", mining="weighted", soft_margin=True, feature="before_bn")
    t["loss"].update(center=5e-4, center_lr=0.5, label_smooth=0.1)


def market(t):
    """Market-1501."""
    presets.image_set(t, "market1501")
    losses(t)
    t["data"].update(pad_crop=10, resize="bilinear")
    t["model"].update(backbone=BACKBONE, stem_relu=False)
    t["optim"].update(lr=3.5e-4, weight_decay=5e-4, milestones=(40, 70), first_epoch=1)
    t["optim"].update(warmup_epochs=10, warmup_factor=0.01)
    t["train"].update(epochs=120)


def fastreid_market(t):
    """Market-1501 as fast-reid trains its AGW (there in mixed precision)."""
    market(t)
    t["data"].update(erase_area=(0.02, 0.33), erase_aspect=(0.3, 3.3), erase_aspect_log=True, erase_tries=10)
    t["data"].update(erase_fill=(0.0, 0.0, 0.0), resize="bicubic")
    t["model"].update(stem_relu=True, stem_pool="ceil", pool="gem_fixed", classifier_std=0.01)
    t["loss"].update(center=0.0, smoothing="others")
    t["optim"].update(milestones=(40, 90), first_epoch=0, warmup_epochs=0)
    t["optim"].update(warmup_steps=2000, warmup_factor=0.1, delay_warmup=True)


def synthetic(t):
    """The embedded data set and a narrow ResNet, from random weights; short-run values."""
    presets.synthetic(t)
    losses(t)
    t["model"].update(backbone=SMALL, nl_blocks=(0, 1, 1, 0))


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    losses(t)
    t["model"].update(backbone=SMALL, slim_width=2, slim_blocks=(1, 1), nl_blocks=(0, 1))


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "cuhk03": presets.on("cuhk03", market),
    "msmt17": presets.on("msmt17", market),
    "fastreid_market": fastreid_market,
    "synthetic": synthetic,
    "smoke": smoke,
}
ROWS = {
    "no_gem": {"model": dict(pool="avg")},
    "no_wrt": {"loss": dict(mining="hard", soft_margin=False)},
    "no_center": {"loss": dict(center=0.0)},
    "true_softmax": {"loss": dict(wrt_guard=0.0)},
}


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("agw", variant, VARIANTS, ROWS)
    t = presets.tree("baseline", name, VARIANTS)
    for section, fields in ROWS.get(row, {}).items():
        t[section].update(fields)
    return ConfigDict(t)
