"""SpCL's labels: three clusterings of one Jaccard distance and the reliability filter, on the host."""

import numpy as np

from reid_jax.eval import cluster


def find_labels(features, fields, threshold):
    """(labels i64[N] from 0 without gaps, -1 only where outliers are dropped; threshold) of features f[N,D].

    fields: config.spcl; threshold: of an earlier round, below 0 if none set it. Memory is linear in N.
    """
    labellings = clusterings(features, fields)
    labels, threshold, *_ = refined(*labellings, threshold, fields.share, fields.reliability)
    if fields.outliers == "drop":
        labels = cluster.without_singles(labels)
    clustered = labels >= 0
    labels[clustered] = np.unique(labels[clustered], return_inverse=True)[1]
    return labels, threshold


def clusterings(features, fields):
    """The tight, the middle and the loose clustering i64[N] (-1: outlier), by one Jaccard distance."""
    eps, gap = fields.eps, fields.gap
    distances = cluster.jaccard(features, k1=fields.k1, k2=fields.k2, limit=min(eps + gap, 1.0))
    return [cluster.dbscan(distances, e, fields.min_samples) for e in (eps - gap, eps, eps + gap)]


def refined(tight, middle, loose, threshold, share=0.9, reliability="both"):
    """The reliability filter: (labels i64[N], threshold, comp f[N], indep f[N]) of three clusterings i[N].

    Outliers (-1) become classes of their own. comp, indep of an image: 1 minus the overlap of its cluster
    with its tight and its loose one; of a cluster: the smallest of its images'. An image stays if its
    cluster's indep is not above the threshold and its comp not above its cluster's; otherwise it is a class
    of its own, numbered behind all others. threshold below 0: taken from the clusters of several images (eq.
    4, 5).
    """
    tight, labels, loose = map(_apart, (tight, middle, loose))
    size = np.bincount(labels)
    comp, indep = 1 - _overlap(labels, tight), 1 - _overlap(labels, loose)
    of_class = np.full((2, len(size)), np.inf, np.float32)
    for smallest, values in zip(of_class, (comp, indep), strict=True):
        np.minimum.at(smallest, labels, values)
    several = np.sort(of_class[1][size > 1])
    if threshold < 0 and len(several):
        threshold = float(several[min(len(several) - 1, int(np.round(share * len(several))))])
    stays = np.ones(len(labels), bool)
    if reliability in ("both", "independence") and threshold >= 0:
        stays &= of_class[1][labels] <= threshold
    if reliability in ("both", "compactness"):
        stays &= comp <= of_class[0][labels]
    labels[~stays] = len(size) + np.arange(np.count_nonzero(~stays))
    return labels, threshold, comp, indep


def _apart(labels):
    """Labels i64[N] from 0 without gaps, every outlier a class of its own behind the clusters."""
    labels = np.array(labels, np.int64)
    out = labels < 0
    labels[out] = labels.max(initial=-1) + 1 + np.arange(np.count_nonzero(out))
    return np.unique(labels, return_inverse=True)[1]


def _overlap(a, b):
    """|A & B| / |A or B| f32[N] of the sets of a and b that every row lies in, by counts of pairs."""
    _, pair, both = np.unique(a * (b.max(initial=0) + 1) + b, return_inverse=True, return_counts=True)
    both = both[pair]
    return np.float32(both / (np.bincount(a)[a] + np.bincount(b)[b] - both))
