"""Networks of DI-REID's first stage: content and degradation encoder, generator, discriminators, E_id.

Submodules are called as in the reference's keys (`_0` for `.0`), so that weights of the layout `direid` fit.
Images and maps are [B,H,W,C].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.methods.direid.layers import LiteResidual
from reid_jax.models import heads
from reid_jax.models.blocks import HE, Aspp, ClassBlock, ConvBlock, leaky, upsample
from reid_jax.models.gan import Discriminator, Generator
from reid_jax.models.layers import Conv, wide

# ---- content encoder


class UpConv(nn.Module):
    """Upsampling to a size, then a zero-padded 3x3 convolution with batch norm."""

    features: int
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, size, train):
        options = dict(reflect=False, norm="batch", act=leaky, dtype=self.dtype, axis_name=self.axis_name)
        return ConvBlock(self.features, 3, **options, name="conv")(upsample(x, *size), train)


class Head(nn.Module):
    """Maps of the stem [s0, s1, ...] -> (f_inv [B,feature_dim], content [B,H/4,W/4,content_dim]).

    s0 [B,H/2,W/2,C] goes through the ASPP, the others as they are; then per scale the invariance block and
    the content and the identity branch. widths: of (ASPP, content per scale). multi_scale: False keeps the
    last map only.
    """

    content_dim: int = 128
    feature_dim: int = 2048
    widths: tuple[int, int] = (128, 64)
    multi_scale: bool = True
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, maps, train, content=True, identity=True):
        """content, identity: whether that branch is computed (its running statistics moved), else None."""
        size = tuple(n // 2 for n in maps[0].shape[1:3])
        fields = (self.dtype, self.axis_name)
        if self.multi_scale:
            maps = [Aspp(self.widths[0], True, dtype=self.dtype, name="aspp")(maps[0]), *maps[1:]]
        else:
            maps = maps[-1:]
        maps = [
            LiteResidual(x.shape[-1], *fields, name=f"invariance_{i}")(x, train) for i, x in enumerate(maps)
        ]
        f = self.identity(maps, train, fields) if identity else None
        return f, self.content(maps, size, train, fields) if content else None

    def content(self, maps, size, train, fields):
        blocks = [UpConv(self.widths[1], *fields, name=f"content_{i}") for i in range(len(maps))]
        x = jnp.concatenate([block(x, size, train) for block, x in zip(blocks, maps, strict=True)], -1)
        options = dict(norm="instance", act=leaky, dtype=self.dtype)
        return ConvBlock(self.content_dim, **options, name=f"content_{len(maps)}")(x)

    def identity(self, maps, train, fields):
        pooled = []
        for i, x in enumerate(maps):
            for j in range(2):
                x = LiteResidual(x.shape[-1], *fields, name=f"identity_{i}_0_{j}")(x, train)
            pooled.append(wide(x).mean((1, 2)))
        x = jnp.concatenate(pooled, -1)[:, None, None]
        options = dict(norm="batch", act=leaky, axis_name=self.axis_name, name=f"identity_{len(maps)}")
        return ConvBlock(self.feature_dim, **options)(x, train)[:, 0, 0]


class ContentEncoder(nn.Module):
    """E_c: stem `base` (a trunk, all stages but its last), `head` and `classifier` on f_inv.

    The stem gets gradients through `identity` and `shared`, with stem_gradient through all; its statistics
    move in any training call.
    """

    base: nn.Module
    head: nn.Module
    classifier: nn.Module
    stem_gradient: bool = False  # the content's gradients reach the stem too

    def __call__(self, x, train):
        """(f_inv [B,D], content [B,H/4,W/4,C]), nothing of it reaching the stem."""
        return self.head(self.detached(x, train), train)

    def content(self, x, train):
        """The content alone."""
        return self.head(self.detached(x, train), train, identity=False)[1]

    def identity(self, x, train):
        """f_inv [B,D]; gradients reach the stem."""
        return self.shared(x, train)[0]

    def shared(self, x, train):
        """(f_inv, the stem's last map), gradients reach the stem."""
        maps = self.base.maps(x, train, 0, self.base.depth - 1)
        return self.head(maps, train, content=False)[0], maps[-1]

    def classify(self, f, train):
        """f_inv [B,D] -> (neck [B,N], logits [B,K])."""
        return self.classifier(f, train)

    def everything(self, x, train):
        """For init."""
        f, c = self(x, train)
        return self.classify(f, train), c

    def detached(self, x, train):
        maps = self.base.maps(x, train, 0, self.base.depth - 1)
        return maps if self.stem_gradient else jax.lax.stop_gradient(maps)


class IdentityEncoder(nn.Module):
    """E_id: a whole trunk, or its stages from `first` on for the map of a shared stem; pooling, `classifier`.

    x: images, or the shared stem's last map [B,h,w,C] -> f_sen [B,D].
    """

    base: nn.Module
    classifier: nn.Module
    pool: str = "max"
    first: int = 0

    def __call__(self, x, train):
        return heads.spatial_pool(wide(self.map(x, train)), self.pool)

    def map(self, x, train):
        """The last map [B,h,w,D], not pooled."""
        return self.base.maps(x, train, self.first)[-1]

    def classify(self, f, train):
        """f_sen [B,D] -> (neck [B,N], logits [B,K])."""
        return self.classifier(f, train)

    def everything(self, x, train):
        """For init."""
        return self.classify(self(x, train), train)


# ---- degradation encoder, generator


class DegradationTrunk(nn.Module):
    """Six reflected 3x3 convolutions with ReLU, H/32, mean over the map: images -> [B,1,1,4 width]."""

    width: int = 64
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        widths, strides = (1, 1, 2, 4, 4, 4), (2, 1, 2, 2, 2, 2)
        names = ("conv1", "conv2", "block_0", "block_1", "block_2", "block_3")
        for name, times, stride in zip(names, widths, strides, strict=True):
            x = ConvBlock(times * self.width, 3, stride, act=nn.relu, dtype=self.dtype, name=name)(x)
        return wide(x).mean((1, 2), keepdims=True)


class DegradationEncoder(nn.Module):
    """E_d and E'_d: images -> degradation codes [B,dim].

    share: E'_d (for synthetic degradations) has E_d's trunk and only a last layer of its own; one: it is E_d.
    """

    dim: int = 128
    width: int = 64
    share: bool = False
    one: bool = False
    dtype: jnp.dtype | None = None

    def setup(self):
        def last():
            return Conv(self.dim, use_bias=True, init=HE, bias_init=nn.initializers.zeros)

        self.trunk = DegradationTrunk(self.width, self.dtype)
        self.conv3_real = last()
        if not self.one:
            self.conv3_sync = last()
        if not (self.share or self.one):
            self.trunk_sync = DegradationTrunk(self.width, self.dtype)

    def __call__(self, x):
        """E_d."""
        return self.conv3_real(self.trunk(x))[:, 0, 0]

    def synthetic(self, x):
        """E'_d."""
        if self.one:
            return self(x)
        trunk = self.trunk if self.share else self.trunk_sync
        return self.conv3_sync(trunk(x))[:, 0, 0]

    def both(self, x, x_synthetic):
        """(E_d(x), E'_d(x_synthetic)), of as many images each."""
        if self.one:
            return jnp.split(self(jnp.concatenate([x, x_synthetic])), [len(x)])
        if not self.share:
            return self(x), self.synthetic(x_synthetic)
        pooled = self.trunk(jnp.concatenate([x, x_synthetic]))
        real, other = jnp.split(pooled, [len(x)])
        return self.conv3_real(real)[:, 0, 0], self.conv3_sync(other)[:, 0, 0]


# ---- construction from a config


def trunk(model, axis_name):
    """The backbone of config.model; ConfigError when direid cannot use it."""
    base = heads.trunk(model, axis_name)
    if not heads.frames_apart(model):
        raise ConfigError(
            f"config.model.backbone {model.backbone!r} takes clips, direid single images; use a ResNet, "
            "resnest50, slim or narrow"
        )
    if model.style != "none":
        raise ConfigError(
            f"config.model.style is {model.style!r}; direid has no style layers, leave it at 'none'"
        )
    if base.depth < 2:
        raise ConfigError(
            "direid needs two stages or more: give config.model.narrow_widths three numbers or more"
        )
    return base


def norm_axis(config, info):
    """The axis over which batch norms outside the backbone take their statistics."""
    return None if config.model.bn_group == "device" else info.axis_name


def class_block(config, info):
    """A ClassBlock for the identities."""
    d = config.direid
    return ClassBlock(info.num_pids, d.neck_dim, d.dropout, norm_axis(config, info))


def content_encoder(config, info):
    """E_c of a config."""
    d, base = config.direid, trunk(config.model, info.axis_name)
    widths = (d.aspp_dim, d.content_scale_dim)
    fields = (d.content_dim, d.feature_dim, widths, d.multi_scale)
    head = Head(*fields, dtype=base.dtype, axis_name=norm_axis(config, info))
    return ContentEncoder(base, head, class_block(config, info), d.stem_gradient)


def identity_encoder(config, info, shared=False):
    """E_id of a config; shared: only its last stage, on E_c's stem."""
    base = trunk(config.model, info.axis_name)
    fields = (config.model.pool, base.depth if shared else 0)
    return IdentityEncoder(base, class_block(config, info), *fields)


def compute_type(config):
    """Compute type of the convolutions outside the backbone: the backbone's."""
    return trunk(config.model, None).dtype


def degradation_encoder(config):
    """E_d and E'_d of a config."""
    d = config.direid
    shared = d.share_degradation_trunk, d.one_degradation_encoder
    return DegradationEncoder(d.code_dim, d.code_width, *shared, compute_type(config))


def generator(config):
    """G of a config."""
    d = config.direid
    return Generator(d.content_dim, d.mlp_dim, d.generator_blocks, compute_type(config))


def reality_discriminator(config):
    """D_r of a config."""
    return _discriminator(config, config.direid.reality_scales)


def degradation_discriminator(config):
    """D_d of a config; its number of scales follows from the degradation unless it is given."""
    scales = config.direid.degradation_scales or (1 if config.data.degrade.kind == "res" else 3)
    return _discriminator(config, scales)


def _discriminator(config, scales):
    d = config.direid
    sizes = scales, d.discriminator_width, d.discriminator_blocks, d.discriminator_std
    return Discriminator(*sizes, dtype=compute_type(config))


def init(module, key, *args):
    """Fresh variables of a module, all its parts, for arguments of these shapes.

    The numbers come from XLA's own generator, which compiles many times faster than JAX's usual one and gives
    others on another platform.
    """
    key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2)[:4], impl="unsafe_rbg")
    method = module.everything if hasattr(module, "everything") else None
    if isinstance(module, DegradationEncoder):
        args, method = (*args, *args), module.both
    elif method:
        args = (*args, False)
    return dict(module.init(key, *args, method=method))
