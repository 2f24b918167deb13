"""What the labels of one round cost at a training set's size, features given: time and memory.

spcl: Jaccard distances, DBSCAN at three radii on them, the filter. cap: Jaccard distances, DBSCAN, a proxy
for each camera of each cluster. softsim: the images least unlike each, by whole, stripes and camera. Each
stands beside the bare matrix product of its features with themselves, measured before and after.
"""

import functools
from types import SimpleNamespace

import numpy as np

from reid_jax import cli
from reid_jax.benchmarks import rerank
from reid_jax.benchmarks.cluster import problem
from reid_jax.eval import unlike
from reid_jax.methods import cap, spcl
from reid_jax.methods.spcl import labels as spcl_labels

PARTS = 8


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    drawn = problem(args)
    feature, camid = drawn.g_feat, drawn.g_cam
    result = {"benchmark": "rounds", "size": args.size, "images": len(feature), "dim": args.dim}
    result |= {"task": args.task, **rerank.machine()}
    run = {"spcl": three_clusterings, "cap": proxies, "softsim": neighbours}[args.task]
    figures = {}
    run(feature[:64], camid[:64], args, figures)  # loads what is loaded late
    dim = args.dim + PARTS * args.part_dim if args.task == "softsim" else args.dim
    call = functools.partial(run, feature, camid, args, figures)
    result |= rerank.measure(call, len(feature), dim, args.repeats) | figures
    result["memory_mib"] = round(4 * len(feature) * args.dim / 2**20)
    rerank.print_table(result)
    return result


def parse(argv):
    parser = cli.parser("benchmarks rounds", __doc__)
    parser.add_argument("--size", default="market", help="market, msmt17 or a number of images")
    parser.add_argument("--task", choices=("spcl", "cap", "softsim"), default="spcl")
    parser.add_argument("--dim", type=cli.whole(1), default=2048)
    parser.add_argument("--part-dim", type=cli.whole(1), default=256, help="softsim: numbers of a stripe")
    parser.add_argument("--repeats", type=cli.whole(0), default=1, help="after the first; the best counts")
    return parser.parse_args(argv)


def three_clusterings(feature, camid, args, figures):
    """Three clusterings on the same distances, and the filter of what they agree on."""
    del camid, args
    labels, _ = spcl_labels.find_labels(feature, SimpleNamespace(**spcl.FIELDS), -1)
    figures.update(clusters=int((np.bincount(labels) > 1).sum()), classes=int(labels.max()) + 1)


def proxies(feature, camid, args, figures):
    """Clusters and the memory of their proxies."""
    del args
    fields = SimpleNamespace(**cap.FIELDS)
    labels = cap.find_labels(feature, fields)
    memory = cap.proxies_of(feature, labels, camid, len(feature))
    figures.update(clusters=int(labels.max()) + 1, proxies=int((memory["cluster"] >= 0).sum()))


def neighbours(feature, camid, args, figures):
    """Reliable images; the stripes are made-up numbers."""
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((len(feature), PARTS, args.part_dim), np.float32)
    near = unlike.nearest(feature, parts, np.asarray(camid), 4, 0.5, 0.02)
    figures.update(neighbours=list(near.shape))
