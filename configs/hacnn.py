"""HA-CNN (Li et al., CVPR 2018) with the paper's settings, on images of 160x64, from random weights.

Variants: market, duke, msmt17 (batches of 32, 150 epochs, nothing augmented); synthetic (a narrow net,
minutes on two CPU cores); smoke.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def hacnn(t):
    """What all variants share: two vectors, their cross entropies added, batches of all images in turn."""
    t["model"].update(backbone="hacnn", head="pair")
    t["loss"].update(branches="sum", triplet_weight=0.0)
    t["data"].update(height=160, width=64, batches="shuffled", erase=0.0)


def full_size(t, name):
    """The paper's settings."""
    presets.image_set(t, name)
    hacnn(t)
    t["data"].update(ids=32, instances=1, flip=0.0)
    t["optim"].update(lr=5e-4, milestones=())
    t["train"].update(epochs=150, eval_every=30)
    t["eval"].update(distance="euclidean")


def synthetic(t):
    """The embedded data set and a narrow net; short-run values."""
    presets.synthetic(t)
    hacnn(t)
    t["model"].update(hacnn_widths=(8, 16, 32, 48), hacnn_dim=64)
    t["train"].update(steps=400)  # images of 160x64: five minutes of a CPU core


def smoke(t):
    """A few steps of a tiny net."""
    presets.smoke(t)
    hacnn(t)
    t["model"].update(hacnn_widths=(2, 16, 16, 16), hacnn_dim=4)
    t["data"].update(instances=2)
    t["train"].update(steps=4, eval_every=0)


VARIANTS = {
    "market": lambda t: full_size(t, "market1501"),
    "duke": lambda t: full_size(t, "dukemtmc"),
    "msmt17": lambda t: full_size(t, "msmt17"),
    "synthetic": synthetic,
    "smoke": smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("baseline", variant, VARIANTS))
