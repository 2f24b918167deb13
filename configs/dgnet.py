"""DG-Net (Zheng et al., CVPR 2019) with the published code's settings: a teacher, then stage "dgnet".

Variants: market, duke, msmt17 (256x128, 100000 iterations of 8 pairs), synthetic (narrow nets, minutes on CPU
cores), smoke (seconds). Start the full-size ones from ImageNet weights (config.init.weights). Each stage may
have values of its own for any field: --config.stages.dgnet.train.steps=30000.
"""

from ml_collections import ConfigDict

from reid_jax import presets


def published(t):
    """What all data sets share. The teacher's settings are those of the baseline that the authors trained."""
    t["data"].update(ids=8, instances=1, pad_crop=10, pad_mode="edge", erase_fill=(0.0,) * 3)
    t["model"].update(last_stride=1, pool="max")
    t["loss"].update(triplet_weight=0.0)
    t["optim"].update(lr=1e-4, b1=0.0)
    t["train"].update(steps=100_000, eval_every=10, log_every=100)
    t["eval"].update(net="all")
    t["stages"]["teacher"] = dict(
        data=dict(ids=32),
        optim=dict(kind="sgd", lr=0.05, nesterov=True, groups=(("^base/", 0.1, None),), milestones=(40,)),
        train=dict(steps=0, epochs=60),
    )


def market(t):
    """Market-1501."""
    presets.image_set(t, "market1501")
    published(t)


def duke(t):
    """DukeMTMC-reID."""
    presets.image_set(t, "dukemtmc")
    published(t)


def msmt17(t):
    """MSMT17."""
    presets.image_set(t, "msmt17")
    published(t)


def synthetic(t):
    """The embedded data set and narrow nets from random weights; every value unlike the source's is here."""
    presets.synthetic(t)
    t["data"].update(ids=4, instances=1, erase_fill=(0.0,) * 3)
    t["data"]["synthetic"].update(strength=0.5)
    t["model"].update(pool="max", narrow_widths=(24, 32, 64, 128))
    t["loss"].update(triplet_weight=0.0)
    t["optim"].update(lr=1e-3, b1=0.5, warmup_steps=0, weight_decay=0.0)
    t["train"].update(steps=1000, eval_every=4, log_every=50)
    t["dgnet"].update(
        width=8,
        halvings=1,  # structure of 32x16, where the source has 64x32
        blocks=2,
        parts=2,
        mlp_dim=64,
        neck_dim=128,
        dropout_prim=0.0,
        dropout_fine=0.0,
        scales=2,
        discriminator_width=8,
        discriminator_blocks=1,
        discriminator_std=0.0,  # from 0.02 so few channels hardly pass a signal
        teacher_stride=1,
        teacher_dropout=0.0,
        from_teacher=True,
        scale2=False,
        warm_from=100,
        warm_teacher_from=100,
        warm_by=0.01,
        milestones=(850,),
    )
    t["stages"]["teacher"] = dict(
        data=dict(ids=32),
        optim=dict(lr=4e-3, b1=0.9, weight_decay=5e-4, warmup_steps=50),
        train=dict(steps=500, eval_every=0),
    )


def smoke(t):
    """Seconds: a few steps of both stages, all terms from the first on."""
    presets.smoke(t)
    t["data"].update(ids=4, instances=1, erase=0.5)
    t["model"].update(pool="max", narrow_widths=(4, 6, 8, 8))
    t["loss"].update(triplet_weight=0.0)
    t["eval"].update(net="all")
    t["dgnet"].update(
        width=2,
        blocks=1,
        parts=2,
        mlp_dim=8,
        neck_dim=6,
        scales=2,
        discriminator_width=4,
        discriminator_blocks=1,
        warm_from=2,
        warm_teacher_from=2,
        warm_by=0.1,
        milestones=(4,),
        **dict.fromkeys(("warm_code", "warm_structure", "warm_cycle", "warm_teacher"), (0.1, 1.0)),
    )
    t["stages"]["dgnet"] = dict(optim=dict(lr=1e-3, b1=0.0, warmup_steps=0), train=dict(steps=6))


VARIANTS = {f.__name__: f for f in (market, duke, msmt17, synthetic, smoke)}


def get_config(variant="market"):
    """ConfigDict of one variant; ConfigError for an unknown one."""
    return ConfigDict(presets.tree("dgnet", variant, VARIANTS))
