"""Strong baseline (BoT style): CE + batch-hard triplet on ResNet50.

Variants: market, duke, msmt17, me_reid, synthetic (small, 2 CPU cores), smoke (seconds). synthetic_occluded:
the synthetic set whose queries are half hidden. synthetic_source: trained on another synthetic set, tested on
the one that the methods without identities learn from (direct inference). market_mobilenetv2,
synthetic_mobilenetv2: MobileNetV2 in place of the ResNet-50 or the narrow net.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def market_mobilenetv2(t):
    """MobileNetV2 x1.0 on Market-1501, with torchreid's net; the other settings are the baseline's."""
    presets.image_set(t, "market1501")
    t["model"].update(backbone="mobilenetv2_x1_0")


def synthetic_mobilenetv2(t):
    """A narrow and shallow MobileNetV2; strides for pictures of 64x32, whose maps are of 8x4.

    By cross entropy alone, behind a batch norm: with the triplet it did worse on held-out training people.
    """
    presets.synthetic(t)
    t["loss"].update(triplet_weight=0.0)
    t["model"].update(backbone="mobilenetv2", mobilenet_width=0.25, mobilenet_blocks=(1, 1, 2, 2, 1, 1, 1))
    t["model"].update(mobilenet_strides=(2, 1, 1, 2, 2, 1, 1, 1), neck="bnneck")


def synthetic_occluded(t):
    """PGFA's set without its points, to compare with."""
    presets.synthetic(t)
    t["data"]["synthetic"].update(kind="occluded")


def synthetic_source(t):
    """Two synthetic sets, of other people and cameras: it trains on one, and the other tests it."""
    presets.synthetic(t)
    t["data"].update(name="synthetic2+synthetic", target="synthetic")


VARIANTS = {
    "market": lambda t: presets.image_set(t, "market1501"),
    "duke": lambda t: presets.image_set(t, "dukemtmc"),
    "msmt17": lambda t: presets.image_set(t, "msmt17"),
    "me_reid": lambda t: presets.image_set(t, "me_reid"),
    "market_mobilenetv2": market_mobilenetv2,
    "synthetic": presets.synthetic,
    "synthetic_occluded": synthetic_occluded,
    "synthetic_source": synthetic_source,
    "synthetic_mobilenetv2": synthetic_mobilenetv2,
    "smoke": presets.smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("baseline", variant, VARIANTS))
