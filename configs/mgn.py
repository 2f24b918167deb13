"""MGN (Wang et al., ACM MM 2018): three branches of a ResNet-50, whole maps and stripes; the baseline's step.

Variants: market, duke, msmt17, cuhk03 (MGN-pytorch: 384x128, 16 people x 4 images, 400 epochs of AMSGrad);
reid_mgn_market (ReID-MGN: one reduction for all vectors, 4 x 4); paper_market (SGD, 80 epochs, sums of
losses, classifiers of whole maps before the reduction); fastreid_market (fast-reid: ResNet-50 IBN-a, circle
softmax, soft margins over whole maps and joined parts, 4 x 16); synthetic (small net, minutes on a CPU
core); smoke (seconds). Rows of an ablation follow a dash, market-whole: whole maps alone; two: without the
third branch; ce: no triplet; mean: average pooling. Start the full-size ones from ImageNet weights
(config.init.weights): all branches begin with the same.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def branches(t):
    """What all variants share: losses averaged over branches; features with those of the mirrored picture."""
    t["model"].update(head="mgn", backbone="resnet50_mgn", last_stride=2)
    t["loss"].update(branches="mean", triplet="euclidean", margin=1.2, triplet_weight=2.0)
    t["eval"].update(mirror=True)


def market(t, name="market1501"):
    """Market-1501 as MGN-pytorch trains."""
    presets.image_set(t, name)
    branches(t)
    t["data"].update(height=384, width=128, ids=16, instances=4, erase=0.5, erase_fill=(0.0, 0.0, 0.0))
    t["optim"].update(kind="amsgrad", lr=2e-4, milestones=(320, 380))
    t["train"].update(epochs=400, eval_every=50)


def reid_mgn_market(t):
    """Market-1501 as ReID-MGN trains: twice the cross entropy and once the triplet, small batches."""
    market(t)
    t["data"].update(ids=4, instances=4)
    t["model"].update(mgn_shared=True)
    # Half of the loss and half of the decay: Adam does not see the factor
    t["loss"].update(triplet_weight=0.5)
    t["optim"].update(weight_decay=2.5e-4)
    t["train"].update(epochs=500)


def paper_market(t):
    """Market-1501 by the paper: sums of losses, maximum pooling, flips alone."""
    market(t)
    t["data"].update(erase=0.0)
    t["model"].update(mgn_wide=True)
    t["loss"].update(branches="sum", triplet_weight=1.0)
    t["optim"].update(kind="sgd", lr=0.01, milestones=(40, 60))
    t["train"].update(epochs=80, eval_every=10)


def fastreid_market(t):
    """Market-1501 as fast-reid trains: SBS without its non-local blocks, means over the branches."""
    presets.image_set(t, "market1501")
    t["data"].update(height=384, width=128, ids=4, instances=16, pad_crop=10, autoaugment=0.1)
    t["data"].update(erase_area=(0.02, 0.33), erase_aspect=(0.3, 3.3), erase_aspect_log=True, erase_tries=10)
    t["data"].update(erase_fill=(0.0, 0.0, 0.0))
    t["model"].update(head="mgn", backbone="resnet50_mgn_ibn_a", stem_pool="ceil", pool="gem", neck="bnneck")
    t["model"].update(mgn_relu=False, mgn_metric="joined", classifier="circle", classifier_std=0.01)
    t["loss"].update(branches="mean", triplet="euclidean", soft_margin=True, feature="after_bn")
    t["loss"].update(label_smooth=0.1, smoothing="others")
    t["optim"].update(lr=3.5e-4, weight_decay=5e-4, freeze=("^base/",), freeze_steps=1000)
    t["optim"].update(schedule="cosine_epochs", delay_epochs=30, lowest=0.002)
    t["optim"].update(warmup_steps=2000, warmup_factor=0.1, delay_warmup=True)
    t["train"].update(epochs=60)


def synthetic(t):
    """The embedded data set and a narrow net of bottlenecks, by Adam from random weights; short-run values.

    From random weights the margin of 1.2 on plain distances draws all features together: the usual cosines.
    """
    presets.synthetic(t)
    branches(t)
    t["loss"].update(triplet="cosine", margin=0.3, triplet_weight=1.0)
    t["model"].update(backbone="slim_mgn", slim_blocks=(1, 1, 2, 1), slim_width=8, mgn_dim=32)
    t["data"].update(height=96, width=48, erase_fill=(0.0, 0.0, 0.0))


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    branches(t)
    t["model"].update(backbone="slim_mgn", slim_blocks=(1, 2, 1), slim_width=2, mgn_dim=4, mgn_parts=(1, 2))


VARIANTS = {
    "market": market,
    "duke": lambda t: market(t, "dukemtmc"),
    "msmt17": lambda t: market(t, "msmt17"),
    "cuhk03": lambda t: market(t, "cuhk03"),
    "reid_mgn_market": reid_mgn_market,
    "paper_market": paper_market,
    "fastreid_market": fastreid_market,
    "synthetic": synthetic,
    "smoke": smoke,
}
ROWS = {
    "whole": {"model": dict(mgn_parts=(1,))},
    "two": {"model": dict(mgn_parts=(1, 2))},
    "ce": {"loss": dict(triplet_weight=0.0)},
    "mean": {"model": dict(pool="avg")},
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    name, row = split_row("mgn", variant, VARIANTS, ROWS)
    t = presets.tree("baseline", name, VARIANTS)
    for section, fields in ROWS.get(row, {}).items():
        t[section].update(fields)
    return ConfigDict(t)
