"""CAP (Wang et al., AAAI 2021), unsupervised with cameras, with the published code's settings.

Variants: market, duke, msmt17 (256x128, 8 proxies x 4 images, 50 rounds of as many steps as labelled images
fill batches); synthetic (small net, the data set of configs/adl.py's, minutes on a CPU core); smoke
(seconds). Any field can be changed on the command line: --config.cap.inter_from=-1.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def market(t):
    """Market-1501. Intervals, milestones and the warm-up count rounds."""
    presets.image_set(t, "market1501")
    t["data"].update(ids=8, instances=4, pad_crop=10, erase_area=(0.02, 0.2), erase_aspect=(0.3, 3.0))
    t["model"].update(head="contrast", pool="avg", stem_relu=False)
    t["optim"].update(lr=3.5e-4, milestones=(20, 40), warmup_epochs=10, warmup_factor=0.01)
    t["train"].update(eval_every=5, checkpoint_every=1)


def synthetic(t):
    """The embedded data set and the narrow net; short-run values. To start from config.init as ADL does."""
    presets.synthetic(t)
    t["data"].update(pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=4, checkpoint_every=4)
    t["model"].update(head="contrast")
    t["optim"].update(lr=1e-3, schedule="step", milestones=(18,), warmup_steps=0)
    t["cap"].update(rounds=24, k1=12, k2=2, inter_from=3, max_proxies=480)


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    t["data"].update(pad_crop=2)
    t["model"].update(head="contrast")
    t["optim"].update(schedule="step", milestones=(1,), warmup_steps=0)
    t["train"].update(eval_every=1)
    t["cap"].update(rounds=2, k1=4, k2=2, min_samples=2, inter_from=1, max_proxies=36)


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": presets.on("msmt17", market),
    "synthetic": synthetic,
    "smoke": smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("cap", variant, VARIANTS))
