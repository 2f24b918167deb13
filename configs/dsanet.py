"""DSANet (Kim, Cho, Lee, WACV 2023) on tracklets, with the paper's settings.

Variants: mars, duke_video, ls_vid (paper: 256x128, 8 identities x 4 clips x 8 frames, 200 epochs); synthetic
(small net, walking tracklets, minutes on 2 CPU cores); smoke (seconds). The rows of the paper's Table 2
stand behind a dash: ls_vid-baseline, synthetic-tlm, ..., see ROWS and MORE. Any field can be
changed on the command line: --config.dsanet.lam=0.05.
"""

from ml_collections import ConfigDict

from reid_jax import presets
from reid_jax.fields import split_row

OFF = dict(disentangle=False, intra_class=False, tlm=False, loss_lr=False, fwg=False, loss_w=False, sao=False)
APART = dict(OFF, disentangle=True, intra_class=True)
ROWS = {  # the paper's Table 2; every row but the baseline disentangles
    "baseline": OFF,
    "tlm_no_lr": dict(APART, tlm=True),
    "tlm": dict(APART, tlm=True, loss_lr=True),
    "fwg_no_w": dict(APART, fwg=True),
    "fwg": dict(APART, fwg=True, loss_w=True),
    "tlm_fwg_no_ic": dict(APART, tlm=True, loss_lr=True, fwg=True, loss_w=True, intra_class=False),
    "tlm_fwg": dict(APART, tlm=True, loss_lr=True, fwg=True, loss_w=True),
    "full": {},
}
MORE = {  # beside the paper's: other forms of what L_dis and the triplet compare
    "cel_relu": dict(cel_relu=True),
    "center": dict(center=True),
    "raw_triplet": dict(raw_triplet=200),  # steps before it
}


def paper(t):
    """What all data sets share (paper, section 4; the specification's choices where it is silent)."""
    t["data"].update(ids=8, instances=4, frames=8, clip="rrs", test_clip="interleaved", erase_fill=(0.0,) * 3)
    t["loss"].update(triplet="euclidean", feature="before_bn")
    t["optim"].update(lr=3.5e-4, milestones=(40, 80, 120, 160))
    t["train"].update(epochs=200)
    t["eval"].update(batch_size=256)  # frames at a time


def mars(t):
    paper(t)
    t["data"].update(name="mars")


def duke_video(t):
    paper(t)
    t["data"].update(name="duke_video")


def ls_vid(t):
    paper(t)
    t["data"].update(name="ls_vid")
    t["dsanet"].update(lam_cam=0.5)


def synthetic(t):
    """Walking tracklets and the narrow net; short-run values, each unlike the paper's.

    Beside size and schedule: the triplet on cosine after the neck (Euclidean before it hardly trains even the
    baseline row in a few hundred steps), and two deviations from the paper that let all modules learn in a
    short run from random weights: the frame weights start even (fwg_std; Kaiming's initialisation, the
    default where the paper is silent, starts them almost one-hot), and L_ic has a factor (its gradient at
    the start is hundreds of times L_id's).
    """
    presets.synthetic_video(t)
    t["data"].update(clip="rrs", test_clip="interleaved", erase_fill=(0.0,) * 3)
    t["dsanet"].update(fwg_std=0.01, lam_ic=0.1)


def smoke(t):
    """Seconds: a few steps of everything."""
    presets.smoke_video(t)
    t["data"].update(clip="rrs", test_clip="interleaved", erase_fill=(0.0,) * 3)
    t["loss"].update(triplet="euclidean", feature="before_bn")


VARIANTS = {"mars": mars, "duke_video": duke_video, "ls_vid": ls_vid, "synthetic": synthetic, "smoke": smoke}


def get_config(variant="mars"):
    """ConfigDict of one variant, or of VARIANT-ROW; ConfigError for an unknown one."""
    name, row = split_row("dsanet", variant, VARIANTS, ROWS | MORE)
    tree = presets.tree("dsanet", name, VARIANTS)
    tree["dsanet"].update((ROWS | MORE)[row or "full"])
    return ConfigDict(tree)
