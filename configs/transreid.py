"""TransReID (He et al., ICCV 2021): ViT-B/16, the baseline with another backbone and head.

Variants: market, duke, msmt17, occluded_duke (256x128, 16 x 4 images, 120 epochs of SGD); synthetic (small
net, minutes on a CPU core); smoke (seconds). Rows stand behind a dash, see ROWS: market-baseline,
market-stride12 (the paper's TransReID*), ...; without one it is full. Start the full-size ones from ImageNet
weights (config.init.weights: timm's ViT-B/16; DeiT's with --config.model.backbone=deit_s16).

The published code trains in mixed precision: --config.model.dtype=bfloat16.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

BRANCHES = (0.5, *(0.125,) * 4)  # half the global loss, half the mean of the four local ones
ROWS = {
    "baseline": dict(model=dict()),
    "sie": dict(model=dict(vit_sie=3.0)),
    "jpm": dict(model=dict(head="jpm"), loss=dict(branches=BRANCHES)),
    "full": dict(model=dict(vit_sie=3.0, head="jpm"), loss=dict(branches=BRANCHES)),
    "stride12": dict(model=dict(vit_sie=3.0, head="jpm", vit_stride=12), loss=dict(branches=BRANCHES)),
}


def losses(t):
    """What all variants share: cross entropy and soft-margin triplet on features before the necks."""
    t["model"].update(head="token", neck="bnneck")
    t["loss"].update(triplet="softmax", margin=0.0, feature="before_bn")


def market(t):
    """Market-1501."""
    presets.image_set(t, "market1501")
    losses(t)
    t["data"].update(pad_crop=10, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), erase_area=(0.02, 1 / 3))
    t["data"].update(erase_aspect=(0.3, 1 / 0.3), erase_aspect_log=True, erase_tries=10, erase_fill="normal")
    t["data"].update(resize="bicubic", test_resize="bilinear")
    t["model"].update(backbone="vit_b16")
    t["optim"].update(kind="sgd", lr=0.008, weight_decay=1e-4, groups=(("bias$", 2.0, None),))
    t["optim"].update(schedule="cosine_epochs", first_epoch=1, warmup_epochs=5, warmup_factor=0.01)
    t["optim"].update(lowest=0.002, shared_ends=True)
    t["train"].update(epochs=120)
    t["eval"].update(distance="cosine")  # of unit vectors ranks as Euclidean


def occluded_duke(t):
    """Occluded-DukeMTMC: patches every 11 pixels."""
    market(t)
    t["data"].update(name="dukemtmc", variant="occluded")
    t["model"].update(vit_stride=11)


def synthetic(t):
    """The embedded data set and a narrow ViT, by Adam from random weights; short-run values."""
    presets.synthetic(t)
    losses(t)
    t["model"].update(backbone="vit_narrow", vit_stride=8)
    t["optim"].update(lr=1e-3)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    losses(t)
    t["model"].update(backbone="vit_narrow", vit_stride=8, vit_width=16, vit_depth=2, vit_heads=2)
    t["optim"].update(lr=1e-3)


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": presets.on("msmt17", market),
    "occluded_duke": occluded_duke,
}
VARIANTS |= {"synthetic": synthetic, "smoke": smoke}


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("transreid", variant, VARIANTS, ROWS)
    tree = presets.tree("baseline", name, VARIANTS)
    for section, fields in ROWS[row or "full"].items():
        tree[section].update(fields)
    if row == "stride12" and tree["model"]["backbone"] == "vit_narrow":
        tree["model"].update(vit_stride=6)  # three quarters of a patch, as 12 of 16
    return ConfigDict(tree)
