"""AGW for visible against infrared (Ye et al., PAMI 2021, section 5): a stem for each light, the rest shared.

Variants: sysu (SYSU-MM01, all-search; data.variant=indoor: indoor-search), regdb (trial data.split + 1;
data.variant=thermal: thermal queries), with the published settings of Cross-Modal-Re-ID-baseline, whose best
epoch was chosen on the test set; synthetic (small net, minutes on a CPU core); smoke (seconds). Behind a dash
the repository's "base": sysu-base. Start the full-size ones from ImageNet weights (config.init.weights),
which both stems take.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def losses(t):
    """What all variants share: both lights of the same people in a batch, weighted triplet on the pooled."""
    t["data"].update(batches="domains", domains="modality", pair_ids=True)
    t["model"].update(neck="bnneck", pool="power_mean")
    t["loss"].update(triplet="euclidean", mining="weighted", soft_margin=True, feature="before_bn")


def sysu(t):
    """SYSU-MM01."""
    presets.image_set(t, "sysu_mm01")
    losses(t)
    t["data"].update(height=288, width=144, pad_crop=10, resize="bilinear", erase=0.0, ids=8, instances=4)
    t["model"].update(backbone="two_stream_resnet50", second_stem=(2, 5))
    t["optim"].update(kind="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    t["optim"].update(groups=(("^base/", 0.1, None),), milestones=(20, 50), gamma=0.1)
    t["optim"].update(warmup_epochs=9, warmup_factor=0.1)  # epoch e: (e + 1) / 10 of the rate
    t["train"].update(epochs=81)


def regdb(t):
    """RegDB, its first trial."""
    sysu(t)
    t["data"].update(name="regdb")
    t["model"].update(second_stem=(1,))


def synthetic(t):
    """The embedded set with two infrared cameras and a narrow ResNet, from random weights."""
    presets.synthetic(t)
    losses(t)
    t["data"]["synthetic"].update(kind="infrared", cameras=6)
    t["model"].update(backbone="two_stream_slim", second_stem=(2, 5), nl_blocks=(0, 1, 1, 0))


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    losses(t)
    t["data"].update(ids=2, instances=2)
    t["data"]["synthetic"].update(kind="infrared", cameras=6, images=1)
    t["model"].update(backbone="two_stream_slim", second_stem=(2, 5), slim_width=2, slim_blocks=(1, 1))
    t["model"].update(nl_blocks=(1, 0))


VARIANTS = {"sysu": sysu, "regdb": regdb, "synthetic": synthetic, "smoke": smoke}
ROWS = {
    "base": {
        "model": dict(nl_blocks=(0, 0, 0, 0), pool="avg"),
        "loss": dict(mining="hard", soft_margin=False, margin=0.3),
    }
}


def get_config(variant="sysu"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("agw_infrared", variant, VARIANTS, ROWS)
    t = presets.tree("baseline", name, VARIANTS)
    for section, fields in ROWS.get(row, {}).items():
        t[section].update(fields)
    return ConfigDict(t)
