"""MMT (Ge, Chen, Li, ICLR 2020), unsupervised domain adaptation, with the published code's settings.

Variants: duke2market, market2duke (256x128, 16 groups x 4 images; two networks on the source, then 40 rounds
of 400 steps on k-means clusters of the target); synthetic (two synthetic sets, small net, minutes on a CPU
core); smoke (seconds). Start the full-size ones from ImageNet weights (config.init.weights). Any field can be
changed on the command line: --config.mmt.cluster=dbscan.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def strong(t):
    """What all variants share: BNNeck, softmax triplet on the pooled vector; the networks' seeds."""
    t["model"].update(neck="bnneck")
    t["loss"].update(feature="before_bn", triplet="softmax", margin=0.0, label_smooth=0.1)
    t["stages"]["source2"] = dict(seed=t["seed"] + 1)
    t["stages"]["adapt"] = dict(optim=dict(schedule="step", milestones=(), warmup_steps=0))


def market2duke(t):
    """Market-1501 to DukeMTMC-reID. Milestones and intervals of the source stages count its epochs.

    8000 steps, the rate falling after 4000 and 7000; Market's identities give 46 batches an epoch.
    """
    presets.image_set(t, "market1501+dukemtmc")
    strong(t)
    t["data"].update(target="dukemtmc", pad_crop=10)
    t["model"].update(stem_relu=False)
    t["optim"].update(lr=3.5e-4, milestones=(87, 152), warmup_steps=1000)
    t["train"].update(steps=8000, eval_every=40, checkpoint_every=10)
    t["stages"]["adapt"]["train"] = dict(eval_every=5, checkpoint_every=1)
    t["mmt"].update(clusters=700)


def duke2market(t):
    """DukeMTMC-reID to Market-1501; Duke's identities give 43 batches an epoch."""
    market2duke(t)
    t["data"].update(name="dukemtmc+market1501", target="market1501")
    t["optim"].update(milestones=(93, 163))
    t["mmt"].update(clusters=500)


def synthetic(t):
    """Two synthetic sets, of other people and cameras, and the narrow net; short-run values."""
    presets.synthetic(t)
    strong(t)
    t["data"].update(name="synthetic+synthetic2", target="synthetic2", pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(steps=600)
    t["stages"]["adapt"].update(train=dict(eval_every=2, checkpoint_every=2))
    t["stages"]["adapt"]["optim"].update(lr=1e-3)
    t["mmt"].update(rounds=8, steps=60, clusters=60, k1=12, k2=2, eps=0.4)


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    strong(t)
    t["data"].update(name="synthetic+synthetic2", target="synthetic2", pad_crop=2)
    t["train"].update(steps=4)
    t["stages"]["adapt"].update(train=dict(eval_every=1))
    t["mmt"].update(rounds=2, steps=3, clusters=12, restarts=2, k1=4, k2=2, min_samples=2)


VARIANTS = {
    "duke2market": duke2market,
    "market2duke": market2duke,
    "synthetic": synthetic,
    "smoke": smoke,
}


def get_config(variant="duke2market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("mmt", variant, VARIANTS))
