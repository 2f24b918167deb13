"""MetaBIN (Choi et al., CVPR 2021): trained on several domains, to be used on sets it has never seen.

Variants: protocol1 (all pictures of Market-1501, DukeMTMC-reID, CUHK02, CUHK03 and CUHK-SYSU, 20 x 4 images
and 4 x 4 of every set; `python -m reid_jax dg --protocol 1` tests it); market, duke (one set, its cameras
being the domains); synthetic (the embedded data set, its cameras, minutes on a CPU core); smoke (seconds).
Any field can be changed on the command line: --config.metabin.scatter=0. Sets that a run is to be judged on:
--config.eval.also=viper:/data/VIPeR:0-9,grid:/data/GRID:0-9

Behind a dash: -mldg, batch norms, and all weights take the virtual step (its factor of 1 is our choice); -in,
-half, the same with instance norms, and with gates that stay at a half.

The settings are the published code's, with ResNet-50. What it has beside: mixed precision, a jitter of the
hue where cameras are the domains.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def recipe(t, epochs, milestones, warmup_steps):
    """What all full-size variants share; warmup_steps: ten epochs."""
    t["data"].update(instances=4, meta_instances=4, pad_crop=10, erase=0.0)
    t["optim"].update(kind="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, milestones=milestones)
    t["optim"].update(warmup_steps=warmup_steps, warmup_factor=0.01)
    t["train"].update(epochs=epochs)
    network(t)


def network(t):
    """Norms, losses, and the double rate of biases."""
    t["model"].update(norm="metabin", neck="bnneck")
    t["loss"].update(triplet="euclidean", margin=0.3, feature="before_bn")
    t["loss"].update(label_smooth=0.1, smoothing="others")
    t["optim"].update(groups=(("bias$", 2.0, None),))


def protocol1(t):
    """The five sources of protocol 1, 121,765 pictures, 100 epochs."""
    presets.image_set(t, "market1501+dukemtmc+cuhk02+cuhk03+cuhk_sysu")
    recipe(t, epochs=100, milestones=(40, 70), warmup_steps=15220)
    t["data"].update(ids=20, meta_ids=4, train_on="all")
    t["metabin"].update(train_domains=3)


def market(t):
    """Market-1501, domains are its 6 cameras; batches of 24 x 4 images and of 4 x 4 of every camera."""
    presets.image_set(t, "market1501")
    recipe(t, epochs=120, milestones=(50, 90), warmup_steps=1350)
    t["data"].update(domains="camera", ids=24, meta_ids=4, jitter=(0.15, 0.15, 0.1))
    t["metabin"].update(train_domains=3, gate_factor=20.0, ce=1.0)


def duke(t):
    """DukeMTMC-reID, domains are its 8 cameras; batches of 24 x 4 images and of 3 x 4 of every camera."""
    market(t)
    t["data"].update(name="dukemtmc", meta_ids=3)
    t["optim"].update(warmup_steps=1720)
    t["metabin"].update(train_domains=4, gate_factor=50.0)


def synthetic(t):
    """The embedded data set and the narrow net; a rate for training from random weights."""
    presets.synthetic(t)
    network(t)
    t["data"].update(domains="camera", meta_ids=4, meta_instances=2, erase=0.0)
    t["optim"].update(kind="sgd", lr=0.05)
    t["metabin"].update(gate_factor=2.0)


def smoke(t):
    """Seconds: a few steps of everything."""
    presets.smoke(t)
    network(t)
    t["data"].update(domains="camera", meta_ids=2, meta_instances=2)
    t["optim"].update(kind="sgd", lr=0.01)
    t["metabin"].update(first_base=2)


VARIANTS = {"protocol1": protocol1, "market": market, "duke": duke, "synthetic": synthetic, "smoke": smoke}
MLDG = dict(params="all", gate_factor=1.0, ce=1.0, scatter=0.0, shuffle=0.0)
ROWS = {
    "mldg": {"model": dict(norm="batch"), "metabin": MLDG},
    "in": {"model": dict(norm="instance"), "metabin": MLDG},
    "half": {"model": dict(norm="bin_half"), "metabin": MLDG},
}


def get_config(variant="protocol1"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("metabin", variant, VARIANTS, ROWS)
    t = presets.tree("metabin", name, VARIANTS)
    for section, fields in ROWS.get(row, {}).items():
        t[section].update(fields)
    return ConfigDict(t)
