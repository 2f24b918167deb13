"""SCAL (Chen et al., ICCV 2019), after its description, trained as the strong baseline; no code is public.

Variants: market, duke, msmt17 (not in the paper), cuhk03 (384x128); synthetic (small net, minutes on a CPU
core); smoke (seconds). With a row of the ablation behind, as in synthetic-no_critic: no_critic (the
attention alone), no_relative (the reward is the right class alone), channel (attention to channels).
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

ROWS = {
    "no_critic": {"critic": False},
    "no_relative": {"relative": False},
    "channel": {"attention": "channel"},
    "full": {},
}


def market(t):
    """Market-1501: the baseline's losses and batches, Adam."""
    presets.image_set(t, "market1501")
    t["data"].update(height=384, width=128, pad_crop=10)
    t["model"].update(neck="bnneck")
    t["loss"].update(triplet="euclidean", feature="before_bn", label_smooth=0.1)
    t["optim"].update(lr=3.5e-4, milestones=(40, 70), warmup_steps=2000)
    t["train"].update(epochs=120, eval_every=20)


def synthetic(t):
    """The embedded data set and the narrow net; short-run values."""
    presets.synthetic(t)
    t["scal"].update(hidden=64, critic_lr=4e-3)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    t["scal"].update(stages=(1, 2, 3), hidden=8, critic_lr=4e-3, kernel=3, grid=(4, 2))


VARIANTS = {
    "market": market,
    "duke": presets.on("dukemtmc", market),
    "msmt17": presets.on("msmt17", market),
    "cuhk03": presets.on("cuhk03", market),
    "synthetic": synthetic,
    "smoke": smoke,
}


def get_config(variant="market"):
    """ConfigDict of one variant, VARIANT or VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("scal", variant, VARIANTS, ROWS)
    tree = presets.tree("scal", name, VARIANTS)
    tree["scal"].update(ROWS[row or "full"])
    return ConfigDict(tree)
