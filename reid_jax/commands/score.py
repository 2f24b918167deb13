"""Scores stored features.

    python -m reid_jax score runs/a/eval/final.npz
    python -m reid_jax score A=market.npz B=other.npz --per-camera --plot cmc.png --json scores.json
    python -m reid_jax score market.npz --rerank
    python -m reid_jax score market.npz --fmr 0.01,0.001 --roc roc.png

The files are those of `python -m reid_jax embed` or of a run's eval/ folder: feature, pid, camid, path and
split, with the splits query and gallery. Prints one row a file, and what thresholds on the similarity tell of
whether two pictures show one person; the last line is JSON.
"""

import argparse
import contextlib
import json
import os
import tempfile

import numpy as np

from reid_jax import cli, hardware, places, tables
from reid_jax.config import split_label
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import expansion, protocols, ranking, rerank, scoring, store, verification

TITLES = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "rank20": "rank-20", "prop": "prop."}
_IN_MEMORY = 1 << 30  # larger matrices of re-ranked distances go to a temporary file


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    if args.dry_run:
        return dry_run(args)
    cli.prepare_jax()
    hardware.start()
    results = {}
    for text in args.features:
        label, path = split_label(text)
        results[label or path] = score(places.local(path, "a feature file"), args)
    print(table(results))
    print(f"\nsame person or not, by a threshold on the similarity\n{pairs_table(results, args.fmr)}")
    if args.per_camera:
        for label, result in results.items():
            print(f"\n{label}, by the query's camera\n{camera_table(result['cameras'])}")
    if args.plot:
        plot(results, args.plot)
    if args.roc:
        plot_pairs(results, args.roc)
    text = json.dumps(results)
    if args.json:
        tables.write_text(args.json, text + "\n")
    print(text)
    return 0


def dry_run(args):
    """Tells what would be scored and what is missing; returns the exit code."""
    from reid_jax import dry

    files = [split_label(text)[1] for text in args.features]
    return dry.tell([f"score {', '.join(files)}"], [dry.of_file("features", file) for file in files])


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("score", __doc__)
    parser.add_argument("features", nargs="+", metavar="[LABEL=]FILE.npz")
    parser.add_argument(
        "--distance",
        type=distance,
        default="cosine",
        metavar="{cosine,euclidean,ratioN}",
        help="ratioN: of features that end with N weights, as the run's config.eval.distance says",
    )
    parser.add_argument(
        "--protocol",
        choices=[p for p in protocols.PROTOCOLS if p not in protocols.PERSONS],
        default="market",
        help="market: the query's own camera is left out for its identity (default); all-pairs: nothing is; "
        "single-shot: one random image of each identity, drawn for every query; single-gallery: drawn once "
        "for all queries of a trial (VIPeR, GRID)",
    )
    parser.add_argument("--trials", type=int, default=0, help="single-*: default 100, 10 for single-gallery")
    parser.add_argument("--seed", type=int, default=0, help="single-*: of the draws")
    parser.add_argument(
        "--rerank",
        nargs="?",
        const="original",
        choices=rerank.FORMS,
        help="k-reciprocal, as published (original, the default) or as a toolbox's evaluation has it",
    )
    parser.add_argument("--k1", type=int, default=20)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--lambda", dest="lambda_value", type=float, default=0.3)
    parser.add_argument(
        "--expand",
        type=int,
        default=0,
        metavar="K",
        help="features of both sides become means of K neighbours, themselves included, as in fast-reid",
    )
    parser.add_argument("--alpha", type=float, default=3.0, help="--expand: weights are cosine^alpha (3)")
    parser.add_argument("--times", type=int, default=1, help="--expand: so many times over (1)")
    parser.add_argument("--per-camera", action="store_true", help="figures by the query's camera too")
    add_outputs(parser)
    cli.add_dry_flag(parser)
    args = parser.parse_args(argv)
    if args.protocol.startswith("single") and (args.rerank or args.per_camera):
        parser.error(f"--protocol={args.protocol} goes with neither --rerank nor --per-camera")
    if (args.rerank or args.expand) and args.distance not in ranking.DISTANCES:
        parser.error(f"--distance={args.distance} goes with neither --rerank nor --expand")
    args.trials = args.trials or protocols.TRIALS.get(args.protocol, 0)
    return args


def add_outputs(parser):
    """Flags of what is written and drawn beside the table."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=places.argument("--json", places.written),
        help="write the figures and the CMC to a file",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        type=places.argument("--plot", places.written),
        help="draw the CMC (.png, .pdf or .svg)",
    )
    parser.add_argument(
        "--roc",
        metavar="FILE.png",
        type=places.argument("--roc", places.written),
        help="draw the ROC, and how similar pairs are",
    )
    parser.add_argument(
        "--fmr",
        type=rates,
        default=verification.RATES,
        metavar="RATE,...",
        help="wanted false match rates (default: 0.01,0.001,0.0001)",
    )


def distance(text):
    """A distance of scoring; argparse.ArgumentTypeError for another."""
    try:
        return scoring.check_distance(text)
    except ConfigError as e:
        known = ", ".join((*ranking.DISTANCES, "ratioN"))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {known})") from e


def rates(text):
    """'0.01,0.001' -> (0.01, 0.001)."""
    try:
        fmrs = tuple(float(part) for part in text.split(","))
        verification.check_rates(fmrs)
    except (ValueError, ConfigError) as e:
        raise ConfigError(f"--fmr={text}: false match rates lie between 0 and 1, 0.01,0.001 say") from e
    return fmrs


def score(path, args):
    """{figure: percent, "cmc": percents, ...} of one file."""
    features = store.load(path)
    query, gallery = features.of("query"), features.of("gallery")
    if not len(query) or not len(gallery):
        there = ", ".join(sorted(set(features.split.tolist())))
        raise DataError(f"{path} has the splits {there}; scoring needs query and gallery")
    if args.expand:
        settings = dict(k=args.expand, alpha=args.alpha, times=args.times)
        sides = expansion.joint(query.feature, gallery.feature, **settings)
        query, gallery = query.replace(feature=sides[0]), gallery.replace(feature=sides[1])
    labels = (query.pid, gallery.pid, query.camid, gallery.camid)
    if args.protocol.startswith("single"):
        return single_shot(query, gallery, labels, args)
    retrieval, pairs = ranked(query, gallery, labels, args)
    result = {**retrieval.figures(), "mAP_trapezoid": 100 * retrieval.mAP_trapezoid}
    result |= {"cmc": percent(retrieval.cmc), "queries": len(query), "gallery": len(gallery)}
    result["queries_with_match"] = int(retrieval.valid.sum())
    result |= pairs
    if args.per_camera:
        result["cameras"] = by_camera(retrieval, query.camid)
    return result


def ranked(query, gallery, labels, args):
    """(ranking.Retrieval, `of_pairs`) of the features, or of re-ranked distances."""
    options = dict(camera_filter=args.protocol == "market")
    if not args.rerank:
        sides = (query.feature, gallery.feature, *labels)
        options |= dict(distance=args.distance)
        return ranking.rank(*sides, **options), of_pairs(verification.count, args, *sides, **options)
    settings = dict(form=args.rerank, k1=args.k1, k2=args.k2, lambda_value=args.lambda_value)
    settings |= dict(distance=args.distance, progress=True)
    with matrix(len(query), len(gallery)) as distances:
        for start, block in rerank.blocks(query.feature, gallery.feature, **settings):
            distances[start : start + len(block)] = block
        counted = of_pairs(verification.count_distances, args, distances, *labels, **options)
        return ranking.rank_distances(distances, *labels, **options), counted


def of_pairs(count, args, *sides, **options):
    """Figures, ROC and distributions of count(*sides, **options), {} without pairs of two persons."""
    try:
        pairs = count(*sides, **options)
    except DataError:
        return {}
    edges, same, other = (part.tolist() for part in pairs.shares())
    distributions = {"edges": edges, "same": same, "other": other}
    return {**pairs.figures(args.fmr), "roc": pairs.curve(), "similarity": distributions}


@contextlib.contextmanager
def matrix(rows, columns):
    """An uninitialised f32[rows,columns], in a temporary file when it is large."""
    if 4 * rows * columns <= _IN_MEMORY:
        yield np.empty((rows, columns), np.float32)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield np.memmap(os.path.join(folder, "distances"), np.float32, "w+", shape=(rows, columns))


def single_shot(query, gallery, labels, args):
    """Figures of the single-shot protocols, means over trials."""
    draw = protocols.SINGLE[args.protocol]
    options = dict(distance=args.distance, trials=args.trials, seed=args.seed, draw=draw)
    retrieval = protocols.single_shot(query.feature, gallery.feature, *labels, **options)
    result = {**retrieval.figures(), "cmc": percent(retrieval.cmc), "trials": args.trials, "seed": args.seed}
    sides = (query.feature, gallery.feature, *labels)
    result |= of_pairs(verification.count, args, *sides, distance=args.distance)
    return result | {"queries": len(query), "queries_with_match": int(retrieval.valid.sum())}


def by_camera(retrieval, q_cam):
    """{camera: {"queries", "rank1", "mAP", "mINP"}} over the queries with a match."""
    cameras = {}
    for camera in np.unique(q_cam):
        rows = retrieval.valid & (q_cam == camera)
        if not rows.any():
            continue
        figures = {"rank1": (retrieval.first_hit[rows] == 0).mean(), "mAP": retrieval.ap[rows].mean()}
        figures["mINP"] = retrieval.inp[rows].mean()
        shown = {k: 100 * float(v) for k, v in figures.items()}
        cameras[int(camera)] = {"queries": int(rows.sum()), **shown}
    return cameras


def percent(values):
    return [round(100 * float(v), 4) for v in values]


def table(results):
    """Markdown, one row for each file."""
    wanted = ("rank1", "rank5", "rank10", "rank20", "mAP", "mAP_trapezoid", "mINP", "prop")
    names = [n for n in wanted if all(n in r for r in results.values())]
    rows = [[label, *(f"{r[n]:.1f}" for n in names)] for label, r in results.items()]
    return tables.markdown(["", *(TITLES.get(n, n.replace("_", " ")) for n in names)], rows)


def pairs_table(results, rates):
    """Markdown, one row for each file: area under the ROC; for each rate what is found, from which score."""
    head = ["", "AUC", "equal error rate", *(f"found at {r:g} (threshold)" for r in rates)]
    rows = []
    for label, r in results.items():
        cells = [f"{r[k]:.2f}" if k in r else "-" for k in ("auc", "eer")]
        cells += [
            f"{r[f'tpr@{x:g}']:.1f} ({r[f'threshold@{x:g}']:.4f})" if f"tpr@{x:g}" in r else "-"
            for x in rates
        ]
        rows.append([label, *cells])
    return tables.markdown(head, rows)


def camera_table(cameras):
    """Markdown, one row for each camera."""
    rows = [
        [f"c{c}", str(r["queries"]), *(f"{r[k]:.1f}" for k in ("rank1", "mAP", "mINP"))]
        for c, r in cameras.items()
    ]
    return tables.markdown(["camera", "queries", "rank-1", "mAP", "mINP"], rows)


STYLE = {"axes.spines.top": False, "axes.spines.right": False}


def plot(results, path):
    """Draws the CMC of every file."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.subplots()
        for label, result in results.items():
            ranks = np.arange(1, len(result["cmc"]) + 1)
            axes.plot(ranks, result["cmc"], label=f"{label} ({result['rank1']:.1f})")
        axes.set_xscale("log")
        shown = [r for r in (1, 2, 5, 10, 20, 50) if r <= len(ranks)]
        axes.set_xticks(shown, [str(r) for r in shown])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.set_xlabel("rank")
        axes.set_ylabel("queries with a match among the first ranks, %")
        axes.legend(title="rank-1, %", loc="lower right", frameon=False)
        save(figure, path, "--plot")


def plot_pairs(results, path):
    """Draws the ROC of all files, and for each the distributions of the similarity of both sorts of pairs."""
    import matplotlib
    from matplotlib.figure import Figure

    results = {label: r for label, r in results.items() if "roc" in r}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6 + 4.0, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, (label, result) in enumerate(results.items()):
            roc, similarity = result["roc"], result["similarity"]
            left.plot(100 * np.array(roc["fpr"]), 100 * np.array(roc["tpr"]), label=label)
            for part, style in (("same", "-"), ("other", ":")):
                right.stairs(
                    100 * np.array(similarity[part]), similarity["edges"], color=f"C{i}", linestyle=style
                )
        left.set_xscale("log")
        left.set_xlabel("pairs of two persons above the threshold, %")
        left.set_ylabel("pairs of one person above the threshold, %")
        left.legend(loc="lower right", frameon=False)
        right.set_xlabel("similarity (solid: pairs of one person, dotted: of two)")
        right.set_ylabel("pairs of either sort, %")
        for axes in (left, right):
            axes.grid(alpha=0.3)
        save(figure, path, "--roc")


def save(figure, path, flag):
    """Writes a drawing; ConfigError when that fails."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{flag}={path} cannot be written: {e}") from e
