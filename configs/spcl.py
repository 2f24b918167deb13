"""SpCL (Ge et al., NeurIPS 2020), unsupervised or adapting to a target, with the published code's settings.

Variants: market, duke, msmt17 (no identities); duke2market, market2duke, market2msmt17, duke2msmt17
(labelled source, unlabelled target, norms by domain); 256x128, 16 groups x 4 images of either, 50 rounds of
400 steps, to MSMT17 800. synthetic (two synthetic sets, small net, minutes on a CPU core),
synthetic-unsupervised (the target alone), smoke, smoke-unsupervised (seconds). Start the full-size ones from
ImageNet weights (config.init.weights). Any field can be changed on the command line:
--config.spcl.reliability=none.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def market(t):
    """Market-1501 without identities. Intervals and milestones count rounds.

    Norms see 16 rows at a time, as on each of the published code's four GPUs.
    """
    presets.image_set(t, "market1501")
    t["data"].update(ids=16, instances=4, pad_crop=10)
    t["model"].update(head="contrast", pool="avg", bn_rows=16)
    t["optim"].update(lr=3.5e-4, milestones=(20, 40))
    t["train"].update(eval_every=5, checkpoint_every=1)


def adapting(source, target):
    """A variant with a labelled source and an unlabelled target."""

    def variant(t):
        market(t)
        t["data"].update(name=f"{source}+{target}", target=target)
        if target == "msmt17":
            t["spcl"].update(steps=800)

    return variant


def msmt17(t):
    """MSMT17 without identities, rounds of 800 steps."""
    market(t)
    t["data"].update(name="msmt17")
    t["spcl"].update(steps=800)


def synthetic(t):
    """Two synthetic sets, of other people and cameras, and the narrow net; short-run values.

    Outliers sit out the round: as classes of their own, among 16 pictures of everybody, they undo the start.
    """
    presets.synthetic(t)
    t["data"].update(name="synthetic2+synthetic", target="synthetic", pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=2, checkpoint_every=2)
    t["model"].update(head="contrast")
    t["optim"].update(lr=1e-3)
    t["spcl"].update(rounds=8, steps=60, k1=20, k2=2, eps=0.5, outliers="drop")


def alone(variant):
    """The variant on its target alone."""

    def unsupervised(t):
        variant(t)
        t["data"].update(name="synthetic", target="")

    return unsupervised


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    t["data"].update(name="synthetic+synthetic2", target="synthetic2", pad_crop=2)
    t["model"].update(head="contrast", pool="avg")
    t["train"].update(eval_every=1)
    t["spcl"].update(rounds=2, steps=3, k1=4, k2=2, min_samples=2, eps=0.5, gap=0.05)


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": msmt17,
    "duke2market": adapting("dukemtmc", "market1501"),
    "market2duke": adapting("market1501", "dukemtmc"),
    "market2msmt17": adapting("market1501", "msmt17"),
    "duke2msmt17": adapting("dukemtmc", "msmt17"),
    "synthetic": synthetic,
    "synthetic-unsupervised": alone(synthetic),
    "smoke": smoke,
    "smoke-unsupervised": alone(smoke),
}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("spcl", variant, VARIANTS))
