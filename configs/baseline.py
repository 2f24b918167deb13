"""Strong baseline (BoT style): CE + batch-hard triplet on ResNet50.

Variants: market, duke, msmt17, me_reid, synthetic (small, 2 CPU cores), smoke (seconds).
"""

from ml_collections import ConfigDict

from reid_jax import config as c

VARIANTS = {
    "market": lambda t: c.image_set(t, "market1501"),
    "duke": lambda t: c.image_set(t, "dukemtmc"),
    "msmt17": lambda t: c.image_set(t, "msmt17"),
    "me_reid": lambda t: c.image_set(t, "me_reid"),
    "synthetic": c.synthetic,
    "smoke": c.smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    tree = c.defaults()
    tree["method"] = "baseline"
    if variant not in VARIANTS:
        raise c.unknown_variant("baseline", variant, VARIANTS)
    VARIANTS[variant](tree)
    return ConfigDict(tree)
