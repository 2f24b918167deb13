"""What a head returns, and the net around it."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from reid_jax.models import pooling
from reid_jax.models.layers import wide


class Branches(NamedTuple):
    """What a net returns, at least float32 whatever the compute type; tuples over the head's branches."""

    logits: tuple  # of f[B,K], from after_bn; () for heads without classifiers
    before_bn: tuple  # of f[B,D_i], pooled vectors
    after_bn: tuple  # of f[B,E_i], after the neck
    test: jax.Array  # f[B,D], the test feature
    margin: Any = None  # models.classifiers.Margin that the identity loss puts into the logits, or None


class Head(nn.Module):
    """Base of the heads: `pooled`, once for a map, then the call, once for an image or a clip.

    maps: how many maps it takes of a backbone; more than one come as a tuple.

    frozen: patterns of the paths of parameters that are never trained. classifiers: names of the modules
    that belong to the training identities. tokens: whether it is for backbones that give tokens.
    """

    frozen = ()
    classifiers = ()
    maps, tokens = 1, False

    def pool(self, x):
        """Maps [...,H,W,C] -> vectors [...,D]."""
        raise NotImplementedError

    def map(self, base, x, train, **options):
        """Maps [...,H,W,C] of images by a backbone, as they are pooled; options: what it gets beside."""
        return wide(base(x, train, **options))

    def pooled(self, base, x, train, **options):
        """Vectors [...,D] of images by a backbone."""
        return self.pool(self.map(base, x, train, **options))

    def __call__(self, x, train):
        """Vectors [B,D] -> Branches."""
        raise NotImplementedError


class ReIDNet(nn.Module):
    """Backbone `base` and head `top`: images [B,H,W,3] or clips [B,T,H,W,3] -> Branches.

    A clip's vector is the mean of its frames'. The head's modules are the net's own (`neck`, `classifier`).
    camera: i32[B], training's own numbers, None or any other number where it is not known; heeded where the
    backbone wants it.
    """

    base: nn.Module
    top: Any

    def setup(self):
        nn.share_scope(self, self.top)
        pooling.join(self.base, self.top)

    @property
    def frozen(self):
        """Patterns of the paths of parameters that are never trained."""
        return self.top.frozen

    @property
    def bounds(self):
        """((pattern, least, most), ...): parameters clipped after every step, see norms."""
        return getattr(getattr(self.base, "norms", None), "bounds", ())

    @property
    def wants_camera(self):
        """Whether features depend on the camera."""
        return getattr(self.base, "wants_camera", False)

    def by_rows(self, rows):
        """The net whose norms take so many consecutive rows of a batch at a time, in order; fewer where they
        already do."""
        rows = self.top.rows or rows
        norms = dataclasses.replace(self.base.norms, rows=rows)
        return self.clone(base=self.base.clone(norms=norms), top=self.top.clone(rows=rows))

    def __call__(self, x, train, camera=None):
        x = self.vectors(x, train, camera)
        return self.head(x.mean(1) if x.ndim == 3 else x, train)

    def vectors(self, x, train, camera=None):
        """Pooled vectors of images [B,H,W,3] -> [B,D], or of every frame of clips [B,T,H,W,3] -> [B,T,D]."""
        options = {"camera": camera} if self.wants_camera else {}
        return self.top.pooled(self.base, x, train, **options)

    def map(self, x, train):
        """The map [...,h,w,C] of images that the head pools."""
        return self.top.map(self.base, x, train)

    def of_map(self, x, train):
        """Branches of the backbone's map [B,h,w,C] of images."""
        return self.head(self.top.pool(wide(x)), train)

    def head(self, x, train):
        """Branches of pooled vectors [B,D], one for each image or clip."""
        return self.top(x, train)
