"""Lifelong re-identification: sets one after another, a step for each; rows of what works against forgetting.

Variants: order1 (Market-1501, CUHK-SYSU, DukeMTMC, MSMT17, CUHK03; 500 identities of each, 16 x 4, 50 epochs
of 150 steps a step: AKA's published code), order2 (DukeMTMC, MSMT17, Market-1501, CUHK-SYSU, CUHK03), krkc
(VIPeR, Market-1501, CUHK-SYSU, MSMT17, all identities, 32 x 4: KRKC's published code); synthetic (five drawn
worlds and a sixth that trains nowhere, a narrow net, minutes on a CPU core); smoke (seconds). Behind a dash
the row: order1-finetune, -joint, -lwf, -aka, -krkc; without one aka, and krkc of variant krkc. Sets that
train nowhere are named in config.eval.also. Start the full-size ones from ImageNet weights
(config.init.weights).
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

ORDER1 = "market1501+cuhk_sysu+dukemtmc+msmt17+cuhk03"
ORDER2 = "dukemtmc+msmt17+market1501+cuhk_sysu+cuhk03"
KRKC = "viper+market1501+cuhk_sysu+msmt17"
WORLDS = "synthetic+synthetic2+synthetic3+synthetic4+synthetic5"


def of_sets(t, names):
    """The steps: sets in order, all of them tested after each."""
    variants = ["lifelong" if name == "cuhk_sysu" else "" for name in names.split("+")]
    t["data"].update(name=names, test="all", variant="+".join(variants) if any(variants) else "")


def order1(t):
    """AKA's settings; its smoothing over 2,494 classes, a slip, is lifelong.smooth_classes=2494."""
    of_sets(t, ORDER1)
    t["data"].update(ids=16, instances=4, pad_crop=10, erase=0.5)
    t["model"].update(backbone="resnet50", stem_relu=False, last_stride=1, neck="bnneck", pool="avg")
    t["loss"].update(triplet="softplus", margin=0.3, feature="before_bn", label_smooth=0.1)
    t["optim"].update(lr=3.5e-4, milestones=(25,), gamma=0.1)
    t["train"].update(epochs=50, eval_every=0, checkpoint_every=5)
    t["lifelong"].update(mode="aka", ids=500, epoch_steps=150)


def order2(t):
    """Another order of the same sets."""
    order1(t)
    of_sets(t, ORDER2)


def krkc(t):
    """KRKC's settings: one growing classifier, warm-up, the rate falls earlier in later steps."""
    of_sets(t, KRKC)
    t["data"].update(ids=32, instances=4, pad_crop=10, erase=0.5, batches="gallery")
    t["model"].update(backbone="resnet50", last_stride=1, neck="bnneck", pool="gem")
    t["loss"].update(triplet="softmax", margin=0.3, feature="before_bn", label_smooth=0.1)
    t["optim"].update(lr=3.5e-4, milestones=(40, 70), gamma=0.1, warmup_epochs=10, warmup_factor=0.01)
    t["train"].update(epochs=60, eval_every=0, checkpoint_every=5)
    t["lifelong"].update(mode="krkc", epoch_steps=150, classes="all")
    t["stages"] = {name: {"optim": {"milestones": (30,)}} for name in KRKC.split("+")[1:]}
    t["stages"]["msmt17"]["lifelong"] = {"memory_lr": 0.01}


def worlds(t, names):
    """Drawn worlds, each with people, cameras and an environment of its own."""
    of_sets(t, names)
    t["data"]["synthetic"].update(style=1)
    t["train"].update(eval_every=0)
    t["eval"].update(net="auto")
    t["loss"].update(triplet="softplus", margin=0.3, feature="before_bn")
    t["model"].update(neck="bnneck")
    t["lifelong"].update(mode="aka", replay_batch=8)


def synthetic(t):
    """Five worlds of 40 people, 250 steps each."""
    presets.synthetic(t)
    worlds(t, WORLDS)
    t["data"]["synthetic"].update(train_ids=40, test_ids=40, cameras=4, distractors=10, junk=5)
    t["train"].update(steps=250)
    t["eval"].update(also="synthetic6")
    t["lifelong"].update(replay_ids=20)


def smoke(t):
    """Two worlds, six steps each."""
    presets.smoke(t)
    worlds(t, "synthetic+synthetic2")
    t["train"].update(steps=6)
    t["lifelong"].update(vertices=4, replay_ids=20, replay_batch=2)


VARIANTS = {"order1": order1, "order2": order2, "krkc": krkc, "synthetic": synthetic, "smoke": smoke}
ROWS = ("finetune", "joint", "lwf", "aka", "krkc")


def joint(t):
    """All sets at once, as many steps as theirs together."""
    count = len(t["data"]["name"].split("+"))
    t["train"]["steps"] *= count
    t["lifelong"]["epoch_steps"] *= count
    t["stages"] = {}


def get_config(variant="order1"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("lifelong", variant, VARIANTS, ROWS)
    t = presets.tree("lifelong", name, VARIANTS)
    t["lifelong"].update(mode=row or t["lifelong"]["mode"])
    if row == "joint":
        joint(t)
    if row == "krkc":  # one classifier for all sets
        t["lifelong"].update(classes="all")
    return ConfigDict(t)
