"""DSANet's network (Kim, Cho, Lee, WACV 2023): channel expansion, target localisation, frame weights, heads.

Maps are [N,T,H,W,C], frame features [N,T,C], clip features [N,C].
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.losses import batch
from reid_jax.models.layers import BatchNorm, Conv, maximum, wide


class ChannelExpansion(nn.Module):
    """CEL: 1x1 convolution of stage 3's map to F_cam, and its maximum f_cam.

    x [N,T,H,W,C/2] -> (F_cam [N,T,H,W,C], f_cam [N,C]).
    norm: with batch norm behind the convolution. pool: 'max' over time and space, or 'max_mean': over
    space, then the mean over time.
    """

    features: int
    norm: bool = False
    pool: str = "max"
    relu: bool = False  # behind it all; else F_cam has a sign, which L_dis can be met by
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(Conv, bias_init=nn.initializers.zeros)
        y = conv(self.features, use_bias=True, dtype=self.dtype, name="conv")(x)
        if self.norm:
            y = BatchNorm(axis_name=self.axis_name, name="bn")(y, train)
        y = nn.relu(wide(y)) if self.relu else wide(y)
        spatial = maximum(y, (2, 3))
        return y, maximum(spatial, (1,)) if self.pool == "max" else spatial.mean(1)


class Localisation(nn.Module):
    """TLM: attention within left, middle and right part of every frame.

    F_ID [N,T,H,W,C] -> {A_L, A_M, A_R [N,T,H,W/2]; Z_attn [N,T,H,W], 3 in all per frame; F_t; f_t, f_tL,
    f_tR [N,T,C], spatial maxima of F_t and of its halves}.
    softmax: over the 'region' (all its positions), or along its 'width' row by row.
    """

    softmax: str = "region"

    @nn.compact
    def __call__(self, x):
        width = x.shape[3]
        if width % 4:
            raise ConfigError(
                f"DSANet cuts the last map into quarters, and {width} columns cannot be: make "
                "config.data.width a multiple of 64 (for last_stride 1)"
            )
        half, quarter = width // 2, width // 4
        conv = Conv(1, 7, padding=3, name="conv")
        regions = {"A_L": (0, half), "A_M": (quarter, half + quarter), "A_R": (half, width)}
        maps = {name: self.attention(conv, x[:, :, :, a:b]) for name, (a, b) in regions.items()}
        both = jnp.concatenate([maps["A_L"], maps["A_R"]], -1)
        z = both + jnp.pad(maps["A_M"], ((0, 0),) * 3 + ((quarter, quarter),))
        y = z[..., None] * x + x
        left, right = maximum(y[:, :, :, :half], (2, 3)), maximum(y[:, :, :, half:], (2, 3))
        out = {"F_t": y, "f_t": jnp.maximum(left, right), "f_tL": left, "f_tR": right}
        return maps | {"Z_attn": z} | out

    def attention(self, conv, region):
        """Map [N,T,H,W/2] of a region's positions."""
        pooled = jnp.stack([maximum(region, (-1,)), region.mean(-1)], -1)
        score = conv(pooled)[..., 0]
        if self.softmax == "width":
            return jax.nn.softmax(score, -1) / score.shape[2]
        return jax.nn.softmax(score.reshape(*score.shape[:2], -1), -1).reshape(score.shape)


class FrameWeights(nn.Module):
    """FWG: frame features f_t [N,T,C] -> {score, d_hat, w_hat [N,T]; f_id [N,C]}, w_hat = softmax(-score).

    std: of the first kernel.
    """

    std: float = 2**0.5

    @nn.compact
    def __call__(self, f_t):
        score = nn.Dense(1, kernel_init=nn.initializers.normal(self.std), name="conv")(f_t)[..., 0]
        d_hat, w_hat = weights_of(score)
        return {"score": score, "d_hat": d_hat, "w_hat": w_hat, "f_id": weighted(f_t, w_hat)}


def weights_of(loss):
    """Weights of frames by their loss, low losses first [N,T]: (d, w) with d = max - loss, w = softmax(d)."""
    d = jax.lax.stop_gradient(loss.max(1, keepdims=True)) - loss  # softmax sees no shift
    return d, jax.nn.softmax(d, 1)


def weighted(f_t, w):
    """Sum over frames of w [N,T] times f_t [N,T,C]."""
    return jnp.einsum("nt,ntc->nc", w, f_t)


class Network(nn.Module):
    """Clips [N,T,H,W,3] -> everything the losses and pictures need, see `__call__`.

    base: a trunk with `stages`. tlm, fwg: with those modules. num_pids, num_cams: K, M. neck: False leaves
    the batch norms before the classifiers out. average_sides: left and right features are averaged over
    time before their classifier. Necks always take global statistics under axis_name.
    """

    base: nn.Module
    num_pids: int
    num_cams: int
    disentangle: bool = True  # CEL and the camera head
    tlm: bool = True
    sides: bool = True  # the left/right head
    fwg: bool = True
    frames: bool = True  # the frame head
    tlm_softmax: str = "region"
    fwg_std: float = 2**0.5
    cel_norm: bool = False
    cel_pool: str = "max"
    cel_relu: bool = False
    neck: bool = True
    average_sides: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train, permutation=None, detach_cam=False):
        """permutation: i32[N] of the global batch, for SAO, or None; detach_cam: it gives f_cam no gradient.

        Returns a dict: F_ID, F_t [N,T,H,W,C], f_t [N,T,C], f_id [N,C], f_test (after the neck), logits_id;
        with CEL F_cam, f_cam, logits_cam; with TLM its maps, f_tL, f_tR, logits_lr [2 N T,K] (left rows
        first); with FWG score, d_hat, w_hat, logits_frame [N,T,K]; with a permutation f_aug, logits_aug.
        """
        if x.ndim != 5:
            raise ConfigError("DSANet works on clips [B,T,H,W,3]; set config.data.frames")
        maps = self.base.maps(x, train)
        last = wide(maps[-1])
        out = {"F_ID": last, "F_t": last, "f_t": None}
        if self.disentangle:
            out |= self.camera(maps[-2], last.shape[-1], train)
        if self.tlm:
            out |= Localisation(self.tlm_softmax, name="tlm")(last)
        else:
            out["f_t"] = maximum(last, (2, 3))
        if self.tlm and self.sides:
            out["logits_lr"] = self.side_logits(out, train)
        if self.fwg:
            out |= FrameWeights(self.fwg_std, name="fwg")(out["f_t"])
            if self.frames:
                rows = out["f_t"].reshape(-1, last.shape[-1])
                logits = self.head("frame", self.num_pids, rows, train)
                out["logits_frame"] = logits.reshape(*out["f_t"].shape[:2], -1)
        else:
            out["f_id"] = out["f_t"].mean(1)
        return out | self.identity(out, train, permutation, detach_cam)

    def camera(self, x, features, train):
        """CEL and the camera head."""
        fields = dict(dtype=self.base.dtype, axis_name=self.base.axis_name, name="cel")
        maps, f_cam = ChannelExpansion(features, self.cel_norm, self.cel_pool, self.cel_relu, **fields)(
            x, train
        )
        return {"F_cam": maps, "f_cam": f_cam, "logits_cam": self.head("cam", self.num_cams, f_cam, train)}

    def side_logits(self, out, train):
        left, right = out["f_tL"], out["f_tR"]
        if self.average_sides:
            left, right = left.mean(1), right.mean(1)
        rows = jnp.concatenate([a.reshape(-1, a.shape[-1]) for a in (left, right)])
        return self.head("lr", self.num_pids, rows, train)

    def identity(self, out, train, permutation, detach_cam):
        """The identity head, on f_id and on features with another clip's camera (SAO)."""
        norm, classify = self.neck_and_classifier("id", self.num_pids)
        f_test = norm(out["f_id"], train)
        results = {"f_test": f_test, "logits_id": classify(f_test)}
        if permutation is not None:
            f_cam = jax.lax.stop_gradient(out["f_cam"]) if detach_cam else out["f_cam"]
            f_aug = switch(out["f_id"], f_cam, permutation, self.axis_name)
            # the running statistics belong to f_id, the test feature
            results |= {"f_aug": f_aug, "logits_aug": classify(norm(f_aug, train, update=False))}
        return results

    def head(self, name, classes, rows, train):
        norm, classify = self.neck_and_classifier(name, classes)
        return classify(norm(rows, train))

    def neck_and_classifier(self, name, classes):
        """(neck, classifier) of a head."""

        def nothing(x, train, update=True):
            return x

        norm = BatchNorm(axis_name=self.axis_name, name=f"neck_{name}") if self.neck else nothing
        init = nn.initializers.normal(0.001)
        return norm, nn.Dense(classes, use_bias=False, kernel_init=init, name=f"cls_{name}")


def switch(f_id, f_cam, permutation, axis_name=None):
    """SAO: f_id[i] + f_cam[p(i)], f[B,D]; permutation i32[N] of the global batch."""
    return f_id + batch.of_partners(f_cam, permutation, axis_name)
