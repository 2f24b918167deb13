"""CamStyle (Zhong et al., CVPR 2018): training images in the styles of all cameras, beside the real ones.

styles   a CycleGAN for each pair of cameras, all pairs at a time (cycles.py); left out where
         config.data.styles has images
reid     cross entropy on real images, smoothed cross entropy on images in another camera's style (reid.py)
"""

from reid_jax.methods.camstyle.cycles import STUDY, Styles  # noqa: F401
from reid_jax.methods.camstyle.reid import Reid

TITLE = "CamStyle"
FIELDS = dict(
    width=64,  # of the generators' and discriminators' first layers
    blocks=9,  # residual blocks of a generator
    dropout=0.5,  # in them,
    noise=True,  # also when style images are made, as the published script leaves it
    cycle=10.0,  # weight of the cycle's L1
    identity=0.5,  # times cycle: weight of the L1 to an image that has the style already
    pool=50,  # generated images that a discriminator may see again; 0: none
    constant=0.6,  # share of the stage before the rate falls to 0 in a line
    styles=8,  # style images of each camera in a batch of stage reid; 0: none. Of data.styles: in all
    weight=1.0,  # of their loss
    smooth=0.1,  # of their labels
)
METRICS = {
    "gan": "Generated images pass for real",
    "cycle": "There and back",
    "same": "Images that have the style already",
    "dis": "Loss of the discriminators",
    "ce": "Identity cross entropy",
    "styled": "Identity cross entropy, style images",
    "accuracy": "Identity accuracy",
}
LABELS = "all"
STAGES = {"styles": Styles, "reid": Reid}
