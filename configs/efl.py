"""EFL (Liu, Li, Wang, BMVC 2022) on images, with the paper's settings.

Variants: market, duke, msmt17, me_reid (paper: 256x128, 240 epochs); synthetic (small net and data set,
minutes on 2 CPU cores); synthetic_mmt, synthetic_fdm, synthetic_baseline (the paper's Table 4 on it);
pku (PKU-Reid, MobileNetV2), pku_mmt, pku_fdm, pku_baseline; smoke (seconds). On tracklets: mars, mars_ap3d
(paper); synthetic_video, synthetic_video_baseline, smoke_video. Rows of the paper's Table 4 behind a dash:
msmt17-baseline, -fdm, -mmt. Any field can be changed on the command line: --config.efl.lambda_mi=1e-3.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row


def market(t):
    """Market-1501, batches of 16 identities x 8 images (paper, section 4)."""
    presets.image_set(t, "market1501")
    t["data"].update(ids=16, instances=8)


def duke(t):
    """DukeMTMC-reID; not in the paper, Market's settings."""
    market(t)
    t["data"].update(name="dukemtmc")


def msmt17(t):
    """MSMT17, batches of 16 identities x 16 images (paper)."""
    presets.image_set(t, "msmt17")
    t["data"].update(ids=16, instances=16)


def me_reid(t):
    """ME-ReID, batches of 16 identities x 4 images (paper); the paper starts from its MSMT17 model."""
    presets.image_set(t, "me_reid")
    t["data"].update(ids=16, instances=4)


def synthetic(t):
    """The embedded data set; short-run values of EFL's fields, each unlike the paper's."""
    presets.synthetic(t)
    t["efl"].update(
        lambda_kl=0.2,
        lambda_mi=3e-3,  # the bound is a sum over D = 128 instead of 2048 dimensions
        mi_start=150,  # identity first
        alpha=0.98,
        mi_lr=1e-3,  # 1e-5 does not move q in a short run
        mi_hidden=512,
    )


def pku(t):
    """PKU-Reid (2 cameras) from MobileNetV2's ImageNet weights; not in the paper, values as `synthetic`.

    --config.data.split draws the people who train; the rows of the paper's Table 4 are variants too.
    """
    synthetic(t)
    t["data"].update(name="pku_reid", height=128, width=64, erase=0.5, erase_area=(0.02, 0.4))
    t["model"].update(backbone="mobilenet_v2", last_stride=2, neck="bnneck")
    t["init"].update(weights="mobilenet_v2")  # extra `pretrained`
    t["optim"].update(lr=3.5e-4)
    t["train"].update(steps=400)


def smoke(t):
    """Seconds: a few steps of everything."""
    presets.smoke(t)
    t["efl"].update(mi_lr=1e-3, n_mi=2, mi_hidden=32, alpha=0.9)


def mars(t):
    """MARS, clips of 12 identities x 4 tracklets x 4 frames, C2D ResNet50 (paper; pooling as AP3D)."""
    presets.image_set(t, "mars")
    t["data"].update(ids=12, instances=4, frames=4)
    t["model"].update(backbone="c2d_resnet50", pool="max")
    t["eval"].update(batch_size=256)  # frames at a time


def mars_ap3d(t):
    """MARS with AP3D-NL ResNet50 (paper)."""
    mars(t)
    t["model"].update(backbone="ap3dnl_resnet50")


def synthetic_video(t):
    """The embedded walking tracklets; values as on images."""
    synthetic(t)
    presets.synthetic_video(t)


def smoke_video(t):
    """Seconds, on tracklets."""
    smoke(t)
    presets.smoke_video(t)


def mode(variant, name):
    """`variant` with another efl.mode."""

    def change(t):
        variant(t)
        t["efl"].update(mode=name)

    return change


VARIANTS = {
    "market": market,
    "duke": duke,
    "msmt17": msmt17,
    "me_reid": me_reid,
    "pku": pku,
    "pku_mmt": mode(pku, "mmt"),
    "pku_fdm": mode(pku, "fdm"),
    "pku_baseline": mode(pku, "baseline"),
    "synthetic": synthetic,
    "synthetic_mmt": mode(synthetic, "mmt"),
    "synthetic_fdm": mode(synthetic, "fdm"),
    "synthetic_baseline": mode(synthetic, "baseline"),
    "smoke": smoke,
    "mars": mars,
    "mars_ap3d": mars_ap3d,
    "synthetic_video": synthetic_video,
    "synthetic_video_baseline": mode(synthetic_video, "baseline"),
    "smoke_video": smoke_video,
}


ROWS = ("baseline", "fdm", "mmt")  # of the paper's Table 4, efl.mode


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("efl", variant, VARIANTS, ROWS)
    chosen = mode(VARIANTS[name], row) if row else VARIANTS[name]
    return ConfigDict(presets.tree("efl", name, {name: chosen}))
