"""Average linkage of sparse distances: pairs that are not stored are at distance 1, the largest there is.

Group average is reducible (two groups joined are no nearer to a third than the nearer of the two was), so all
pairs of mutual nearest neighbours may be joined at once without changing the tree: a few dozen array
operations instead of one for every merge. Memory and time grow with the stored pairs.
"""

import numpy as np
from tqdm import tqdm

from reid_jax.errors import ConfigError


def average(i, j, distance, count, *, clusters=None, threshold=None, progress=False) -> np.ndarray:
    """Average-linkage labels i64[N], numbered by first appearance.

    i, j i[P]: the stored pairs, each once, i != j; distance f[P] in [0, 1]; count: N. Either the number of
    clusters is given, or the threshold that the average distance of a merge must stay below. Groups that no
    stored pair joins stay apart, so there may be more clusters than asked for. The same as
    `cluster.agglomerate` of the full matrix but for equal distances.
    Raises ConfigError when not exactly one of clusters and threshold is given.
    """
    if (clusters is None) == (threshold is None):
        raise ConfigError("give either the number of clusters or a threshold")
    wanted = None if clusters is None else max(count - clusters, 0)
    similarity = 1 - np.asarray(distance, float)
    tree = _tree(np.minimum(i, j), np.maximum(i, j), similarity, count, wanted, threshold)
    with tqdm(desc="linkage", unit="merge", total=wanted, disable=not progress) as bar:
        merges = []
        for rows in tree:
            merges.append(rows)
            bar.update(len(rows))
    merges = np.concatenate([*merges, np.zeros((0, 3))])
    order = np.argsort(merges[:, 2], kind="stable")
    merges = np.column_stack([merges, np.arange(count, count + len(merges))])[order]
    applied = merges[:wanted] if threshold is None else merges[merges[:, 2] < threshold]
    return _labels(applied, count)


def _tree(low, high, total, count, wanted, threshold):
    """Yields merges f64[m,3]: nodes a and b (images, then merges in order) and the height.

    low, high: nodes of the pairs; total: summed similarity of the images of both.
    """
    size, height = np.ones(2 * count), np.zeros(2 * count)
    nodes, done = count, []
    low, high, total = (x[total > 0] for x in (low, high, total))
    while len(low):
        mean = total / (size[low] * size[high])
        if mean.max() <= 1 - _limit(done, wanted, threshold):
            return
        value, nearest = _nearest(low, high, mean, nodes)
        a = np.flatnonzero(nearest < nodes)
        a = a[(nearest[nearest[a]] == a) & (a < nearest[a])]
        b, new = nearest[a], np.arange(nodes, nodes + len(a))
        # rounding must not put a merge below those inside it
        height[new] = np.maximum(1 - value[a], np.maximum(height[a], height[b]))
        size[new] = size[a] + size[b]
        yield np.column_stack([a, b, height[new]])
        done.append(height[new])
        nodes += len(a)
        to = np.arange(nodes)
        to[a] = to[b] = new
        low, high, total = _contracted(to[low], to[high], total, new[0])


def _limit(done, wanted, threshold):
    """Merges from this height on are not wanted."""
    if threshold is not None:
        return threshold
    heights = np.concatenate([*done, np.zeros(0)])
    if not wanted:
        return -np.inf
    return np.partition(heights, wanted - 1)[wanted - 1] if len(heights) >= wanted else np.inf


def _nearest(low, high, mean, nodes):
    """Each node's largest mean similarity and the first node that has it; `nodes` for none."""
    value, nearest = np.full(nodes, -np.inf), np.full(nodes, nodes)
    for a in (low, high):
        np.maximum.at(value, a, mean)
    for a, b in ((low, high), (high, low)):
        best = mean == value[a]
        np.minimum.at(nearest, a[best], b[best])
    return value, nearest


def _contracted(low, high, total, first_new):
    """Pairs after merges: those inside a node gone, equal ones summed."""
    low, high = np.minimum(low, high), np.maximum(low, high)
    outside = low != high
    low, high, total = low[outside], high[outside], total[outside]
    moved = high >= first_new  # the others are as they were
    order = np.flatnonzero(moved)
    order = order[np.lexsort((low[order], high[order]))]
    a, b = low[order], high[order]
    start = np.flatnonzero(np.diff(a, prepend=-1) | np.diff(b, prepend=-1))
    sums = np.add.reduceat(total[order], start) if len(start) else np.zeros(0)
    still = ~moved
    parts = ((low[still], a[start]), (high[still], b[start]), (total[still], sums))
    return tuple(np.concatenate(p) for p in parts)


def _labels(merges, count):
    """Labels of the images by first appearance; merges f64[M,4]: nodes a, b, height, new node."""
    root = np.arange(2 * count)
    a, b, new = (merges[:, k].astype(np.int64) for k in (0, 1, 3))
    root[a], root[b] = new, new
    while (root[root] != root).any():
        root = root[root]
    _, first, inverse = np.unique(root[:count], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
