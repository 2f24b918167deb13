"""ICE (Chen, Lagadec, Bremond, ICCV 2021), unsupervised, with the published code's settings.

Variants: market, duke, msmt17 (256x128, 8 clusters x 4 images, 40 rounds of 400 steps); synthetic (small net,
minutes on a CPU core); smoke (seconds). Start the full-size ones from ImageNet weights (config.init.weights).
Any field can be changed on the command line: --config.ice.camera_weight=0 leaves out the cameras.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def market(t):
    """Market-1501. Intervals and warm-up count rounds."""
    presets.image_set(t, "market1501")
    t["data"].update(ids=8, instances=4, pad_crop=10, erase=0.6)
    t["model"].update(head="contrast")
    t["loss"].update(label_smooth=0.1)
    t["optim"].update(lr=3.5e-4, milestones=(), warmup_epochs=10, warmup_factor=0.1)
    t["train"].update(eval_every=5, checkpoint_every=1)


def msmt17(t):
    """MSMT17, Market's settings and places for twice as many clusters."""
    market(t)
    t["data"].update(name="msmt17")
    t["ice"].update(max_clusters=4000)


def synthetic(t):
    """The embedded data set and the narrow net; short-run values. To start from config.init.

    AIBN, as in configs/cluster_contrast.py. Groups as the other methods', with which README.md's figures were
    measured.
    """
    presets.synthetic(t)
    t["data"].update(pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=2, checkpoint_every=2)
    t["model"].update(head="contrast", norm="aibn")
    t["loss"].update(label_smooth=0.1)
    t["optim"].update(lr=1e-3)
    t["ice"].update(rounds=8, steps=80, k1=12, k2=2, eps=0.4, max_clusters=300, alpha=0.99)
    t["ice"].update(sampler="gallery", blur_sigma=(0.1, 0.7))


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    t["data"].update(pad_crop=2)
    t["model"].update(head="contrast")
    t["loss"].update(label_smooth=0.1)
    t["train"].update(eval_every=1)
    t["ice"].update(rounds=2, steps=3, k1=4, k2=2, min_samples=2, max_clusters=20, blur_sigma=(0.1, 0.3))


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": msmt17,
    "synthetic": synthetic,
    "smoke": smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("ice", variant, VARIANTS))
