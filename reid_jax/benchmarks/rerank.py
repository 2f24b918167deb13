"""k-reciprocal re-ranking: time and memory, against the bare matrix product and against N x N NumPy code.

The NumPy code is the published algorithm as it is usually written: dense matrices, a full argsort, a loop
over images. It runs from distance matrices, at the asked size or at --numpy-images, whichever is less, and so
does ours for the comparison. The matrix product is that of all features with all, (Q + G)^2 D multiply-adds,
measured before and after on some tiles of it and scaled.
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import cli
from reid_jax.benchmarks.eval import memory, reset_peak
from reid_jax.data.synthetic import features
from reid_jax.eval import rerank

_TILE = 2048
_MATMUL_SECONDS = 0.5  # tile products are repeated for at least this long


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    sizes = sizes_of(args)
    result = {"benchmark": "rerank", "size": args.size, "queries": sizes.queries, "gallery": sizes.gallery}
    result |= {"dim": sizes.dim, "input": args.input, "form": args.form, **machine()}
    problem = features.make(sizes)
    q, g = problem.q_feat, problem.g_feat
    call = from_features(q, g, args) if args.input == "features" else from_distances(q, g, args)
    result |= measure(call, sizes.queries + sizes.gallery, sizes.dim, args.repeats)
    share = min(1, args.numpy_images / (sizes.queries + sizes.gallery))
    result |= against_numpy(q[: int(share * len(q))], g[: int(share * len(g))], args)
    print_table(result)
    return result


def parse(argv):
    parser = cli.parser("benchmarks rerank", __doc__)
    parser.add_argument(
        "--size", default="market", help="market, msmt17 or a number of images, a sixth queries"
    )
    parser.add_argument("--queries", type=cli.whole(1), help="of a number of images (a sixth of them)")
    parser.add_argument("--input", choices=("features", "distances"), default="features")
    parser.add_argument("--form", choices=("original", "iics"), default="original")
    common_arguments(parser)
    return parser.parse_args(argv)


def common_arguments(parser):
    parser.add_argument("--dim", type=cli.whole(1), default=2048)
    parser.add_argument("--repeats", type=cli.whole(0), default=2, help="after the first; the best counts")
    parser.add_argument("--numpy-images", type=cli.whole(0), default=6000, help="at most, to the NumPy code")


def sizes_of(args):
    """features.Sizes of a retrieval problem."""
    if args.size in features.SIZES:
        return features.SIZES[args.size]._replace(dim=args.dim)
    images = number_of_images(args.size)
    queries = args.queries or max(1, images // 6)
    ids = max(1, queries // 4)
    return features.Sizes(queries, images - queries, ids, 6, (images - queries) // 7, args.dim)


def number_of_images(size):
    if not size.isdigit() or int(size) < 12:
        sys.exit(f"--size is {size!r}; it must be one of {', '.join(features.SIZES)} or a number from 12 on")
    return int(size)


def machine():
    """What a figure depends on."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def from_features(q, g, args):
    def run():
        for _ in rerank.blocks(q, g, form=args.form):
            pass

    return run


def from_distances(q, g, args):
    matrices = distances(q, g)
    return lambda: rerank.from_distances(*matrices, form=args.form)


def distances(q, g):
    """Euclidean distances of unit features: (q_g, q_q, g_g), f32."""
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    return tuple(np.sqrt(np.maximum(2 - 2 * (a @ b.T), 0)) for a, b in ((q, g), (q, q), (g, g)))


def measure(call, images, dim, repeats):
    """Seconds of the first and the best later call, extra memory, and the bare product's seconds."""
    before = matmul_seconds(images, dim)
    first, first_extra = timed(call)
    later = [timed(call) for _ in range(repeats)]
    (seconds, cpu), _ = min(later or [(first, first_extra)])
    matmul = (before + matmul_seconds(images, dim)) / 2
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "first_call_seconds": round(first[0], 3),
        "extra_mib": round(max([first_extra] + [extra for _, extra in later])),
        "matmul_seconds": round(matmul, 3),
        "ratio_to_matmul": round(seconds / matmul, 3),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def timed(call):
    """((wall seconds, CPU seconds), MiB that the process grew by at most) of one call."""
    base = reset_peak()
    begin, cpu = time.perf_counter(), time.process_time()
    call()
    seconds = time.perf_counter() - begin, time.process_time() - cpu
    return seconds, memory("VmHWM") - base


def matmul_seconds(images, dim):
    """Seconds of the product of `images` features with themselves, from repeated tile products."""
    tile = min(_TILE, images)
    a = jnp.asarray(np.random.default_rng(0).standard_normal((tile, dim), np.float32))
    product = jax.jit(lambda a: jnp.dot(a, a.T, precision=jax.lax.Precision.HIGHEST))
    product(a).block_until_ready()
    begin, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - begin < _MATMUL_SECONDS:
        product(a).block_until_ready()
        count += 1
    return (time.perf_counter() - begin) / count * (images / tile) ** 2


def against_numpy(q, g, args):
    """Seconds of the NumPy code and of ours on the same distance matrices."""
    matrices = distances(q, g)
    (theirs, _), theirs_extra = timed(lambda: numpy_form(*matrices, form=args.form))
    ours = min(timed(lambda: rerank.from_distances(*matrices, form=args.form))[0][0] for _ in range(3))
    return {
        "numpy_images": len(q) + len(g),
        "numpy_seconds": round(theirs, 3),
        "numpy_extra_mib": round(theirs_extra),
        "ours_at_numpy_images": round(ours, 3),
        "speedup_over_numpy": round(theirs / ours, 2),
    }


def numpy_form(q_g, q_q, g_g, *, form="original", k1=20, k2=6, lambda_value=0.3):
    """The published algorithm with N x N matrices: f[Q,G] in the type of the distances."""
    joint = np.block([[q_q, q_g], [q_g.T, g_g]])
    if form == "original":
        joint = joint**2
    else:
        joint = joint - joint.min(0)
    original = (joint / joint.max(0)).T
    order = np.argsort(original, axis=1, kind="stable")
    jaccard = numpy_jaccard(original, order, k1 + 1, round(k1 / 2) + 1, k2, len(q_q))
    result = (1 - lambda_value) * jaccard + lambda_value * original[: len(q_q)]
    return result[:, len(q_q) :]


def numpy_jaccard(original, order, depth, half, k2, queries):
    """Jaccard distances f[queries,N]; order: all images by distance; the rest as in eval.reciprocal."""
    weights = np.zeros_like(original)
    for i in range(len(original)):
        reciprocal = _numpy_reciprocal(order, i, depth)
        expanded = reciprocal
        for candidate in reciprocal:
            near = _numpy_reciprocal(order, candidate, half)
            if 3 * len(np.intersect1d(near, reciprocal)) > 2 * len(near):
                expanded = np.append(expanded, near)
        expanded = np.unique(expanded)
        weight = np.exp(-original[i, expanded])
        weights[i, expanded] = weight / weight.sum()
    if k2 != 1:
        weights = np.stack([weights[row[:k2]].mean(0) for row in order])
    holders = [np.flatnonzero(weights[:, k]) for k in range(len(weights))]
    jaccard = np.empty((queries, len(original)), original.dtype)
    for i in range(queries):
        similarity = np.zeros(len(original), original.dtype)
        for k in np.flatnonzero(weights[i]):
            similarity[holders[k]] += np.minimum(weights[i, k], weights[holders[k], k])
        jaccard[i] = np.maximum(1 - similarity / (2 - similarity), 0)
    return jaccard


def _numpy_reciprocal(order, i, depth):
    """Entries of list i whose own list holds i."""
    near = order[i, :depth]
    return near[(order[near, :depth] == i).any(1)]


def print_table(result):
    """The figures for people."""
    for name, value in result.items():
        print(f"{name:24s}{value}")
