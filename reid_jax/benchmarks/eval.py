"""Time and memory of exact retrieval figures, against the bare matrix product and the published NumPy form.

Features are seeded (reid_jax.data.synthetic.features). All routes run in this process and take turns; the
best round of each counts. Memory is the peak of this process above the loaded features and a JAX that has
compiled one small function; compilation of what is measured is included.
"""

import contextlib
import math
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax import cli
from reid_jax.data.synthetic import features
from reid_jax.eval import ranking, tiles

_MATMUL_QUERIES, _MATMUL_GALLERY = 512, 4096  # of one product


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    sizes = problem_sizes(args.size, args.dim)
    allocate = tiles.aligned if args.memory == "aligned" else lambda shape: np.empty(shape, np.float32)
    problem = features.make(sizes, allocate=allocate)
    result = {**vars(args), **sizes._asdict(), "device": jax.devices()[0].device_kind}
    result.update(measure(problem, args))
    print_table(result)
    return result


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("benchmarks eval", __doc__)
    parser.add_argument("--size", default="market", help="market, msmt17, or a number of gallery images")
    parser.add_argument("--dim", type=cli.whole(1), default=2048, help="of the features")
    parser.add_argument("--distance", choices=ranking.DISTANCES, default="euclidean")
    parser.add_argument("--rounds", type=cli.whole(1), default=3)
    parser.add_argument(
        "--numpy-queries", type=cli.whole(0), default=128, help="of the NumPy form, scaled up"
    )
    parser.add_argument(
        "--memory", choices=("aligned", "plain"), default="aligned",
        help="of the features: aligned to 64 bytes, which JAX reads in place, or as NumPy gives it",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.size not in features.SIZES and not (args.size.isdigit() and int(args.size) >= 100):
        parser.error(f"--size must be {', '.join(features.SIZES)} or a number from 100 on")
    if min(args.dim, args.rounds, args.numpy_queries) < 1:
        parser.error("--dim, --rounds and --numpy-queries must be at least 1")
    return args


def problem_sizes(size, dim):
    """Sizes by name, or in Market-1501's proportions for a number of gallery images."""
    sizes = features.SIZES.get(size)
    if sizes is None:
        share = int(size) / features.SIZES["market"].gallery
        ids, queries, lost = (math.ceil(n * share) for n in (750, 3368, 2793))
        sizes = features.Sizes(queries, int(size), ids, 6, lost)
    return sizes._replace(dim=dim)


def measure(problem, args):
    """Figures of all routes."""
    ours = lambda: ranking.rank(*problem, distance=args.distance)  # noqa: E731
    jax.jit(lambda x: jnp.cumsum(x @ x))(jnp.ones((64, 64))).block_until_ready()  # JAX's own start
    start = reset_peak()
    first, _, ranked = timed(ours)
    best = {ours: timed(ours)[:2]}
    extra = memory("VmHWM") - start
    product = matmul(problem)
    product()
    best[product] = timed(product)[:2]
    for _ in range(args.rounds - 1):
        for run in best:
            best[run] = tuple(map(min, best[run], timed(run)))
    (seconds, cpu), (bare, bare_cpu) = best[ours], best[product]
    subset = min(args.numpy_queries, len(problem.q_feat))
    once, _, g_part = timed(lambda: published_gallery(problem.g_feat, args.distance))
    some, _, ap = timed(lambda: published(problem, np.arange(subset), g_part, args.distance))
    plain = once + some * len(problem.q_feat) / subset
    return {
        "seconds": round(seconds, 3),
        "first_call_seconds": round(first, 3),
        "extra_mib": round(extra, 1),
        "matmul_seconds": round(bare, 3),
        "ratio_to_matmul": round(seconds / bare, 3),
        "cpu_ratio_to_matmul": round(cpu / bare_cpu, 3),
        "numpy_seconds": round(plain, 2),
        "numpy_queries": subset,
        "numpy_scaled_up": subset < len(problem.q_feat),
        "speedup_over_numpy": round(plain / seconds, 2),
        "numpy_ap_difference": float(np.nanmax(np.abs(ap - ranked.ap[:subset]), initial=0)),
        "mAP": ranked.mAP,
        "mINP": ranked.mINP,
        "rank1": float(ranked.cmc[0]),
    }


def timed(run):
    """(seconds, CPU seconds of this process, result)"""
    begin, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - begin, time.process_time() - cpu, result


def reset_peak():
    """Lets the peak start from the memory in use now, where the system can; returns that in MiB."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    return memory("VmRSS")


def memory(name):
    """MiB of this process: VmRSS now, VmHWM at its peak; the peak for both where /proc is absent."""
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(name)) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matmul(problem):
    """A function that computes the product of all features, block by block, and keeps nothing of it."""
    product = jax.jit(
        lambda q, g: lax.dot_general(q, g, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    )
    q, g = (
        [jax.device_put(part[i : i + step]) for i in range(0, len(part), step)]
        for part, step in ((problem.q_feat, _MATMUL_QUERIES), (problem.g_feat, _MATMUL_GALLERY))
    )

    def run():
        for queries in q:
            jax.block_until_ready([product(queries, entries) for entries in g])

    return run


def published_gallery(g_feat, distance):
    """What `published` needs of the gallery once: unit features f32[G,D], or squared norms f32[G]."""
    if distance == "cosine":
        return g_feat / np.linalg.norm(g_feat, axis=1, keepdims=True)
    return (g_feat**2).sum(1)


def published(problem, queries, g_part, distance):
    """Average precisions f64[n] as evaluation code is published: every row of distances is argsorted."""
    q = problem.q_feat[queries]
    if distance == "cosine":
        distances = 1 - (q / np.linalg.norm(q, axis=1, keepdims=True)) @ g_part.T
    else:
        distances = (q**2).sum(1)[:, None] + g_part - 2 * (q @ problem.g_feat.T)
    order = np.argsort(distances, axis=1)
    matches = (problem.g_pid[order] == problem.q_pid[queries, None]).astype(np.int32)
    ap = np.full(len(queries), np.nan)
    for i, query in enumerate(queries):
        junk = (problem.g_pid[order[i]] == problem.q_pid[query]) & (
            problem.g_cam[order[i]] == problem.q_cam[query]
        )
        hits = matches[i][~junk]
        if hits.any():
            precision = hits.cumsum() / (np.arange(len(hits)) + 1.0)
            ap[i] = (precision * hits).sum() / hits.sum()
    return ap


def print_table(result):
    """Figures for people."""
    r = result
    print(f"{r['queries']} queries x {r['gallery']} gallery x {r['dim']}, {r['distance']}, {r['device']}")
    print(f"{'exact figures':<24}{r['seconds']:>9.2f} s   first call {r['first_call_seconds']:.2f} s")
    print(f"{'memory above features':<24}{r['extra_mib']:>9.0f} MiB")
    print(
        f"{'bare matrix product':<24}{r['matmul_seconds']:>9.2f} s   ratio {r['ratio_to_matmul']:.2f}, "
        f"in CPU seconds {r['cpu_ratio_to_matmul']:.2f}"
    )
    scaled = f", scaled up from {r['numpy_queries']} queries" if r["numpy_scaled_up"] else ""
    print(
        f"{'NumPy, argsort':<24}{r['numpy_seconds']:>9.2f} s   {r['speedup_over_numpy']:.1f} x ours{scaled}"
    )
    print(f"mAP {100 * r['mAP']:.4f}  mINP {100 * r['mINP']:.4f}  rank1 {100 * r['rank1']:.2f}")
