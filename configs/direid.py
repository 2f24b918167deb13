"""DI-REID (Huang et al., CVPR 2020): a teacher, DDGAN (stage "gan"), DFEN (stage "dfen").

Variants: mlr_cuhk03, mlr_viper, caviar (low resolution), msmt17 (illumination), synthetic_lowres,
synthetic_lowlight (narrow nets, minutes on 2 CPU cores), smoke (seconds). Behind a dash: the rows of the
paper's Table 3, caviar-no_attention, ..., see ROWS, or "journal" for the objectives of the IJCV 2022 version.
Each stage may have values of its own for any field: --config.stages.gan.train.steps=30000.
"""

from ml_collections import ConfigDict

from reid_jax import fields, methods, presets
from reid_jax.methods.direid import PRESETS

ROWS = {  # of the paper's Table 3; f_sen and f_inv alone are networks of every run (eval.net)
    "baseline": dict(train=dict(skip=("gan", "dfen"))),
    "baseline_augmented": dict(train=dict(skip=("gan", "dfen")), data=dict(degrade=dict(share=0.5))),
    "no_dil": dict(train=dict(skip=("gan",)), direid=dict(attention_input="none")),
    "no_multi_scale": dict(direid=dict(multi_scale=False)),
    "no_attention": dict(direid=dict(attention_input="none")),
    "full": {},
    # beside the paper's
    "stem_gradient": dict(direid=dict(stem_gradient=True)),
    "sen_before": dict(direid=dict(sen_loss="before")),
    "neck": dict(direid=dict(sen_loss="before", attention_on="neck", attention_norm=True)),
}


def paper(t):
    """What all data sets share: the paper's text, its code's constants where the text is silent."""
    t["data"].update(ids=8, instances=4, pad_crop=10, erase=0.0)
    t["model"].update(last_stride=2, pool="max")
    t["loss"].update(triplet="euclidean", feature="before_bn")
    t["optim"].update(lr=3.5e-4, milestones=(40,))
    t["train"].update(epochs=60, eval_every=10)
    t["eval"].update(net="all")
    t["stages"]["gan"] = dict(
        data=dict(ids=8, instances=1),
        optim=dict(lr=1e-4, b1=0.0),
        train=dict(steps=15_000, eval_every=3, log_every=200),
        eval=dict(net="auto"),
    )


def low_resolution(t):
    """Camera 0 is the poor one."""
    paper(t)
    t["data"].update(pairs="semi")
    t["data"]["degrade"].update(kind="res")


def mlr_cuhk03(t):
    low_resolution(t)
    t["data"].update(name="mlr_cuhk03")


def mlr_viper(t):
    low_resolution(t)
    t["data"].update(name="mlr_viper", ids=16, instances=2)


def caviar(t):
    low_resolution(t)
    t["data"].update(name="caviar")


def msmt17(t):
    paper(t)
    t["data"].update(name="msmt17")
    t["data"]["degrade"].update(kind="ill")


def synthetic(t):
    """Narrow nets and short stages; every value unlike the paper's stands here."""
    presets.synthetic(t)
    t["data"].update(height=96, width=48, pad_crop=5, erase=0.0)  # smaller ones cannot be decoded sharply
    # few cameras, alike in light and noise, else the codes hold the camera; pictures are small, then enlarged
    t["data"]["synthetic"].update(cameras=3, images=4, strength=0.0)
    t["model"].update(pool="max", narrow_widths=(24, 32, 64, 256))
    t["loss"].update(triplet="cosine")  # the Euclidean one hardly trains from random weights
    t["train"].update(steps=800, eval_every=0, checkpoint_every=10)
    t["eval"].update(net="all")
    t["direid"].update(
        content_dim=32,
        content_scale_dim=48,
        aspp_dim=64,
        feature_dim=256,
        neck_dim=64,
        dropout=0.0,
        code_dim=32,
        code_width=16,
        mlp_dim=64,
        generator_blocks=2,
        discriminator_width=8,
        discriminator_blocks=1,
        discriminator_std=0.0,  # from 0.02 so few channels hardly pass a signal
        reality_scales=2,
        attention_dim=32,
        # without these two E_d codes the camera and hardly the degradation
        one_degradation_encoder=True,
        degraded_recon=True,
        gan_milestones=(900,),
    )
    t["stages"]["gan"] = dict(
        data=dict(ids=4, instances=1),
        optim=dict(lr=1e-3, b1=0.5, warmup_steps=0, weight_decay=0.0),
        train=dict(steps=1200, eval_every=2, log_every=50),
        eval=dict(net="auto"),
    )
    t["stages"]["dfen"] = dict(train=dict(steps=300))


def synthetic_lowres(t):
    """Blur is a small difference of two pictures: the generator has to be sharp before it is seen at all."""
    synthetic(t)
    t["data"].update(pairs="semi")
    t["data"]["synthetic"].update(kind="lowres", height=36, width=18)
    t["direid"].update(gan_milestones=(2200,))
    t["stages"]["gan"]["train"].update(steps=2700)


def synthetic_lowlight(t):
    synthetic(t)
    t["data"]["degrade"].update(kind="ill")
    t["data"]["synthetic"].update(kind="lowlight", height=48, width=24)
    t["direid"].update(degradation_scales=2)


def smoke(t):
    """Seconds: a few steps of every stage."""
    presets.smoke(t)
    t["data"].update(height=32, width=32, pairs="semi")
    t["data"]["synthetic"].update(kind="lowres")
    t["model"].update(pool="max", narrow_widths=(4, 6, 8, 8))
    t["loss"].update(triplet="euclidean", feature="before_bn")
    t["eval"].update(net="all")
    t["direid"].update(
        content_dim=8,
        content_scale_dim=4,
        aspp_dim=8,
        feature_dim=12,
        neck_dim=6,
        code_dim=4,
        code_width=2,
        mlp_dim=8,
        generator_blocks=1,
        discriminator_width=4,
        discriminator_blocks=1,
        reality_scales=2,
        attention_dim=6,
        gan_milestones=(4,),
    )
    t["stages"]["gan"] = dict(
        data=dict(ids=4, instances=1),
        optim=dict(lr=1e-3, b1=0.0, warmup_steps=0),
        train=dict(steps=6),
        eval=dict(net="auto"),
    )


VARIANTS = {
    f.__name__: f
    for f in (mlr_cuhk03, mlr_viper, caviar, msmt17, synthetic_lowres, synthetic_lowlight, smoke)
}


def get_config(variant="mlr_cuhk03"):
    """ConfigDict of one variant, or of VARIANT-ROW or VARIANT-journal; ConfigError for an unknown one."""
    name, row = fields.split_row("direid", variant, VARIANTS, (*ROWS, *PRESETS))
    tree = methods.defaults("direid")
    tree["direid"].update(PRESETS.get(row, {}))
    VARIANTS[name](tree)
    if row == "journal":
        tree["data"].update(erase=0.5, erase_fill=(0.0,) * 3)
        tree["data"]["degrade"].update(ratio=(3.0, 5.0))
    fields.update(tree, ROWS.get(row, {}))
    return ConfigDict(tree)
