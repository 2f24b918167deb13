"""What a head returns, and the net around it."""

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
    """Base of the heads: `pool`, once for a map, then the call, once for an image or a clip.

    frozen: patterns of the paths of parameters that are never trained. classifiers: names of the modules
    that belong to the training identities.
    """

    frozen = ()
    classifiers = ()

    def pool(self, x):
        """Maps [...,H,W,C] -> vectors [...,D]."""
        raise NotImplementedError

    def __call__(self, x, train):
        """Vectors [B,D] -> Branches."""
        raise NotImplementedError


class ReIDNet(nn.Module):
    """Backbone `base` and head `top`: images [B,H,W,3] or clips [B,T,H,W,3] -> Branches.

    A clip's vector is the mean of its frames'. The head's modules are the net's own (`neck`, `classifier`).
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

    def __call__(self, x, train):
        x = self.vectors(x, train)
        return self.head(x.mean(1) if x.ndim == 3 else x, train)

    def vectors(self, x, train):
        """Pooled vectors of images [B,H,W,3] -> [B,D], or of every frame of clips [B,T,H,W,3] -> [B,T,D]."""
        return self.top.pool(wide(self.base(x, train)))

    def head(self, x, train):
        """Branches of pooled vectors [B,D], one for each image or clip."""
        return self.top(x, train)
