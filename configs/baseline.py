"""Strong baseline (BoT style): CE + batch-hard triplet on ResNet50.

Variants: market, duke, msmt17, me_reid, synthetic (small, 2 CPU cores), smoke (seconds).
"""

from ml_collections import ConfigDict

from reid_jax import presets

VARIANTS = {
    "market": lambda t: presets.image_set(t, "market1501"),
    "duke": lambda t: presets.image_set(t, "dukemtmc"),
    "msmt17": lambda t: presets.image_set(t, "msmt17"),
    "me_reid": lambda t: presets.image_set(t, "me_reid"),
    "synthetic": presets.synthetic,
    "smoke": presets.smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("baseline", variant, VARIANTS))
