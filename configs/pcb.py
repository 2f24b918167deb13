"""PCB and its refined part pooling (Sun et al., ECCV 2018) with the published code's settings.

Variants: market, duke, msmt17 (not in the paper), cuhk03 (384x128, 6 stripes, batches of 64, 60 epochs of
SGD); synthetic (small net, minutes on a CPU core); smoke (seconds). rpp_market, rpp_duke, rpp_cuhk03,
rpp_synthetic, rpp_smoke go on with refined parts: the paper's induction, then 10 epochs together.
rpp_code_market is the published code's way: 20 epochs of PCB, then everything at once for 30. Start the
full-size ones from ImageNet weights (config.init.weights): the backbone learns ten times slower than the
head.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def stripes(t):
    """What all variants share: a classifier for each stripe, losses summed, no triplet; PCB alone."""
    t["model"].update(head="stripes")
    t["loss"].update(branches="sum", triplet_weight=0.0)
    t["train"].update(skip=("rpp",))


def market(t):
    """Market-1501. Augmented by flips alone."""
    presets.image_set(t, "market1501")
    stripes(t)
    t["data"].update(height=384, width=128, ids=64, instances=1, erase=0.0)
    t["optim"].update(kind="sgd", lr=0.1, nesterov=True, groups=(("^base/", 0.1, None),), milestones=(40,))
    t["train"].update(epochs=60, eval_every=10)


def synthetic(t):
    """The embedded data set and the narrow net, by Adam from random weights; short-run values."""
    presets.synthetic(t)
    stripes(t)
    t["data"].update(erase=0.0)
    t["model"].update(stripes_parts=4, stripes_dim=64)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    stripes(t)
    t["model"].update(stripes_parts=2, stripes_dim=8, refined_dim=4)


def refined(variant, **stage):
    """A variant followed by stage "rpp" with values of its own."""

    def change(t):
        variant(t)
        t["train"].update(skip=())
        t["stages"]["rpp"] = stage

    return change


PAPER = dict(optim=dict(lr=0.01, groups=(), milestones=()), train=dict(epochs=10))
SHORT = dict(optim=dict(lr=1e-3), train=dict(steps=300))


def rpp_code_market(t):
    """Market-1501 as the published script trains: all at once, the backbone at the same rate."""
    refined(market, optim=dict(lr=0.01, groups=(), milestones=(20,)), train=dict(epochs=30))(t)
    t["stages"]["pcb"] = dict(train=dict(epochs=20))
    t["pcb"].update(induce=0.0)


def rpp_synthetic(t):
    """`synthetic` with refined parts."""
    refined(synthetic, **SHORT)(t)
    t["model"].update(refined_dim=32)
    t["pcb"].update(induce_lr=4e-3)


def rpp_smoke(t):
    """Seconds, with refined parts."""
    refined(smoke, optim=dict(lr=1e-3), train=dict(steps=4))(t)
    t["pcb"].update(induce=1.0, induce_lr=4e-3)


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": presets.on("msmt17", market),
    "cuhk03": presets.on("cuhk03", market),
    "synthetic": synthetic,
    "smoke": smoke,
    "rpp_market": refined(market, **PAPER),
    "rpp_duke": refined(presets.on("dukemtmc", market), **PAPER),
    "rpp_cuhk03": refined(presets.on("cuhk03", market), **PAPER),
    "rpp_code_market": rpp_code_market,
    "rpp_synthetic": rpp_synthetic,
    "rpp_smoke": rpp_smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("pcb", variant, VARIANTS))
