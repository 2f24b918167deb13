"""Cluster contrast (Dai et al., ACCV 2022), unsupervised, with the published code's settings.

Variants: market, duke, msmt17 (256x128, 16 clusters x 16 images, 50 rounds of 200 steps, MSMT17 400);
synthetic (small net, the data set of configs/adl.py's, minutes on a CPU core); smoke (seconds). Any field can
be changed on the command line: --config.cluster_contrast.hard=True.
"""

from ml_collections import ConfigDict

from reid_jax import presets


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
    """MSMT17, rounds of 400 steps."""
    market(t)
    t["data"].update(name="msmt17")
    t["cluster_contrast"].update(steps=400)


def synthetic(t):
    """The embedded data set and the narrow net; short-run values. To start from config.init as ADL does.

    AIBN, unlike the published code: with batch norm the clusters fall apart by camera here and never join.
    Batches heed no camera, as when the figures in README.md were measured.
    """
    presets.synthetic(t)
    t["data"].update(pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=2, checkpoint_every=2)
    t["model"].update(head="contrast", norm="aibn")
    t["optim"].update(lr=1e-3)
    t["cluster_contrast"].update(rounds=8, steps=120, sampler="pk", k1=12, k2=2, eps=0.4, max_clusters=300)


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    t["data"].update(pad_crop=2)
    t["model"].update(head="contrast")
    t["train"].update(eval_every=1)
    t["cluster_contrast"].update(rounds=2, steps=3, k1=4, k2=2, min_samples=2, max_clusters=20)


VARIANTS = {"market": market, "duke": duke, "msmt17": msmt17, "synthetic": synthetic, "smoke": smoke}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("cluster_contrast", variant, VARIANTS))
