"""AANet (Tay, Roy and Yap, CVPR 2019), after its description; there is no public code.

Variants: market, duke (ResNet-50, 384x128, trained as PCB); synthetic (small net, minutes on a CPU core);
smoke (seconds). With a row of the paper's ablation behind, as in synthetic-gfn: gfn, pfn (with parts), afn
(with attributes). market and duke want --config.data.attributes: market_attribute.mat, duke_attribute.mat.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

MARKET = (
    ("age", 4, "whole"),
    *((name, 2, "middle") for name in ("backpack", "bag", "handbag")),
    *(("clothes", 2, "lower"), ("down", 2, "lower"), ("up", 2, "middle")),
    *(("hair", 2, "top"), ("hat", 2, "top"), ("gender", 2, "whole")),
    *(("up colour", 9, "middle"), ("down colour", 10, "lower")),
)
DUKE = (
    *((name, 2, "middle") for name in ("backpack", "bag", "handbag")),
    *(("boots", 2, "lower"), ("gender", 2, "whole"), ("hat", 2, "top"), ("shoes", 2, "lower")),
    *(("top", 2, "middle"), ("up colour", 9, "middle"), ("down colour", 8, "lower")),
)
SYNTHETIC = (
    *(("upper", 6, "middle"), ("sleeve", 2, "middle"), ("lower", 3, "lower"), ("hair", 2, "top")),
    *(("hat", 3, "top"), ("bag", 4, "middle"), ("scarf", 2, "top")),
    *(("up colour", 15, "middle"), ("down colour", 15, "lower")),
)
ROWS = {
    "gfn": ("global",),
    "pfn": ("global", "part"),
    "afn": ("global", "part", "attribute"),
    "full": ("global", "part", "attribute", "aam"),
}


def market(t):
    """Market-1501; trained as PCB, with erasing (nobody says how)."""
    presets.image_set(t, "market1501")
    t["data"].update(height=384, width=128, ids=64, instances=1)
    groups = (("^base/", 0.1, None), ("^log_variance$", 1.0, 0.0))
    t["optim"].update(kind="sgd", lr=0.1, nesterov=True, groups=groups, milestones=(40,))
    t["train"].update(epochs=60, eval_every=10)
    t["aanet"].update(attributes=MARKET)


def duke(t):
    """DukeMTMC-reID, Market's settings."""
    market(t)
    t["data"].update(name="dukemtmc")
    t["aanet"].update(attributes=DUKE)


def synthetic(t):
    """The embedded data set, its people's true attributes and the narrow net, by Adam from random weights."""
    presets.synthetic(t)
    t["data"].update(attributes="true")
    t["eval"].update(net="auto")
    t["aanet"].update(attributes=SYNTHETIC, parts=4, dim=64, part_dim=32)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    t["data"].update(attributes="true")
    t["eval"].update(net="auto")
    t["aanet"].update(attributes=SYNTHETIC, parts=2, dim=16, part_dim=8)


VARIANTS = {"market": market, "duke": duke, "synthetic": synthetic, "smoke": smoke}


def get_config(variant="market"):
    """ConfigDict of one variant, VARIANT or VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("aanet", variant, VARIANTS, ROWS)
    tree = presets.tree("aanet", name, VARIANTS)
    tree["aanet"].update(tasks=ROWS[row or "full"])
    return ConfigDict(tree)
