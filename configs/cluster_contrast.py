"""Cluster contrast (Dai et al., ACCV 2022), unsupervised, with the published code's settings.

Variants: market, duke, msmt17 (256x128, 16 clusters x 16 images, 50 rounds of 200 steps, MSMT17 400);
synthetic (small net, the data set of configs/adl.py's, minutes on a CPU core); pku; smoke (seconds). Any
field can be changed on the command line: --config.cluster_contrast.hard=True. market-ise and the like: with
ISE's support samples.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def market(t):
    """Market-1501. Intervals and milestones count rounds."""
    presets.image_set(t, "market1501")
    t["data"].update(ids=16, instances=16, pad_crop=10)
    t["model"].update(head="contrast", pool="gem")
    t["optim"].update(lr=3.5e-4, milestones=(20, 40))
    t["train"].update(eval_every=5, checkpoint_every=1)


def duke(t):
    """DukeMTMC-reID, Market's settings."""
    market(t)
    t["data"].update(name="dukemtmc")


def msmt17(t):
    """MSMT17, rounds of 400 steps, places for twice as many clusters."""
    market(t)
    t["data"].update(name="msmt17")
    t["cluster_contrast"].update(steps=400, max_clusters=4000)


def synthetic(t):
    """The embedded data set and the narrow net; short-run values. To start from config.init as ADL does.

    AIBN, unlike the published code: with batch norm the clusters fall apart by camera here and never join.
    Batches heed no camera and eps is 0.5: both chosen on validation people, see README.md.
    """
    presets.synthetic(t)
    t["data"].update(pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=2, checkpoint_every=2)
    t["model"].update(head="contrast", norm="aibn")
    t["optim"].update(lr=1e-3)
    t["cluster_contrast"].update(rounds=8, steps=120, sampler="pk", k1=12, k2=2, eps=0.5, max_clusters=300)


def pku(t):
    """PKU-Reid (2 cameras, 37 people train) from MobileNetV2's ImageNet weights, as `configs/efl.py:pku`."""
    synthetic(t)
    t["data"].update(name="pku_reid", erase=0.5, erase_area=(0.02, 0.4))
    t["model"].update(backbone="mobilenet_v2", last_stride=2, norm="batch")
    t["init"].update(weights="mobilenet_v2")  # extra `pretrained`
    t["optim"].update(lr=3.5e-4)
    t["cluster_contrast"].update(rounds=4, steps=50)


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    t["data"].update(pad_crop=2)
    t["model"].update(head="contrast")
    t["train"].update(eval_every=1)
    t["cluster_contrast"].update(rounds=2, steps=3, k1=4, k2=2, min_samples=2, max_clusters=20)


VARIANTS = {
    "market": market,
    "duke": duke,
    "msmt17": msmt17,
    "synthetic": synthetic,
    "pku": pku,
    "smoke": smoke,
}


def ise(t):
    """ISE (Zhang et al., CVPR 2022): support samples; its code's settings for Market and for MSMT17."""
    own, large = t["cluster_contrast"], t["data"]["name"] == "msmt17"
    own.update(support=True)
    if t["model"]["backbone"] != "narrow":
        own.update(steps=400, rounds=50 if large else 70, hard=not large, momentum=0.1 if large else 0.2)
        own.update(eps=0.7 if large else 0.4, support_weight=0.01 if large else 0.1)
        t["optim"].update(milestones=(20, 40) if large else (30, 60))


ROWS = {"ise": ise}


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("cluster_contrast", variant, VARIANTS, ROWS)
    tree = presets.tree("cluster_contrast", name, VARIANTS)
    if row:
        ROWS[row](tree)
    return ConfigDict(tree)
