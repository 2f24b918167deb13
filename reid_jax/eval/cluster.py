"""Pseudo labels: Jaccard distances of a set with itself, sparse, and clusterings of them.

The distances are those of SpCL and cluster-contrast: lists of k1 entries with the image itself, weights
softmax(-(2 - 2 cos)) over the expanded k-reciprocal set; or torchreid's: lists of k1 + 1, and distances over
the largest of their row. They are computed once and clustered as often as wanted.
"""

import dataclasses
import logging

import numpy as np
from scipy import sparse
from scipy.cluster import hierarchy
from scipy.sparse import csgraph
from scipy.spatial.distance import squareform
from tqdm import tqdm

from reid_jax.config import choice
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import neighbours, reciprocal

log = logging.getLogger(__name__)

FORMS = ("plain", "torchreid")
MOST_TO_AGGLOMERATE = 40_000  # images; their distances take 6.4 GB, twice while they are linked


@dataclasses.dataclass(frozen=True)
class Jaccard:
    """Jaccard distances of N images.

    graph is what scikit-learn takes as metric="precomputed": symmetric, the diagonal and other zeros stored.
    Pairs that are not stored are farther than `limit`; with limit 1 their distance is exactly 1.
    """

    graph: sparse.csr_matrix  # f32[N,N]
    limit: float

    def dense(self):
        """Distances f32[N,N], for small sets; pairs beyond the limit count as 1."""
        out = np.ones(self.graph.shape, self.graph.dtype)
        out[_rows(self.graph), self.graph.indices] = self.graph.data
        return out


def jaccard(features, *, k1=30, k2=6, limit=1.0, form="plain", tile=2048, progress=False) -> Jaccard:
    """Jaccard distances of features f[N,D], which are brought to unit length.

    k1: length of the neighbour lists, k2: images a set is averaged over. limit: larger distances are not
    kept; a limit just above the largest eps of a DBSCAN saves most of the memory. form: of FORMS, see above.
    Raises DataError for unusable features, ConfigError for unusable settings.
    """
    neighbours.at_least_one("k1", k1)
    neighbours.at_least_one("k2", k2)
    if not 0 < limit <= 1:
        raise ConfigError(f"limit is {limit}; it must lie above 0 and not above 1")
    v = _weights(neighbours.Features(features, tile=tile), k1, k2, form, progress)
    return Jaccard(_graph(v, limit, progress), limit)


def _weights(rows, k1, k2, form, progress):
    """The weights V of the k-reciprocal sets of `neighbours.Features`, see `reciprocal.vectors`."""
    depth = k1 + (choice("form", form, FORMS) == "torchreid")
    near = rows.search(max(depth, k2), progress=progress)

    def scaled(i, j):
        return rows.pairs(i, j) / near.farthest[i]

    distances = rows.pairs if form == "plain" else scaled
    return reciprocal.vectors(near.index, depth, reciprocal.half_depth(k1), k2, distances)


def _graph(v, limit, progress):
    """Jaccard distances up to `limit` of the rows of V, CSR with stored zeros."""
    count, lists = v.shape[0], reciprocal.inverted(v)
    most = min(reciprocal.most_pairs(v, lists), count**2)
    data, indices = np.empty(most, np.float32), np.empty(most, np.int32)  # pages not written take no memory
    indptr, end = np.zeros(count + 1, np.int64), 0
    with tqdm(total=count, desc="jaccard", unit="image", disable=not progress) as bar:
        for start, similarity in reciprocal.similarities(v, lists):
            distances = reciprocal.distance(similarity.data)
            near = np.flatnonzero(distances <= limit)
            stop = start + similarity.shape[0]
            place = slice(end, end + len(near))
            data[place], indices[place] = distances[near], similarity.indices[near]
            indptr[start : stop + 1] = end + np.searchsorted(near, similarity.indptr)
            end += len(near)
            bar.update(similarity.shape[0])
    data.resize(end, refcheck=False)
    indices.resize(end, refcheck=False)
    return _with_diagonal(sparse.csr_matrix((data, indices, indptr), shape=v.shape))


def _with_diagonal(graph):
    """Stores a distance of 1 to itself for every image without one: it is in no list, not even its own.

    Left out, scikit-learn would take it for 0.
    """
    rows = _rows(graph)
    empty = np.setdiff1d(np.arange(graph.shape[0]), rows[rows == graph.indices])
    if not len(empty):
        return graph
    data = np.insert(graph.data, graph.indptr[empty], 1)
    indices = np.insert(graph.indices, graph.indptr[empty], empty)
    indptr = graph.indptr + np.searchsorted(empty, np.arange(graph.shape[0] + 1))
    return sparse.csr_matrix((data, indices, indptr), shape=graph.shape)


def _rows(graph):
    return np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))


def dbscan(distances: Jaccard, eps, min_samples=4) -> np.ndarray:
    """DBSCAN labels i64[N]: clusters from 0, -1 for outliers. One Jaccard serves any eps up to its limit.

    min_samples: images within eps, itself included, that make an image a core of a cluster.
    """
    from sklearn.cluster import DBSCAN  # a second that no command needs to start

    neighbours.at_least_one("min_samples", min_samples)
    if not (0 < eps < 1 and eps <= distances.limit):
        raise ConfigError(
            f"eps is {eps}; it must lie above 0, below 1 and within the distances' limit of {distances.limit}"
        )
    graph = distances.graph
    near = np.flatnonzero(graph.data <= eps)
    indptr = np.searchsorted(near, graph.indptr)
    within = sparse.csr_matrix((graph.data[near], graph.indices[near], indptr), shape=graph.shape)
    model = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    return model.fit(_with_diagonal(within)).labels_


def mean_of_smallest(distances: Jaccard, share, zero=1e-6) -> float:
    """An eps for `dbscan` (MMT's code): the mean of the smallest round(share M) of the M distances not 0.

    Those above the diagonal count; below `zero` they are 0 but for rounding. Pairs that are not stored are at
    1, which a Jaccard of limit 1 means. Raises DataError when the share is of no pair or all are 0.
    """
    graph, count = distances.graph, distances.graph.shape[0]
    above = _rows(graph) < graph.indices
    stored = graph.data[above]
    positive = np.sort(stored[stored >= zero]).astype(np.float64)
    wanted = round(share * (count * (count - 1) // 2 - (len(stored) - len(positive))))
    if not wanted:
        raise DataError(f"a share of {share} of the distances of {count} images is none of them; give an eps")
    if distances.limit < 1 and (wanted > len(positive) or positive[wanted - 1] > distances.limit):
        raise DataError(f"a share of {share} of the distances is more than are known; give an eps")
    return float((positive[:wanted].sum() + max(wanted - len(positive), 0)) / wanted)


def source_distance(features, source):
    """f[N]: how far features f[N,D] lie from their nearest of source f[S,D], over the largest (MMT's code).

    1 - exp(-squared distance) of rows at unit length.
    """
    d = 1 - np.exp(-neighbours.search(features, 1, gallery=source).distance[:, 0].astype(np.float64))
    return d / max(d.max(), 1e-12)


def with_source(distances: Jaccard, d, lambda_value) -> Jaccard:
    """(1 - L) J + L (d_i + d_j) with `source_distance` d f[N]; an image is then at 2 L d_i from itself.

    Pairs without common neighbours stay out: they are farther than the result's limit.
    """
    graph = distances.graph.copy()
    graph.data = (1 - lambda_value) * graph.data + lambda_value * (d[_rows(graph)] + d[graph.indices])
    return Jaccard(graph, (1 - lambda_value) * distances.limit + 2 * lambda_value * float(d.min()))


def agglomerate(distances, *, clusters=None, threshold=None) -> np.ndarray:
    """Average-linkage labels i32[N], numbered by first appearance.

    distances: f[N,N], of which only the part above the diagonal is read, or a Jaccard. Either the number of
    clusters is given, or the threshold that the average distance of a merge must stay below.
    Raises DataError when the distances are not square, not finite or of too many images, ConfigError when not
    exactly one of clusters and threshold is given or clusters is not between 1 and N.
    """
    if (clusters is None) == (threshold is None):
        raise ConfigError("give either the number of clusters or a threshold")
    count = _count(distances)
    if clusters is not None and not 1 <= clusters <= count:
        raise ConfigError(f"clusters is {clusters}; it must lie between 1 and the number of images, {count}")
    if count == 1:
        return np.zeros(1, np.int32)
    tree = hierarchy.linkage(_upper(distances), "average")
    merges = count - clusters if threshold is None else int(np.count_nonzero(tree[:, 2] < threshold))
    return _labels(tree[:merges], count)


def quantile(distances, share) -> float:
    """A threshold for `agglomerate`: entry round(share M) of the M sorted non-zero distances.

    Only those above the diagonal count. Raises DataError when all are zero.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share is {share}; it must lie between 0 and 1")
    upper = _upper(distances) if _count(distances) > 1 else np.zeros(0)
    upper = upper[upper != 0]
    if not len(upper):
        raise DataError("all distances are 0; there is no threshold to take from them")
    place = min(round(share * len(upper)), len(upper) - 1)
    return float(np.partition(upper, place)[place])


def quality(labels, pid, camid=None):
    """How well pseudo labels i[N] (-1: none) fit identities i[N]: {"clusters", "labelled", "ari", "nmi"}.

    labelled: percent of the images. ari, nmi: adjusted Rand index and normalised mutual information of the
    labelled ones whose identity is known (not -1), in percent; left out where no identity is known. camid
    i[N]: labels of each camera stand for themselves; ari and nmi are then means over the cameras, weighted by
    their images, and clusters is the sum.
    """
    from sklearn import metrics

    labels, pid = np.asarray(labels), np.asarray(pid)
    groups = np.zeros(len(labels), int) if camid is None else np.asarray(camid)
    clusters, weights, scores = 0, [], []
    for group in np.unique(groups):
        labelled = (groups == group) & (labels >= 0)
        clusters += len(np.unique(labels[labelled]))
        pseudo, true = labels[labelled & (pid >= 0)], pid[labelled & (pid >= 0)]
        if len(pseudo):
            weights.append(len(pseudo))
            ari = metrics.adjusted_rand_score(true, pseudo)
            scores.append((ari, metrics.normalized_mutual_info_score(true, pseudo)))
    counts = {"clusters": clusters, "labelled": 100 * float(np.mean(labels >= 0))}
    if not (pid >= 0).any():
        return counts
    ari, nmi = np.average(scores, 0, weights) if scores else (0.0, 0.0)
    return {**counts, "ari": 100 * float(ari), "nmi": 100 * float(nmi)}


def without_singles(labels):
    """Labels i[N] with -1 for images that nobody shares theirs with."""
    labels = np.asarray(labels)
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(count[place] > 1, labels, -1)


def precision(neighbours, pid):
    """Percent of neighbours i[N,k] that show the image's identity i[N]; unknown ones (-1) are left out."""
    pid = np.asarray(pid)
    known = (neighbours >= 0) & (pid[:, None] >= 0) & (pid[neighbours] >= 0)
    right = known & (pid[neighbours] == pid[:, None])
    return 100 * float(right.sum() / max(known.sum(), 1))


def largest(labels, most, field):
    """Labels i[N] from 0 without gaps of the `most` largest clusters; -1 for all other images.

    field: what sets `most`, for the warning where clusters are left out.
    """
    sizes = np.bincount(labels[labels >= 0])
    if len(sizes) <= most:
        return labels
    log.warning("%d clusters, of which the %d largest are kept (%s)", len(sizes), most, field)
    number = np.full(len(sizes) + 1, -1)  # the last place is that of -1
    number[np.sort(np.argsort(-sizes, kind="stable")[:most])] = np.arange(most)
    return number[labels]


def _count(distances):
    shape = distances.graph.shape if isinstance(distances, Jaccard) else np.shape(distances)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise DataError(f"distances have shape {shape}; [N,N] is needed")
    if shape[0] > MOST_TO_AGGLOMERATE:
        raise DataError(
            f"{shape[0]} images are too many for average linkage (at most {MOST_TO_AGGLOMERATE}); "
            "cluster each camera apart, or use DBSCAN"
        )
    return shape[0]


def _upper(distances):
    """Distances f64[N (N - 1) / 2] above the diagonal, row by row."""
    if not isinstance(distances, Jaccard):
        upper = squareform(np.asarray(distances), checks=False).astype(np.float64, copy=False)
        if not np.isfinite(upper).all():
            raise DataError("distances are not all finite")
        return upper
    graph, count = distances.graph, distances.graph.shape[0]
    upper = np.ones(count * (count - 1) // 2)
    i, j = _rows(graph), graph.indices.astype(np.int64)
    above = i < j
    i, j = i[above], j[above]
    upper[i * count - i * (i + 1) // 2 + j - i - 1] = graph.data[above]
    return upper


def _labels(merges, count):
    """Labels i32[N], by first appearance, after these merges (rows of a linkage tree)."""
    new = np.arange(count, count + len(merges))
    parent, child = np.concatenate([new, new]), np.concatenate([merges[:, 0], merges[:, 1]]).astype(np.int64)
    size = count + len(merges)
    links = sparse.coo_matrix((np.ones(len(parent), bool), (parent, child)), shape=(size, size))
    labels = csgraph.connected_components(links, directed=False)[1][:count]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int32)
