"""Heads of ViTs: the class token, and the jigsaw patches (JPM) of TransReID (He et al., ICCV 2021)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.models.backbones import DTYPES, group_axis, vit
from reid_jax.models.heads._branches import Branches, Head
from reid_jax.models.heads.pooled import GlobalHead
from reid_jax.models.layers import BatchNorm, normal, wide

FIELDS = dict(
    token_test="before",  # heads "token" and "jpm": before | after: the test feature before or behind necks
    jpm_parts=4,  # head "jpm": parts that the patches are cut into, each with a classifier
    jpm_shift=5,  # patches from this one on come first
    jpm_groups=2,  # groups that the patches are dealt out from in turn
    jpm_shuffle=True,  # False: neither shifted nor dealt out
)


class TokenHead(GlobalHead):
    """GlobalHead on the class token."""

    test: str = "before"

    tokens = True

    def pool(self, x):
        """Tokens [...,1+N,C] -> [...,C]."""
        return x[..., 0, :]

    @nn.compact
    def __call__(self, x, train):
        out = super().__call__(x, train)
        return out._replace(test=(out.before_bn if self.test == "before" else out.after_bn)[0])


def shuffled(patches, shift, groups):
    """Patches [...,N,C] from number `shift` (from 1) on, then the others, dealt out from `groups` in turn.

    Where the groups do not divide N, the last patch but one is there twice. ConfigError where that does not
    help.
    """
    x = jnp.roll(patches, 1 - shift, -2)
    if x.shape[-2] % groups:
        x = jnp.concatenate([x, x[..., -2:-1, :]], -2)
    if x.shape[-2] % groups:
        raise ConfigError(
            f"config.model.jpm_groups is {groups} and the backbone has {patches.shape[-2]} patches; it must "
            "divide them or one more"
        )
    lead, channels = x.shape[:-2], x.shape[-1]
    return x.reshape(*lead, groups, -1, channels).swapaxes(-3, -2).reshape(*lead, -1, channels)


class JpmHead(Head):
    """A last block `b1` over all tokens, and one, `b2`, over the class token and each of `parts` parts.

    The parts are of the shuffled patches, N // parts each; what is left over is dropped. Every class token
    has a neck (batch norm, bias frozen at 0) and a classifier without bias, whatever config.model.neck says.
    block, norm: constructors of ones like the backbone's last. The test feature [B,(1+parts)C] are the global
    one and the local ones over `parts`.
    """

    num_classes: int
    block: Callable
    norm: Callable
    parts: int = 4
    shift: int = 5
    groups: int = 2
    shuffle: bool = True
    test: str = "before"
    axis_name: str | None = None
    rows: int = 0

    tokens = True
    frozen = (r"^neck(_\d+)?/bias$",)

    @property
    def ends(self):
        """What the names of the branches' modules end in."""
        return ("", *(f"_{i}" for i in range(1, self.parts + 1)))

    @property
    def classifiers(self):
        return tuple(f"classifier{end}" for end in self.ends)

    def setup(self):
        for name in ("b1", "b2"):
            setattr(self, f"{name}_0", self.block())
            setattr(self, f"{name}_1", self.norm())
        for end in self.ends:
            norm = BatchNorm(axis_name=self.axis_name, rows=self.rows, frozen_bias=True)
            setattr(self, f"neck{end}", norm)
            classifier = nn.Dense(self.num_classes, False, kernel_init=normal(0.0, 0.001))
            setattr(self, f"classifier{end}", classifier)

    def pooled(self, base, x, train, **options):
        """Class tokens [...,(1+parts)C] of images by a backbone, the global one first."""
        z = base.before_last(x, train, **options)
        whole = self.b1_1(self.b1_0(z, train))[..., :1, :]
        local = self.b2_1(self.b2_0(self.cut(z), train))[:, 0]
        local = local.reshape(*whole.shape[:-2], self.parts, -1)
        return wide(jnp.concatenate([whole, local], -2)).reshape(*whole.shape[:-2], -1)

    def cut(self, tokens):
        """Tokens [...,1+N,C] -> [images parts, 1 + N // parts, C], the parts of an image side by side."""
        first, patches = tokens[..., :1, :], tokens[..., 1:, :]
        count, channels = patches.shape[-2] // self.parts, tokens.shape[-1]
        if not count:
            raise ConfigError(
                f"config.model.jpm_parts is {self.parts} and the backbone has {patches.shape[-2]} patches; "
                "use fewer parts or larger pictures (config.data.height)"
            )
        if self.shuffle:
            patches = shuffled(patches, self.shift, self.groups)
        lead = patches.shape[:-2]
        patches = patches[..., : self.parts * count, :].reshape(*lead, self.parts, count, channels)
        first = jnp.broadcast_to(first[..., None, :, :], (*lead, self.parts, 1, channels))
        return jnp.concatenate([first, patches], -2).reshape(-1, 1 + count, channels)

    def __call__(self, x, train):
        before = tuple(jnp.split(x, 1 + self.parts, -1))
        after = tuple(getattr(self, f"neck{end}")(b, train) for end, b in zip(self.ends, before, strict=True))
        named = zip(self.classifiers, after, strict=True)
        logits = tuple(getattr(self, name)(a) for name, a in named)
        first, *local = before if self.test == "before" else after
        test = jnp.concatenate([first, *(f / self.parts for f in local)], -1)
        return Branches(logits, before, after, test)


def token(model, num_classes, axis_name, num_features):
    """TokenHead of config.model."""
    neck = choice("model.neck", model.neck, ("ap3d", "bnneck", "none"))
    options = dict(neck=neck, num_features=num_features, axis_name=group_axis(model, axis_name))
    return TokenHead(num_classes, rows=model.bn_rows, test=test_of(model), **options)


def jpm(model, num_classes, axis_name, num_features):
    """JpmHead of config.model; ConfigError for sizes that describe none."""
    sizes = model.jpm_parts, model.jpm_shift, model.jpm_groups
    if min(sizes) < 1:
        raise ConfigError(
            f"config.model.jpm_parts, jpm_shift and jpm_groups are {sizes}; they must be 1 or more"
        )
    if num_features:
        raise ConfigError("config.model.head 'jpm' has no embedding before its necks; use head 'token'")
    if model.backbone not in vit.NAMES:
        raise ConfigError(f"config.model.head 'jpm' is for ViTs, not for {model.backbone!r}: use head=global")
    net = vit.build(model, DTYPES[model.dtype], axis_name)
    options = dict(axis_name=group_axis(model, axis_name), rows=model.bn_rows, test=test_of(model))
    last = net.block(net.depth - 1), functools.partial(vit.layer_norm, net.sizes)
    return JpmHead(num_classes, *last, *sizes, model.jpm_shuffle, **options)


def test_of(model):
    return choice("model.token_test", model.token_test, ("before", "after"))


NAMES = {"token": token, "jpm": jpm}
