"""Writes the features of images by a trained run.

    python -m reid_jax embed runs/a market1501:/data/Market-1501-v15.09.15 --output market.npz
    python -m reid_jax embed runs/a /data/my_pictures --output mine.npz

RUN is the workdir of a run, whose training data need not be there. SOURCE is a data set in its own layout,
NAME:FOLDER, or any folder of pictures. The file holds feature f32[N,D], pid, camid, path and split;
`python -m reid_jax score FILE.npz` scores it.
"""

from reid_jax import cli, hardware, places
from reid_jax.data import datasets
from reid_jax.eval import store

SPLITS = ("train", "query", "gallery")


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    cli.prepare_jax()
    hardware.start()
    from reid_jax.train import restore

    source = datasets.open_source(args.source, args.split, args.on_broken)
    run = restore.run(args.run, which=args.checkpoint, batch=args.batch)
    features = run.features(source.splits, source.root, args.net, True, args.on_broken, source.name)
    store.save(args.output, features)
    size = f"{len(features)} x {features.feature.shape[1]}"
    print(f"{args.output}: features {size} of {source.label} by step {run.step} of {args.run}")
    return 0


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("embed", __doc__)
    parser.add_argument(
        "run", metavar="RUN", type=places.argument("RUN"), help="workdir of a finished or unfinished run"
    )
    parser.add_argument("source", metavar="SOURCE", help="NAME:FOLDER or a folder of pictures")
    output = places.argument("--output", places.written)
    parser.add_argument("--output", required=True, metavar="FILE.npz", type=output)
    parser.add_argument(
        "--split",
        type=lambda text: text.split(","),
        default=["query", "gallery"],
        help="of a data set: train, query, gallery, comma-separated (default: query,gallery)",
    )
    cli.add_run_flags(parser)
    args = parser.parse_args(argv)
    if unknown := set(args.split) - set(SPLITS):
        parser.error(f"--split knows {', '.join(SPLITS)}, not {', '.join(sorted(unknown))}")
    if not args.output.endswith(".npz"):
        parser.error(f"--output={args.output}: the name must end in .npz")
    return args
