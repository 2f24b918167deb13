"""Backbones by name: images [...,H,W,3] -> maps [...,h,w,C]. A module lists its nets in NAMES.

NAMES: {name: (config.model, dtype, axis_name) -> Backbone}. NORM: {name: the norm it stands for}, if any.
FRAMES_APART: False where the frames of a clip see each other. SIZE: (height, width) of the images, where a
net takes no others.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax import models
from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models import norms, styles

DTYPES = {"float32": None, "float64": None, "bfloat16": jnp.bfloat16}  # None: the promoted type


class Backbone(nn.Module, kw_only=True):
    """A stem and stages 1 to `depth`, each of which can be called alone.

    Variables belong to what is called: init through `maps(x, False, 0, 3)` has no stage 4.

    dtype: compute type of the convolutions; None: the promoted type of input and parameters.
    norms: which norms stand where. refine, style: None, or functions of a place (one of `places`) that give
    a module (x, train) -> x to put there, or None. Places are "stem" (between the stem's convolution and its
    norm), "pool" (after the max pooling) and the numbers of stages (behind them); `refine` of ResNets is also
    asked for (stage, block), behind every block, from 0.
    """

    dtype: jnp.dtype | None = None
    axis_name: str | None = None
    norms: Any = norms.Norms()
    refine: Callable | None = None
    style: Callable | None = None

    outputs = 1  # maps that a call gives; more than one as a tuple
    only_batch_norm = False  # whether `norms` other than batch norm have no place in it
    by_domain = True  # whether its norms may be those of several domains
    tokens = False  # whether it gives tokens [...,1+N,C], the class token first, instead of maps
    wants_camera = False  # whether the call takes `camera` too, i32[B] (None: unknown), as many as `cameras`

    @property
    def depth(self):
        """Number of stages."""
        return len(self.counts)

    @property
    def places(self):
        """Where modules may be put, see above."""
        return ("stem", "pool", *range(1, self.depth + 1))

    def __call__(self, x, train):
        """The last map."""
        return self.maps(x, train)[-1]

    def maps(self, x, train, first=0, last=None):
        """Maps after stages first to last (None: `depth`), [x after stage first, ...].

        first 0: x are images and the first map is the stem's, before the max pooling; else the map before
        stage `first`.
        """
        maps = []
        if first == 0:
            maps.append(self.stem(x, train))
            x = self.pool(maps[0], train)
        for stage in range(max(first, 1), (self.depth if last is None else last) + 1):
            maps.append(x := seen(self.stage(stage, x, train)))
        return maps

    def pool(self, x, train):
        """The stem's map as stage 1 gets it."""
        return x

    @nn.compact
    def at(self, place, x, train):
        """x after the modules that `refine` and `style` put at a place."""
        for hook in (self.refine, self.style):
            module = None if hook is None else hook(place)
            x = x if module is None else module(x, train)
        return x


def seen(maps):
    """A map [...,H,W,C], or several; ConfigError where nothing is left of the picture."""
    for x in jax.tree.leaves(maps):
        if 0 in x.shape[-3:-1]:
            raise ConfigError(
                f"pictures are too small for config.model.backbone, which makes a map of {x.shape[-3]} x "
                f"{x.shape[-2]} of them: make config.data.height and config.data.width larger"
            )
    return maps


def names():
    """Names of all backbones."""
    return tuple(models.offers("backbones"))


def find(name):
    """The module that offers a backbone; ConfigError when there is none."""
    choice("model.backbone", name, names())
    return models.offers("backbones")[name]


def pools_stem(name):
    """Whether a backbone heeds config.model.stem_pool."""
    return "resnet" in name or name.startswith("slim")


def build(model, axis_name=None, refine=None, num_cams=0, domains=1, test_domain=0):
    """The Backbone of config.model; axis_name: the train step's device axis; refine: see Backbone.

    num_cams: training cameras, 0 where nobody hands over a picture's camera. domains, test_domain: norms by
    domain, see layers.RunningMoments.

    Raises ConfigError for names it does not know and for fields that do not go together.
    """
    module = find(model.backbone)
    choice("model.last_stride", model.last_stride, (1, 2))
    dtype = DTYPES[choice("model.dtype", model.dtype, tuple(DTYPES))]
    axis = group_axis(model, axis_name)
    net = module.NAMES[model.backbone](model, dtype, axis)
    implied = getattr(module, "NORM", {}).get(model.backbone)
    chosen = norms.build(model, axis, implied, domains, test_domain)
    if domains > 1 and not net.by_domain:
        raise ConfigError(f"config.model.backbone {model.backbone!r} cannot have norms by domain")
    if net.only_batch_norm and type(chosen) is not norms.Norms:
        raise ConfigError(
            f"config.model.backbone {model.backbone!r} has batch norm only, not config.model.norm "
            f"{model.norm!r}; use a ResNet, slim or narrow"
        )
    if model.stem_pool != "padded" and not pools_stem(model.backbone):
        raise ConfigError(
            f"config.model.stem_pool is {model.stem_pool!r}, which {model.backbone!r} has not: leave it "
            "'padded', or use a ResNet or slim"
        )
    style = styles.build(model, net.places, axis_name)
    if net.wants_camera:
        net = net.clone(cameras=known_cameras(model, num_cams))
    return net.clone(norms=chosen, refine=refine, style=style)


def known_cameras(model, num_cams):
    """num_cams; ConfigError when there are none for a backbone that wants them."""
    if num_cams < 1:
        raise ConfigError(
            f"config.model.backbone {model.backbone!r} wants the camera of every picture, which "
            "this method does not give it: train the baseline, or set config.model.vit_sie=0 of a ViT"
        )
    return num_cams


def group_axis(model, axis_name):
    """The axis over which batch norms join their statistics, None with model.bn_group "device"."""
    group = choice("model.bn_group", model.bn_group, ("device", "global"))
    if group == "global" and model.bn_rows:
        raise ConfigError(
            f"config.model.bn_rows is {model.bn_rows}: rows of a device's batch; it needs "
            "config.model.bn_group=device"
        )
    return None if group == "device" else axis_name
