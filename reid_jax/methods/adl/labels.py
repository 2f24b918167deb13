"""Pseudo labels of ADL and IICS (adl.md, 3.1 to 3.4): clusters within every camera, then over all images.

Both re-rank distances ("iics" form) and join images by average linkage, to a fixed number of clusters (mode
original) or up to a quantile of the distances (mode threshold). Up to config.adl.dense_limit images (of a
camera, or of all) this is exact and takes a handful of N x N arrays. Beyond, over neighbour lists:

- exact: cosine distances, the classifiers' similarity and reciprocal sets of the images looked at, Jaccard
  distances, average linkage of them;
- approximate: only the `candidates` nearest images by feature can be neighbours; the original distance
  with its weight lambda_value is left out, so that images without common neighbours are at distance 1 and
  need no storage; the largest distance of an image is the cosine one;
- groups without any common neighbour are never joined: if more clusters remain than are wanted, the largest
  are kept and the images of the others get label -1.

Host code: NumPy, SciPy and scikit-learn; only the classifiers' similarity is computed on the device.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from reid_jax.errors import NOT_FINITE, DataError
from reid_jax.eval import cluster, linkage, neighbours, reciprocal, rerank

log = logging.getLogger(__name__)

_TILE = 512  # images whose scores are compared with as many at a time
_PAIRS = 4096  # pairs of scores gathered at a time
_BLOCK_ROWS = 2048  # rows of a distance matrix computed at a time


def intra(features, camid, adl, progress=False) -> np.ndarray:
    """Labels i64[N] within each camera: images of camera c have labels from 0 to its number of clusters.

    features f[N,D] of any length, camid i[N], adl: config.adl. A camera with fewer images than clusters gets
    half as many clusters as images, from a doubled list as IICS does it.
    Raises DataError for unusable features.
    """
    features, camid = _checked(features, camid)
    labels = np.zeros(len(features), np.int64)
    cameras = np.unique(camid)
    for camera in tqdm(cameras, desc="intra clustering", unit="camera", disable=not progress):
        rows = camid == camera
        labels[rows] = _one_camera(features[rows], adl, f"camera {camera}", progress)
    return labels


def _one_camera(features, adl, name, progress):
    count, fields = len(features), adl.intra
    if count == 1:
        log.warning("%s has one training image; it is a cluster of its own", name)
        return np.zeros(1, np.int64)
    if count > adl.dense_limit:
        return _sparse(features, adl, fields, name, progress=progress)
    distance = cosine_distance(features)
    if adl.mode == "threshold" or count >= fields.clusters:
        return _dense(distance, adl, fields, name, progress)
    log.warning(
        "%s has %d training images for %d clusters; it gets %d", name, count, fields.clusters, count // 2
    )
    reranked = _reranked(np.tile(distance, (2, 2)), adl, progress)
    return _numbered(cluster.agglomerate(reranked, clusters=count // 2)[count:])


def inter(features, scores, camid, mix, adl, progress=False) -> np.ndarray:
    """Labels i64[N] over all images.

    features f[N,D], camid i[N] as in `intra`; scores f[N,S]: the softmax of every camera's classifier, one
    after the other; mix: weight mu of their similarity in this round; adl: config.adl. -1 where the images
    are more than adl.dense_limit and see above. Raises DataError for unusable features.
    """
    features, camid = _checked(features, camid)
    fields, name = adl.inter, "all images"
    if len(features) > adl.dense_limit:
        return _sparse(features, adl, fields, name, scores=scores, camid=camid, mix=mix, progress=progress)
    distance = mixed_distance(features, scores, camid, mix, progress)
    if adl.mode == "original" and len(features) < fields.clusters:
        log.warning("%d training images for %d clusters; %d are made", len(features), fields.clusters,
                    max(len(features) // 2, 1))  # fmt: skip
        reranked = _reranked(distance, adl, progress)
        return _numbered(cluster.agglomerate(reranked, clusters=max(len(features) // 2, 1)))
    return _dense(distance, adl, fields, name, progress)


def _checked(features, camid):
    features, camid = np.asarray(features), np.asarray(camid)
    if features.ndim != 2 or not len(features) or features.dtype.kind != "f":
        raise DataError(f"features have shape {features.shape} and type {features.dtype}; f[N,D] is needed")
    if len(camid) != len(features):
        raise DataError(f"{len(features)} features but {len(camid)} cameras")
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise DataError(f"features are not finite (first: row {bad[0]}); {NOT_FINITE}")
    return features, camid


# ---- dense


def cosine_distance(features):
    """1 - cosine f[N,N] of the rows of features f[N,D], 0 on the diagonal."""
    x = _unit(features)
    distance = 1 - x @ x.T
    np.fill_diagonal(distance, 0)
    return distance


def _unit(features):
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def mixed_distance(features, scores, camid, mix, progress=False):
    """1 - cosine - mix J f[N,N], J the similarity of the scores for images of different cameras, else 0."""
    distance = cosine_distance(features)
    if not mix:
        return distance
    alike = similarity(scores, progress)
    for start in range(0, len(distance), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        distance[rows] -= mix * alike[rows] * (camid[rows, None] != camid)
    return distance


def _reranked(distance, adl, progress):
    settings = dict(k1=adl.k1, k2=adl.k2, lambda_value=adl.lambda_value, progress=progress)
    return rerank.square(distance, form="iics", **settings)


def _dense(distance, adl, fields, name, progress):
    reranked = _reranked(distance, adl, progress)
    if adl.mode == "original":
        return _numbered(cluster.agglomerate(reranked, clusters=min(fields.clusters, len(reranked))))
    try:
        threshold = cluster.quantile(reranked, fields.quantile)
    except DataError:
        log.warning("%s: all distances are 0, there is one cluster", name)
        return np.zeros(len(reranked), np.int64)
    labels = cluster.agglomerate(reranked, threshold=threshold)
    if labels.max() + 1 > fields.clusters:
        log.warning(
            "%s: the threshold makes %d clusters, the classifier is for %d: they are joined to so many",
            name,
            labels.max() + 1,
            fields.clusters,
        )
        labels = cluster.agglomerate(reranked, clusters=fields.clusters)
    return _numbered(labels)


def _numbered(labels):
    """Labels without gaps, -1 staying."""
    kept = labels >= 0
    out = np.full(len(labels), -1, np.int64)
    out[kept] = np.unique(labels[kept], return_inverse=True)[1]
    return out


# ---- the classifiers' similarity


def similarity(scores, progress=False):
    """sum of minima over sum of maxima f[N,N] of every two rows of scores f[N,S], none negative."""
    scores = np.asarray(scores)
    count, tiles = len(scores), -(-len(scores) // _TILE)
    tile = -(-count // tiles)
    padded = np.zeros((tiles * tile, scores.shape[1]), scores.dtype)
    padded[:count] = scores
    blocks = jnp.asarray(padded).reshape(tiles, tile, -1)
    out = np.empty((count, count), blocks.dtype)
    with tqdm(total=tiles * (tiles + 1) // 2, desc="similarity", unit="tile", disable=not progress) as bar:
        for a in range(tiles):
            for b in range(a, tiles):
                rows, columns = slice(a * tile, (a + 1) * tile), slice(b * tile, (b + 1) * tile)
                place = out[rows, columns]
                alike = np.asarray(_similarity(blocks[a], blocks[b]))[: place.shape[0], : place.shape[1]]
                out[rows, columns], out[columns, rows] = alike, alike.T
                bar.update()
    return out


@jax.jit
def _similarity(a, b):
    """[T,S] of rows a [T,K] and b [S,K], row by row of a so that nothing of size T S K is kept."""
    turned = b.T

    def row(x):
        shared = jnp.minimum(x[:, None], turned).sum(0)
        return shared / jnp.maximum(x.sum() + turned.sum(0) - shared, 1e-12)

    return jax.lax.map(row, a)


def _pair_similarity(scores, i, j):
    """Of the rows i[P] and j[P] of scores, on the device: f[P]."""
    values = []
    for start in range(0, len(i), _PAIRS):
        a, b = (np.resize(x[start : start + _PAIRS], _PAIRS) for x in (i, j))  # one shape, one compile
        values.append(np.asarray(_of_pairs(scores, a, b)))
    return np.concatenate([*values, np.zeros(0, np.float32)])[: len(i)]


@jax.jit
def _of_pairs(scores, i, j):
    def of_pair(pair):
        a, b = scores[pair[0]], scores[pair[1]]
        return jnp.minimum(a, b).sum() / jnp.maximum(jnp.maximum(a, b).sum(), 1e-12)

    return jax.lax.map(of_pair, (i, j), batch_size=256)


# ---- over neighbour lists


def _sparse(features, adl, fields, name, *, scores=None, camid=None, mix=0.0, progress=False):
    """Labels i64[N] over neighbour lists, see above."""
    i, j, distance = _pairs(features, adl, scores, camid, mix, progress)
    settings = {"clusters": fields.clusters}
    if adl.mode == "threshold":
        settings = {"threshold": _quantile(distance, len(features), fields.quantile)}
    labels = linkage.average(i, j, distance, len(features), **settings, progress=progress)
    return cluster.largest(labels, fields.clusters, f"config.adl, clusters of {name}")


def _pairs(features, adl, scores, camid, mix, progress):
    """Pairs i < j i[P] that have common neighbours, and their Jaccard distances f[P]."""
    rows = neighbours.Features(np.asarray(features, np.float32))
    on_device = jnp.asarray(scores, jnp.float32) if mix else None

    def pair(i, j):
        distance = rows.pairs(i, j) / 2
        if mix:
            other = np.flatnonzero(camid[i] != camid[j])
            distance[other] -= np.float32(mix) * _pair_similarity(on_device, i[other], j[other])
        return distance

    depth = adl.k1 + 1
    near = rows.search(max(adl.candidates, depth, adl.k2), progress=progress)
    image = np.repeat(np.arange(len(near.index)), near.index.shape[1])
    distance = pair(image, near.index.ravel()).reshape(near.index.shape)
    order = np.argsort(distance, 1, kind="stable")[:, : max(depth, adl.k2)]
    index = np.take_along_axis(near.index, order, 1)
    low = distance.min(1)
    scale = 1 / np.maximum(near.farthest / 2 - low, 1e-12)

    def original(i, j):
        return (pair(i, j) - low[i]) * scale[i]

    v = reciprocal.vectors(index, depth, reciprocal.half_depth(adl.k1), adl.k2, original)
    lists, stored = reciprocal.inverted(v), []
    with tqdm(total=v.shape[0], desc="jaccard", unit="image", disable=not progress) as bar:
        for start, similar in reciprocal.similarities(v, lists):
            i = np.repeat(np.arange(start, start + similar.shape[0]), np.diff(similar.indptr))
            above = i < similar.indices
            stored.append((i[above], similar.indices[above], reciprocal.distance(similar.data[above])))
            bar.update(similar.shape[0])
    return tuple(np.concatenate(x) for x in zip(*stored, strict=True))


def _quantile(distance, count, share):
    """Entry round(share M) of all M distances above the diagonal that are not 0; those not stored are 1."""
    distance = distance[distance > 0]
    absent = count * (count - 1) // 2 - len(distance)
    place = round(share * (len(distance) + absent))
    return float(np.partition(distance, place)[place]) if place < len(distance) else 1.0
