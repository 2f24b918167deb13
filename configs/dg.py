"""Baselines of domain generalisation: one net from several sets, to be used on sets it has never seen.

Variants: sources (Market-1501 + DukeMTMC-reID + CUHK03 + MSMT17 together), market, duke (one set); synthetic
(three synthetic sets, small net, minutes on a CPU core); smoke (seconds). What generalises stands behind a
dash, each with the settings of its source:
  -ibn_a, -ibn_b             IBN-Net (Pan et al., ECCV 2018) with the strong baseline's settings
  -dualnorm, -dualnorm_v2    DualNorm (Jia et al., BMVC 2019), ResNet-50 and MobileNetV2: cross entropy alone
  -bin                       Batch-Instance Normalization (Nam and Kim, NeurIPS 2018); its rate of the gates,
                             the rest is the strong baseline's: there are no results on persons
  -mixstyle, -mixstyle_cross MixStyle (Zhou et al., ICLR 2021) with any row, or with one of another set
  -dsu                       DSU (Li et al., ICLR 2022): 8000 steps
  -balanced                  the baseline on batches with as many images of every set
Without a row it is the strong baseline with jitter and without erasing. With methods of their own:
configs/snr.py, m3l.py, metabin.py. Start the full-size ones from ImageNet weights (config.init.weights).
"""

import functools

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

GATES = ("(^|/)gate$", 10.0, 0.0)  # of BIN: rate, no decay
CAMERAS = {"market1501": 6, "dukemtmc": 8}
STEPS = {"market1501": 46, "dukemtmc": 43}  # of an epoch of 16 x 4


def losses(t):
    """The strong baseline's, without erasing."""
    t["data"].update(erase=0.0, jitter=(0.2, 0.15, 0.0))
    t["model"].update(neck="bnneck")
    t["loss"].update(triplet="euclidean", margin=0.3, feature="before_bn", label_smooth=0.1)


def one_set(t, name="market1501"):
    """The strong baseline: 16 x 4, 120 epochs."""
    presets.image_set(t, name)
    losses(t)
    t["data"].update(ids=16, instances=4, pad_crop=10)
    t["optim"].update(lr=3.5e-4, milestones=(40, 70), warmup_epochs=10, warmup_factor=0.1)
    t["train"].update(epochs=120)


def synthetic(t):
    """Three synthetic sets of a style each and the narrow net, from random weights; short-run values."""
    presets.synthetic(t)
    losses(t)
    t["data"].update(name="synthetic+synthetic2+synthetic3")
    t["data"]["synthetic"].update(style=1)
    t["train"].update(steps=800)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    losses(t)
    t["data"].update(name="synthetic+synthetic2")


# ---- rows; full: whether the settings of the source are wanted too


def norm(t, full, name):
    """Another norm in the strong baseline."""
    t["model"].update(norm=name)
    if name == "bin":
        t["optim"].update(groups=(GATES,))


def dualnorm(t, full, backbone="resnet50"):
    """Instance norms, and a neck before the classifier: cross entropy alone, mirrored images in tests."""
    t["model"].update(norm="dualnorm")
    t["loss"].update(triplet_weight=0.0)
    t["data"].update(batches="shuffled", jitter=(0.0, 0.0, 0.0))
    t["eval"].update(mirror=True)
    if full:
        std = 0.01 if backbone == "resnet50" else 0.001
        t["model"].update(backbone=backbone, last_stride=2, classifier_std=std)
        t["optim"].update(
            kind="sgd", lr=0.01, momentum=0.9, nesterov=True, milestones=(100,), warmup_epochs=0
        )
        t["train"].update(epochs=150)


def mixstyle(t, full, cross=False):
    """torchreid's engine: cross entropy on a vector of a linear layer, behind a ReLU."""
    t["model"].update(style="mixstyle")
    t["loss"].update(triplet_weight=0.0)
    t["data"].update(batches="shuffled")
    if full:
        t["model"].update(head="fc", fc_dim=512)
        t["data"].update(ids=32, instances=1, pad_crop=0)
        t["optim"].update(
            kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-5, groups=(("^base/", 0.2, None),)
        )
        t["optim"].update(milestones=(20, 40), warmup_epochs=0)
        t["train"].update(epochs=60)
    if cross:
        count = by_domains(t)
        t["data"].update(ids=max(t["data"]["ids"] * t["data"]["instances"] // (4 * count), 1), instances=4)
        t["model"].update(style_mix="crossdomain", style_run=4, style_domains=count)


def dsu(t, full):
    """Soft-margin triplet; 80 epochs of 100 steps, of one set as many in its own epochs."""
    t["model"].update(style="dsu")
    t["loss"].update(soft_margin=True)
    t["data"].update(jitter=(0.0, 0.0, 0.0))
    if full and t["data"]["name"] in STEPS:
        steps = STEPS[t["data"]["name"]]
        t["optim"].update(milestones=(4000 // steps, 7000 // steps), warmup_epochs=1000 // steps)
        t["train"].update(steps=8000)
    elif full:
        balanced(t, full)
        t["data"].update(epoch_steps=100)
        t["train"].update(epochs=80)


def balanced(t, full):
    """As many identities of every set in a batch, of one set of every camera."""
    t["data"].update(ids=max(t["data"]["ids"] // by_domains(t), 1))


def by_domains(t):
    """Batches of domains, sets or cameras; how many there are."""
    names = t["data"]["name"].split("+")
    t["data"].update(batches="domains", domains="set" if len(names) > 1 else "camera")
    return len(names) if len(names) > 1 else CAMERAS[names[0]]


VARIANTS = {
    "sources": lambda t: one_set(t, "market1501+dukemtmc+cuhk03+msmt17"),
    "market": one_set,
    "duke": lambda t: one_set(t, "dukemtmc"),
    "synthetic": synthetic,
    "smoke": smoke,
}
ROWS = {
    "ibn_a": functools.partial(norm, name="ibn_a"),
    "ibn_b": functools.partial(norm, name="ibn_b"),
    "dualnorm": dualnorm,
    "dualnorm_v2": functools.partial(dualnorm, backbone="mobilenetv2_x1_0"),
    "bin": functools.partial(norm, name="bin"),
    "mixstyle": mixstyle,
    "mixstyle_cross": functools.partial(mixstyle, cross=True),
    "dsu": dsu,
    "balanced": balanced,
}


def get_config(variant="sources"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("dg", variant, VARIANTS, ROWS)
    tree = presets.tree("baseline", name, VARIANTS)
    if row:
        ROWS[row](tree, full=name not in ("synthetic", "smoke"))
    return ConfigDict(tree)
