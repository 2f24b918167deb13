"""Average query expansion (Chum et al., ICCV 2007; weighted form: Radenovic et al., TPAMI 2019).

`average` is that of queries by the gallery, `joint` what fast-reid does to both.
"""

import numpy as np
from scipy import sparse

from reid_jax.errors import ConfigError
from reid_jax.eval import neighbours


def average(features, gallery=None, *, k=5, alpha=0.0, tile=2048, progress=False) -> np.ndarray:
    """Unit features f32[N,D]: the normalised mean of each and its k nearest gallery features.

    features f[N,D], gallery f[G,D], brought to unit length; without a gallery the neighbours are the other
    features themselves, so that a gallery can be expanded too. alpha: a neighbour weighs its cosine
    similarity to this power, 0 below 0; with alpha 0 all weigh 1. k is cut to the features there are.
    Raises DataError for unusable features, ConfigError for unusable settings.
    """
    neighbours.at_least_one("k", k)
    if not 0 <= alpha < np.inf:
        raise ConfigError(f"alpha is {alpha}; it must be 0 or above")
    rows = neighbours.Features(features, tile=tile)
    if gallery is None:
        nearest, others = rows.search(k + 1, progress=progress), rows.array()
        # an image that its own list lacks has k + 1 copies there: the mean's direction is the same
        weight = (nearest.index != np.arange(len(nearest.index))[:, None]).astype(np.float32)
    else:
        side = neighbours.Features(gallery, tile=tile)
        nearest, others = rows.search(k, gallery=side, progress=progress), side.array()
        weight = np.ones(nearest.index.shape, np.float32)
    if alpha:
        weight *= np.maximum(1 - nearest.distance / 2, 0) ** np.float32(alpha)
    indptr = np.arange(0, weight.size + 1, weight.shape[1])
    weights = sparse.csr_matrix((weight.ravel(), nearest.index.ravel(), indptr), (len(weight), len(others)))
    total = weights @ others + rows.array()
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    return np.divide(total, norm, out=total, where=norm > 0)


def joint(query, gallery, *, k=5, alpha=3.0, times=1, tile=2048, progress=False):
    """fast-reid's expansion: (query f32[Q,D], gallery f32[G,D]), of their lengths, not of unit length.

    Every raw feature becomes the sum over its k nearest by cosine of both sides, itself included, of cosine
    to the power alpha times the raw feature, divided by k; `times` times. A negative cosine weighs what its
    power is, 0 where alpha is not whole. Errors as `average`.
    """
    neighbours.at_least_one("k", k)
    neighbours.at_least_one("times", times)
    if not 0 <= alpha < np.inf:
        raise ConfigError(f"alpha is {alpha}; it must be 0 or above")
    raw = np.concatenate([np.asarray(query, np.float32), np.asarray(gallery, np.float32)])
    for _ in range(times):
        nearest = neighbours.search(raw, k, tile=tile, progress=progress)
        raw = _weighted(raw, nearest, np.float32(alpha))
    return raw[: len(query)], raw[len(query) :]


def _weighted(raw, nearest, alpha):
    cosine = 1 - nearest.distance / 2
    if alpha % 1:
        cosine = np.maximum(cosine, 0)
    weight = cosine**alpha / np.float32(cosine.shape[1])
    indptr = np.arange(0, weight.size + 1, weight.shape[1])
    return sparse.csr_matrix((weight.ravel(), nearest.index.ravel(), indptr), (len(raw),) * 2) @ raw
