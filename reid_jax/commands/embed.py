"""Writes the features of images by a trained run.

    python -m reid_jax embed runs/a market1501:/data/Market-1501-v15.09.15 --output market.npz
    python -m reid_jax embed runs/a /data/my_pictures --output mine.npz --camera-from folder
    python -m reid_jax embed runs/a a.jpg b.jpg list.txt --output some.npz --unit

Many pictures: start it as several processes, by srun, mpirun or with --coordinator=HOST:PORT
--num_processes=N --process_id=I, on machines that share the disk. Each takes its share; the file is that of
one process. A command that was stopped goes on where it was: until then what is done lies in FILE.npz.parts.

RUN is the workdir of a run, whose training data need not be there. SOURCE is a data set in its own layout,
NAME:FOLDER, any folder of pictures, or pictures and .txt lists of them, a path a line. The file holds feature
f32[N,D], pid, camid, path and split; `python -m reid_jax score FILE.npz` scores it.
"""

import logging

import numpy as np

from reid_jax import cli, hardware, places
from reid_jax.data import datasets, listed
from reid_jax.errors import ConfigError
from reid_jax.eval import store

SPLITS = ("train", "query", "gallery")


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    if args.dry_run:
        return dry_run(args)
    cli.prepare_jax()
    import jax

    from reid_jax.train import processes

    join(args)
    try:
        embed(args)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        processes.fail(cli.report_error(error))
    processes.leave()
    return 0


def dry_run(args):
    """Tells what would be embedded and what is missing; returns the exit code."""
    from reid_jax import dry

    def there():
        return ", ".join(f"{len(records)} {split}" for split, records in opened(args)[0].splits.items())

    needs = [dry.of_run(args.run, finished=False), dry.look(f"source {' '.join(args.source)}", there)]
    return dry.tell([f"write features to {args.output}"], needs)


def join(args):
    """Joins the other processes, if there are any; they say errors only."""
    from reid_jax.train import processes

    settings = args.coordinator, args.num_processes, args.process_id
    if args.nodistributed or (settings == (None, None, None) and not processes.started_by_a_launcher()):
        return
    processes.join(*settings)
    if not processes.first():
        logging.getLogger("reid_jax").setLevel(logging.ERROR)


def embed(args):
    """Writes the file; what it says is said by the first process."""
    hardware.start()
    from reid_jax.serve import shares
    from reid_jax.train import processes, restore

    source, cameras = opened(args)
    run = restore.run(args.run, which=args.checkpoint, batch=args.batch)
    features = shares.features(run, source, args.output, args.net, args.on_broken, processes.first())
    if features is None:
        return
    store.save(args.output, features.replace(feature=unit(features.feature)) if args.unit else features)
    shares.done(args.output)
    size = f"{len(features)} x {features.feature.shape[1]}"
    print(f"{args.output}: features {size} of {source.label} by step {run.step} of {args.run}")
    if cameras:
        print(f"cameras: {', '.join(f'{number} {name}' for name, number in cameras.items())}")


def opened(args):
    """(datasets.Source, {camera: camid} of --camera-from) of the arguments."""
    skip = "stop" if args.on_broken == "stop" else "skip"
    files = listed.are_files(args.source)
    if len(args.source) > 1 and not files:
        raise ConfigError("several SOURCEs must be pictures or .txt lists of them; give folders one by one")
    if files:
        source = listed.open_files(args.source)
    else:
        source = datasets.open_source(args.source[0], args.split, skip)
    if not args.camera_from:
        return source, {}
    if set(source.splits) != {"images"}:
        raise ConfigError("--camera-from is for pictures without a layout; data sets know their cameras")
    records, cameras = listed.with_cameras(source.splits["images"], source.root, args.camera_from)
    return source._replace(splits={"images": records}), cameras


def unit(feature):
    """f32[N,D] with rows of unit length; NaN stays."""
    return feature / np.maximum(np.linalg.norm(feature, axis=1, keepdims=True), 1e-12)


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("embed", __doc__)
    parser.add_argument(
        "run", metavar="RUN", type=places.argument("RUN"), help="workdir of a finished or unfinished run"
    )
    parser.add_argument(
        "source", metavar="SOURCE", nargs="+", help="NAME:FOLDER, a folder of pictures, pictures, .txt lists"
    )
    output = places.argument("--output", places.written)
    parser.add_argument("--output", required=True, metavar="FILE.npz", type=output)
    parser.add_argument(
        "--split",
        type=lambda text: text.split(","),
        default=["query", "gallery"],
        help="of a data set: train, query, gallery, comma-separated (default: query,gallery)",
    )
    parser.add_argument(
        "--camera-from",
        default="",
        metavar="folder|REGEX",
        help="camid of pictures: by the name of their folder, or by what a regular expression matches in "
        "their path, its group camera or first group",
    )
    parser.add_argument("--unit", action="store_true", help="rows of unit length (default: as the run's)")
    cli.add_run_flags(parser, ("stop", "skip", "nan"))
    cli.add_process_flags(parser)
    cli.add_dry_flag(parser)
    args = parser.parse_args(argv)
    if unknown := set(args.split) - set(SPLITS):
        parser.error(f"--split knows {', '.join(SPLITS)}, not {', '.join(sorted(unknown))}")
    if not args.output.endswith(".npz"):
        parser.error(f"--output={args.output}: the name must end in .npz")
    return args
