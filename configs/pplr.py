"""PPLR (Cho et al., CVPR 2022), unsupervised, with the published code's settings.

Variants: market, duke, msmt17 (384x128, 16 clusters x 4 images, 50 rounds of 400 steps); synthetic (small
net, minutes on a CPU core); smoke (seconds); market-cameras and the like: with proxies of every camera. Start
the full-size ones from ImageNet weights (config.init.weights).
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def market(t):
    """Market-1501. Intervals and milestones count rounds; norms see 16 rows at a time, as on four GPUs."""
    presets.image_set(t, "market1501")
    t["data"].update(height=384, ids=16, instances=4, pad_crop=10)
    t["model"].update(head="necks", stripes_parts=3, bn_rows=16)
    t["loss"].update(label_smooth=0.1)
    t["optim"].update(lr=3.5e-4, milestones=(20, 40))
    t["train"].update(eval_every=5, checkpoint_every=1)


def synthetic(t):
    """The embedded data set and the narrow net; short-run values. To start from config.init.

    AIBN, as in configs/cluster_contrast.py; two parts of the map's eight rows.
    """
    presets.synthetic(t)
    t["data"].update(pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=2, checkpoint_every=2)
    t["model"].update(head="necks", stripes_parts=2, pool="avg", norm="aibn")
    t["loss"].update(label_smooth=0.1)
    t["optim"].update(lr=1e-3)
    t["pplr"].update(rounds=8, steps=120, k1=12, k2=2, eps=0.4, max_clusters=300, smooth_rounds=2)


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    t["data"].update(pad_crop=2)
    t["model"].update(head="necks", stripes_parts=2, pool="avg")
    t["loss"].update(label_smooth=0.1)
    t["train"].update(eval_every=1)
    t["pplr"].update(rounds=2, steps=3, k1=4, k2=2, min_samples=2, max_clusters=20, smooth_rounds=1)
    t["pplr"].update(neighbours=4, cameras=True)


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": presets.on("msmt17", market),
    "synthetic": synthetic,
    "smoke": smoke,
}


def cameras(t):
    """With proxies of every camera, and the radius of that."""
    t["pplr"].update(cameras=True, eps=0.4)


ROWS = {"cameras": cameras}


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("pplr", variant, VARIANTS, ROWS)
    tree = presets.tree("pplr", name, VARIANTS)
    if row:
        ROWS[row](tree)
    return ConfigDict(tree)
