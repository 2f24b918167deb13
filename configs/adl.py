"""ADL (Chen, Wang, Wang, 2024): unsupervised, IICS with FRIFM and adversarial disentangling.

Variants: market, duke, msmt17 (paper: 256x128, 8 images of each camera, then 16 clusters x 4 images, 40
rounds); synthetic (small net and data set, minutes on a CPU core); smoke (seconds). The rows of the paper's
Table 4 stand behind a dash: market-baseline, synthetic-frifm, ..., see ROWS and MORE. Any field can
be changed on the command line: --config.adl.mode=threshold.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

ROWS = {  # the paper's Table 4
    "baseline": dict(frifm_stages=(), adversarial_stages=()),  # IICS
    "frifm": dict(adversarial_stages=()),
    "adl": dict(frifm_stages=()),
    "full": {},
}
MORE = {  # beside the paper's: what may keep the game from doing its work
    "fast_aibn": dict(aibn_lr=0.0),  # AIBN's mixing weights at the backbone's rate: runs away in `synthetic`
    "inter_only": dict(adversarial_stages=("inter",)),  # the phase within cameras shows less of the camera
    "no_hiding": dict(encoder_plays=False),
    "critic": dict(critic_optim="adam", critic_lr=1e-3, critic_steps=5, held_out=256),
    "frifm_late": dict(frifm_from=2),  # not on the labels of the start
}


def iics(t):
    """What all variants share: AIBN, Euclidean triplet on the pooled feature, IICS' augmentation."""
    t["data"].update(pad_crop=10, erase_fill=(0.4914, 0.4822, 0.4465))
    t["model"].update(norm="aibn")
    t["loss"].update(triplet="euclidean", feature="before_bn")


def market(t):
    """Market-1501 (paper, section 2; IICS' code where it is silent). Intervals count rounds."""
    presets.image_set(t, "market1501")
    iics(t)
    t["train"].update(eval_every=5, checkpoint_every=1)


def duke(t):
    """DukeMTMC-reID, Market's settings (paper)."""
    market(t)
    t["data"].update(name="dukemtmc")


def msmt17(t):
    """MSMT17, with longer training within the cameras (IICS' code); not in the paper."""
    market(t)
    t["data"].update(name="msmt17")
    t["adl"]["intra"].update(epochs=12)


def synthetic(t):
    """The embedded data set and the narrow net; short-run values, unlike the paper's.

    16 pictures of each person, 4 under each of 4 cameras, about as in Market-1501. The numbers of clusters
    stand to the 60 people as IICS' 600 and 800 to Market-1501's 751. Random features do not gather people, so
    start from a network that knows pictures of other people (config.init), as the paper does from ImageNet's.
    AIBN's mixing weights move at the paper's rate, all else 20 times as fast.
    """
    presets.synthetic(t)
    iics(t)
    t["data"].update(pad_crop=3)
    t["data"]["synthetic"].update(train_ids=60, test_ids=60, cameras=4, images=4, strength=0.6)
    t["train"].update(eval_every=2, checkpoint_every=2)
    t["adl"].update(rounds=8, k1=10, k2=3, aibn_lr=1e-3)
    t["adl"]["intra"].update(clusters=48, lr=0.01, head_lr=0.05)
    t["adl"]["inter"].update(clusters=64, lr=0.02, head_lr=0.1)


def smoke(t):
    """Seconds: two rounds of everything."""
    presets.smoke(t)
    iics(t)
    t["data"].update(pad_crop=2)
    t["train"].update(eval_every=1)
    t["adl"].update(rounds=2, k1=4, k2=2)
    t["adl"]["intra"].update(clusters=6, instances=4, lr=0.01, head_lr=0.05, epochs=1)
    t["adl"]["inter"].update(clusters=8, lr=0.01, head_lr=0.05, epochs=1)


VARIANTS = {"market": market, "duke": duke, "msmt17": msmt17, "synthetic": synthetic, "smoke": smoke}


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("adl", variant, VARIANTS, ROWS | MORE)
    tree = presets.tree("adl", name, VARIANTS)
    tree["adl"].update((ROWS | MORE)[row or "full"])
    return ConfigDict(tree)
