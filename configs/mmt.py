"""MMT (Ge, Chen, Li, ICLR 2020), unsupervised domain adaptation, with the published code's settings.

Variants: duke2market, market2duke, market2msmt17, duke2msmt17 (256x128, 16 groups x 4 images; two networks on
the source, then 40 rounds of 400 steps on k-means clusters of the target); synthetic (two synthetic sets,
small net, minutes on a CPU core); smoke (seconds). VARIANT-ROW changes the networks or the labels, see ROWS:
duke2market-meb is MEB-Net, duke2market-joint_alone learns from Market-1501 without a source. Start the
full-size ones from ImageNet weights (config.init.weights). Any field can be changed on the command line:
--config.mmt.clusters=700.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def strong(t):
    """What all variants share: BNNeck, softmax triplet on the pooled vector; the networks' seeds."""
    t["model"].update(neck="bnneck")
    t["loss"].update(feature="before_bn", triplet="softmax", margin=0.0, label_smooth=0.1)
    t["stages"]["source2"] = dict(seed=t["seed"] + 1)
    t["train"].update(skip=("source3",))
    constant = dict(schedule="step", milestones=(), warmup_steps=0, warmup_epochs=0, first_epoch=0)
    t["stages"]["adapt"] = dict(optim=constant)


def market2duke(t):
    """Market-1501 to DukeMTMC-reID. The source stages have 80 epochs of 100 steps.

    The published code moves its schedule before an epoch, so that the first has number 1. Norms see 16 rows
    at a time, as on each of its four GPUs.
    """
    presets.image_set(t, "market1501+dukemtmc")
    strong(t)
    t["data"].update(target="dukemtmc", pad_crop=10)
    t["model"].update(stem_relu=False, bn_rows=16)
    t["optim"].update(lr=3.5e-4, milestones=(40, 70), warmup_epochs=10, warmup_factor=0.01, first_epoch=1)
    t["train"].update(epochs=80, eval_every=40, checkpoint_every=10)
    t["stages"]["adapt"]["train"] = dict(eval_every=5, checkpoint_every=1)
    t["mmt"].update(clusters=700, source_epoch=100)


def duke2market(t):
    """DukeMTMC-reID to Market-1501."""
    market2duke(t)
    t["data"].update(name="dukemtmc+market1501", target="market1501")
    t["mmt"].update(clusters=500)


def market2msmt17(t):
    """Market-1501 to MSMT17."""
    market2duke(t)
    t["data"].update(name="market1501+msmt17", target="msmt17")
    t["mmt"].update(clusters=500)


def duke2msmt17(t):
    """DukeMTMC-reID to MSMT17."""
    duke2market(t)
    t["data"].update(name="dukemtmc+msmt17", target="msmt17")


def synthetic(t):
    """Two synthetic sets, of other people and cameras, and the narrow net; short-run values."""
    presets.synthetic(t)
    strong(t)
    t["data"].update(name="synthetic2+synthetic", target="synthetic", pad_crop=3)
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
    "market2msmt17": market2msmt17,
    "duke2msmt17": duke2msmt17,
    "synthetic": synthetic,
    "smoke": smoke,
}


def baseline(t):
    """One network without a teacher: clustering and training again (MMT's base_train)."""
    t["mmt"].update(backbones=("",), teachers=False)
    t["train"].update(skip=("source2", "source3"))


def two_baselines(t):
    """Two networks that only share their clusters: the paper's baseline of MMT."""
    t["mmt"].update(soft_ce=0.0, soft_triplet=0.0, alpha=0.0, ema_ramp=False)


def dbscan(t):
    """MMT's code with DBSCAN: torchreid's Jaccard distance, a radius found in the first round."""
    t["mmt"].update(cluster="dbscan", jaccard="torchreid", k1=t["mmt"]["k1"] * 2 // 3, rho=0.0016)
    t["mmt"].update(clusters=max(most_clusters(t), t["mmt"]["clusters"]))


def most_clusters(t):
    """Places in classifiers for the clusters that DBSCAN finds; the largest are kept."""
    return 4000 if t["data"]["target"] == "msmt17" else 2000


def meb(t):
    """MEB-Net (Zhai et al., ECCV 2020): three networks, rounds of 800 steps, teachers weighed by scatter."""
    small = t["model"]["backbone"] == "narrow"
    backbones = ("", "", "") if small else MEB
    t["mmt"].update(backbones=backbones, authority="minibatch", steps=t["mmt"]["steps"] * 2)
    t["stages"]["source3"] = dict(seed=t["seed"] + 2)
    t["train"].update(skip=())
    if not small:
        t["mmt"].update(source_epoch=200)
        t["optim"].update(first_epoch=0)


def joint(t):
    """OpenUnReID's MMT: no source stages; source and target in every step, with norms of their own."""
    small = t["model"]["backbone"] == "narrow"
    t["train"].update(skip=("source1", "source2", "source3"))
    t["mmt"].update(joint=True, teacher_first=True, ema_ramp=False, cluster="dbscan")
    if not small:
        t["mmt"].update(clusters=most_clusters(t))
        t["model"].update(pool="gem", stem_relu=True)
        t["mmt"].update(rounds=50, eps=0.7)


def joint_baseline(t):
    """OpenUnReID's strong baseline: `joint` with one network and no teacher."""
    joint(t)
    t["mmt"].update(backbones=("",), teachers=False)
    if t["model"]["backbone"] != "narrow":
        t["mmt"].update(eps=0.6)


def alone(form):
    """The form on its target alone, without a source."""

    def unsupervised(t):
        form(t)
        small = t["model"]["backbone"] == "narrow"
        t["data"].update(name="synthetic" if small else t["data"]["target"], target="")

    return unsupervised


ROWS = {
    "joint": joint,
    "joint_baseline": joint_baseline,
    "joint_alone": alone(joint),
    "joint_baseline_alone": alone(joint_baseline),
    "baseline": baseline,
    "two_baselines": two_baselines,
    "dbscan": dbscan,
    "meb": meb,
}
MEB = ("densenet121_double", "resnet50", "inception_v3")


def get_config(variant="duke2market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("mmt", variant, VARIANTS, ROWS)
    tree = presets.tree("mmt", name, VARIANTS)
    if row:
        ROWS[row](tree)
    return ConfigDict(tree)
