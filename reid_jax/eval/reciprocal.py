"""k-reciprocal neighbour sets and their Jaccard distance, sparse: what re-ranking and clustering share.

Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017. Every image i
becomes a row V_i of weights over its expanded set of reciprocal neighbours; the similarity of two images is
s_ij = sum_k min(V_ik, V_jk). Nothing here is N x N: neighbour lists are arrays [N,k], V is a sparse matrix.
"""

import numpy as np
from scipy import sparse

_TABLE = 4 << 20  # entries of the membership table of a block of rows
_TERMS = 1 << 21  # terms of s gathered at a time


def half_depth(k1):
    """Entries of a list that the expansion looks at: round(k1 / 2) + 1, halves to even."""
    return round(k1 / 2) + 1


def vectors(index, depth, half, k2, distances):
    """The weights V as a CSR matrix [N,N], rows summing to 1 (or empty: an image in nobody's list).

    index: neighbour lists i32[N,k], nearest first, k >= min(depth, N); depth: entries that reciprocal sets
    use; half: entries that the expansion uses; k2: V_i becomes the mean of V over the first k2 entries of
    the list (1: stays). distances: function of (i[P], j[P]) that gives f[P], weights are exp(-distance).
    """
    indptr, columns = expanded_sets(index[:, :depth], half)
    rows = np.repeat(np.arange(len(index)), np.diff(indptr))
    weights = np.exp(-distances(rows, columns))
    weights /= np.bincount(rows, weights, len(index)).astype(weights.dtype)[rows]
    v = sparse.csr_matrix((weights, columns, indptr), shape=(len(index),) * 2)
    return v if k2 == 1 else _local_mean(v, index[:, :k2])


def _local_mean(v, index):
    """Rows of V replaced by their mean over the images listed in index i32[N,k2]."""
    count, size = index.shape
    ones = np.full(index.size, 1, v.dtype)
    indptr = np.arange(0, index.size + 1, size)
    mean = sparse.csr_matrix((ones, index.ravel(), indptr), shape=v.shape) @ v
    mean.data /= v.dtype.type(size)
    mean.sort_indices()  # s is summed in this order, so that s_ij = s_ji to the last bit
    return mean


def expanded_sets(index, half):
    """Expanded reciprocal sets as CSR structure (indptr, columns ascending) over [N,N].

    The set of i holds B_i = {j in list i : i in list j} and, for each c of B_i whose own reciprocal set
    within the first `half` entries lies in B_i by more than 2/3, that set too. index: lists i32[N,k].
    """
    count = len(index)
    base, near = _reciprocal(index), _reciprocal(index[:, :half])
    sizes = near.sum(1)
    step = max(1, _TABLE // count)
    table = np.zeros(step * count, bool)
    keys = []
    for start in range(0, count, step):
        row, place = np.nonzero(base[start : start + step])
        candidate = index[start + row, place]
        listed = row * count + candidate
        members, valid = index[candidate, :half] + (row * count)[:, None], near[candidate]
        table[listed] = True
        inside = np.sum(table[members] & valid, 1)
        table[listed] = False
        added = 3 * inside > 2 * sizes[candidate]
        keys.append(start * count + np.unique(np.concatenate([listed, members[added][valid[added]]])))
    rows, columns = np.divmod(np.concatenate(keys), count)
    return np.searchsorted(rows, np.arange(count + 1)), columns.astype(np.int32)


def _reciprocal(index):
    """bool[N,k]: whether i is in the list of index[i, r]."""
    mutual = np.empty(index.shape, bool)
    step = max(1, _TABLE // index.shape[1] ** 2)
    for start in range(0, len(index), step):
        block = index[start : start + step]
        images = np.arange(start, start + len(block), dtype=index.dtype)
        mutual[start : start + step] = (index[block] == images[:, None, None]).any(2)
    return mutual


def inverted(v):
    """The inverted lists of V f[M,N], CSR [N,M]: by member k, the images j whose set holds k, with V_jk."""
    return v.T.tocsr()


def similarities(v, lists):
    """Positive similarities of the rows of v to all images in the lists: yields (start, CSR [b,M]) by blocks.

    v: CSR [Q,N], lists: `inverted` of CSR [M,N]. Columns of the result are not sorted.
    """
    terms = np.concatenate([[0], np.cumsum(_terms(v, lists))])[v.indptr]
    start = 0
    while start < v.shape[0]:
        stop = max(start + 1, int(np.searchsorted(terms, terms[start] + _TERMS, "right")) - 1)
        yield start, _similarity(v[start:stop], lists)
        start = stop


def most_pairs(v, lists):
    """An upper bound of the number of positive similarities."""
    return int(_terms(v, lists).sum())


def _terms(v, lists):
    """Number of terms of s that every stored entry of v takes part in."""
    return np.diff(lists.indptr)[v.indices].astype(np.int64)


def _similarity(block, lists):
    """s of the rows of `block`: each stored V_ik meets the list of k, the terms are summed by image."""
    met = lists[block.indices]
    met.data = np.minimum(met.data, np.repeat(block.data, np.diff(met.indptr)))
    ones = np.ones(block.nnz, block.dtype)
    return sparse.csr_matrix((ones, np.arange(block.nnz), block.indptr), (block.shape[0], block.nnz)) @ met


def distance(similarity):
    """Jaccard distances of similarities: max(0, 1 - s / (2 - s)), in place."""
    np.divide(similarity, 2 - similarity, out=similarity)
    np.subtract(1, similarity, out=similarity)
    return np.maximum(similarity, 0, out=similarity)
