"""Writes the features of images by a trained run: `python -m reid_jax.embed RUN SOURCE --output FILE.npz`.

RUN is the workdir of a run, whose training data need not be there. SOURCE is a data set in its own layout,
NAME:FOLDER as in market1501:/data/Market-1501-v15.09.15, or any folder of pictures. The file holds feature
f32[N,D], pid, camid, path and split; `python -m reid_jax.evaluate FILE.npz` scores it.
"""

import argparse
import logging
import sys

from reid_jax.data import datasets
from reid_jax.errors import ReidError
from reid_jax.eval import store

log = logging.getLogger("reid_jax")


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    from reid_jax.main import prepare_jax
    from reid_jax.train import parallel, restore

    prepare_jax()
    source = datasets.open_source(args.source, args.split)
    run = restore.run(args.run, parallel.Runner(args.backend), args.checkpoint)
    if args.batch:
        run.config.eval.batch_size = args.batch
    features = run.features(source.splits, source.root, args.net, progress=True)
    store.save(args.output, features)
    size = f"{len(features)} x {features.feature.shape[1]}"
    print(f"{args.output}: features {size} of {source.label} by step {run.step} of {args.run}")
    return 0


def parse(argv):
    """Command line -> namespace."""
    parser = argparse.ArgumentParser(
        "python -m reid_jax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="workdir of a finished or unfinished run")
    parser.add_argument("source", metavar="SOURCE", help="NAME:FOLDER or a folder of pictures")
    parser.add_argument("--output", required=True, metavar="FILE.npz")
    parser.add_argument(
        "--split",
        type=lambda s: s.split(","),
        default=["query", "gallery"],
        help="of a data set: train, query, gallery, comma-separated (default: query,gallery)",
    )
    add_run_flags(parser)
    args = parser.parse_args(argv)
    if unknown := set(args.split) - {"train", "query", "gallery"}:
        parser.error(f"--split knows train, query and gallery, not {', '.join(sorted(unknown))}")
    if not args.output.endswith(".npz"):
        parser.error(f"--output={args.output}: the name must end in .npz")
    return args


def add_run_flags(parser):
    """Flags of every command that applies a run."""
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step (default: best)")
    parser.add_argument("--net", default="auto", help="auto or a network of the method (default: auto)")
    parser.add_argument("--batch", type=int, default=0, help="images at a time (default: the run's)")
    parser.add_argument("--backend", default="pmap", help="pmap, shard_map or jit (default: pmap)")


def run_main(function):
    """Runs a command's main; errors a user can act on become one message and exit code 2."""
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        sys.exit(function())
    except ReidError as e:
        sys.stderr.write(f"error: {e}\n")
        sys.exit(2)


if __name__ == "__main__":
    run_main(main)
