"""Jaccard distances and DBSCAN of a training set: time and memory, against a matrix product and NumPy code.

As `rerank`, with the clustering form of the algorithm. The time is that of the distances and one DBSCAN;
that of another eps on the same distances is given apart.
"""

import time

import numpy as np

from reid_jax import cli
from reid_jax.benchmarks import rerank
from reid_jax.data.synthetic import features
from reid_jax.eval import cluster

SIZES = {"market": (12936, 751, 6), "msmt17": (32621, 1041, 15)}  # training images, identities, cameras


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    drawn = problem(args)
    feature, pid = drawn.g_feat, drawn.g_pid
    result = {"benchmark": "cluster", "size": args.size, "images": len(feature), "dim": args.dim}
    result |= {"eps": args.eps, "limit": args.limit, **rerank.machine()}
    clustered = {}

    def run():
        clustered["jaccard"] = cluster.jaccard(feature, limit=args.limit)
        clustered["labels"] = cluster.dbscan(clustered["jaccard"], args.eps)

    cluster.dbscan(cluster.jaccard(feature[:64], limit=args.limit), args.eps)  # loads what is loaded late
    result |= rerank.measure(run, len(feature), args.dim, args.repeats)
    begin = time.perf_counter()
    cluster.dbscan(clustered["jaccard"], args.eps - 0.05)
    result["another_eps_seconds"] = round(time.perf_counter() - begin, 3)
    result["stored_pairs"] = clustered["jaccard"].graph.nnz
    result |= {"clusters": int(clustered["labels"].max()) + 1, "identities": len(np.unique(pid))}
    result |= against_numpy(feature[: args.numpy_images], args)
    rerank.print_table(result)
    return result


def parse(argv):
    parser = cli.parser("benchmarks cluster", __doc__)
    parser.add_argument(
        "--size", default="market", help="market, msmt17 (their training sets) or a number of images"
    )
    parser.add_argument("--eps", type=float, default=0.6)
    parser.add_argument("--limit", type=float, default=0.7, help="larger distances are not kept")
    rerank.common_arguments(parser)
    return parser.parse_args(argv)


def problem(args):
    """A training set's features, g_feat f32[N,D], with g_pid and g_cam i[N]."""
    if args.size in SIZES:
        images, ids, cameras = SIZES[args.size]
    else:
        images = rerank.number_of_images(args.size)
        ids, cameras = max(1, images // 17), 6
    return features.make(features.Sizes(3 * ids, images, ids, cameras, 0, args.dim))


def against_numpy(feature, args):
    """Seconds of the NumPy code and of ours on the same features, both to the distances alone."""
    (theirs, _), extra = rerank.timed(lambda: numpy_form(feature))
    ours = min(rerank.timed(lambda: cluster.jaccard(feature, limit=args.limit))[0][0] for _ in range(3))
    return {
        "numpy_images": len(feature),
        "numpy_seconds": round(theirs, 3),
        "numpy_extra_mib": round(extra),
        "ours_at_numpy_images": round(ours, 3),
        "speedup_over_numpy": round(theirs / ours, 2),
    }


def numpy_form(feature, *, k1=30, k2=6):
    """The published algorithm with N x N matrices: Jaccard distances f[N,N] in the type of the features."""
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    original = 2 - 2 * (unit @ unit.T)
    order = np.argsort(original, axis=1, kind="stable")
    return rerank.numpy_jaccard(original, order, k1, round(k1 / 2) + 1, k2, len(feature))
