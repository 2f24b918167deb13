"""CamStyle (Zhong et al., CVPR 2018) with the published settings: CycleGANs, then ReID with their images.

Variants: market, duke (256x128); synthetic (narrow nets, minutes on CPU cores); smoke (seconds). With the
published style images: --config.data.styles=FOLDER "--config.train.skip=('styles',)" and
--config.camstyle.styles=46, their number in a batch. Each stage may have values of its own for any field:
--config.stages.styles.train.epochs=10. Rows of the paper's table, behind a dash:
  -erasing          random erasing too
  -real             real images alone: what CamStyle is measured against
  -real_erasing     these with random erasing
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

HALF = (0.5,) * 3  # means and deviations of images for CycleGANs


def cycles(**train):
    """Stage styles: batches of one image a camera, Adam."""
    return dict(
        data=dict(instances=1, erase=0.0, pad_crop=0, mean=HALF, std=HALF),
        optim=dict(kind="adam", lr=2e-4, b1=0.5, weight_decay=0.0, groups=()),
        train=dict(eval_every=10) | train,
    )


def published(t):
    """What all data sets share. Images are cropped from padded ones, where the source crops and stretches."""
    t["data"].update(ids=128, instances=1, pad_crop=10, erase=0.0, erase_area=(0.02, 0.2))
    t["model"].update(last_stride=2, head="classblock", classblock_dim=1024)
    t["model"].update(classblock_act="relu", classblock_test="pooled")
    t["loss"].update(triplet_weight=0.0)
    t["optim"].update(kind="sgd", lr=0.1, nesterov=True, groups=(("^base/", 0.1, None),), milestones=(40,))
    t["train"].update(epochs=50, eval_every=10)
    t["stages"]["styles"] = cycles(epochs=50)


def market(t):
    """Market-1501, 15 pairs of cameras."""
    presets.image_set(t, "market1501")
    published(t)


def duke(t):
    """DukeMTMC-reID, 28 pairs of cameras."""
    presets.image_set(t, "dukemtmc")
    published(t)
    t["camstyle"].update(styles=6)


def synthetic(t):
    """The embedded data set and narrow nets from random weights; every value unlike the source's is here."""
    presets.synthetic(t)
    t["data"].update(ids=32, instances=1, erase=0.0)
    t["data"]["synthetic"].update(cameras=4, images=3)
    t["model"].update(head="classblock", classblock_dim=128, classblock_dropout=0.0)
    t["loss"].update(triplet_weight=0.0)
    t["camstyle"].update(width=8, blocks=2, dropout=0.0, noise=False, styles=3)
    t["stages"]["styles"] = cycles(steps=1000, eval_every=4, log_every=50)
    t["stages"]["styles"]["optim"].update(lr=1e-3, warmup_steps=0)


def smoke(t):
    """Seconds."""
    presets.smoke(t)
    t["data"].update(ids=4, instances=2, width=24)
    t["model"].update(head="classblock", classblock_dim=8, classblock_act="relu")
    t["loss"].update(triplet_weight=0.0)
    t["camstyle"].update(width=2, blocks=1, pool=3, styles=2)
    t["stages"]["styles"] = cycles(steps=6, eval_every=0)
    t["stages"]["styles"]["data"].update(instances=2)
    t["stages"]["styles"]["optim"].update(lr=1e-3, warmup_steps=0)


def erasing(t):
    """Random erasing, of the other settings' size."""
    t["data"].update(erase=0.5)


def real(t):
    """No CycleGANs and no style images."""
    t["train"].update(skip=("styles",))
    t["camstyle"].update(styles=0)


def real_erasing(t):
    """Real images with random erasing."""
    real(t)
    erasing(t)


VARIANTS = {f.__name__: f for f in (market, duke, synthetic, smoke)}
ROWS = {f.__name__: f for f in (erasing, real, real_erasing)}


def get_config(variant="market"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("camstyle", variant, VARIANTS, ROWS)
    tree = presets.tree("camstyle", name, VARIANTS)
    if row:
        ROWS[row](tree)
    return ConfigDict(tree)
