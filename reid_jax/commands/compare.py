"""Runs several configs with several seeds and writes one table of their results.

    python -m reid_jax compare --workdir runs/table --seeds 0,1,2,3,4 \\
      A=configs/METHOD.py:synthetic B=configs/OTHER.py:synthetic

@FILE stands for the LABEL=CONFIG in a file, one a line (configs/supervised.txt).

Every run is an ordinary `reid_jax.main` run in WORKDIR/LABEL/seed-N, so the command can be stopped
and started again: finished runs are not repeated, unfinished ones go on. The first seed of all is
trained first. Arguments behind `--` go to every run (`-- --config.train.steps=300`), {seed} in them being
the run's seed: `-- --config.init.stages=teacher=WORKDIR/LABEL/seed-{seed}` trains a stage that rows share
once. On a synthetic set all runs share one drawn set, so seeds are training seeds; --data_seed=each draws a
set for each seed (of a real set with several splits, seed N has split N), and --test_ids says how many people
are tested: effects of a few points need 400 or more. Writes table.md, table.csv, table.json and
differences.json. Differences to the first config are paired by query, with intervals over test people and
seeds; one that holds zero decides nothing, and is named. When a run is stopped (SIGTERM, SIGINT) and has
saved, no other is started, and the exit code is its own, 75. --show writes the table of the runs that are
finished and trains none. --start LABEL trains the runs of that label first, and all others from their
weights, seed by seed (config.init.run).
"""

import contextlib
import json
import os
import sys
import threading
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reid_jax import cli, fields, places, tables
from reid_jax.errors import STOPPED, ConfigError, DataError
from reid_jax.eval import paired
from reid_jax.trained import labels
from reid_jax.trained.figures import TITLES, cell, gain, result
from reid_jax.trained.process import Stopped, train

TAKEN = ("data", "table.md", "table.csv", "table.json", "differences.json")  # in the workdir, beside the runs


def arguments(argv):
    """Parsed command line; what stands behind `--` is .extra."""
    parser = cli.parser("compare", __doc__)
    text = "as in A=configs/METHOD.py:VARIANT; @FILE: those in a file"
    parser.add_argument("runs", nargs="+", metavar="LABEL=CONFIG", help=text)
    workdir = places.argument("--workdir", places.written)
    parser.add_argument("--workdir", required=True, type=workdir, help="folder for all runs and the table")
    parser.add_argument("--seeds", type=seed_list, default="0,1,2,3,4", help="comma-separated (%(default)s)")
    parser.add_argument(
        "--jobs", type=cli.whole(1), default=1, help="runs at a time; above 1 each takes one CPU thread"
    )
    parser.add_argument(
        "--net", default="", help="network whose figures to show (default: the config's first)"
    )
    parser.add_argument("--start", default="", metavar="LABEL", help="whose runs all others start from")
    parser.add_argument("--show", action="store_true", help="the table of what is finished; trains nothing")
    parser.add_argument(
        "--data_seed",
        "--data-seed",
        type=data_seed,
        default=0,
        help="of the synthetic set that all runs share (0), or each: a set (or split) for every seed",
    )
    parser.add_argument(
        "--test_ids",
        "--test-ids",
        type=cli.whole(0),
        default=0,
        help="drawn people to test on (the config's)",
    )
    cli.add_dry_flag(parser)
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_intermixed_args(argv[:end])
    args.extra = argv[end + 1 :]
    args.runs = labels.configs(args.runs, TAKEN)
    if args.start and args.start not in args.runs:
        raise ConfigError(f"--start {args.start}: there are {', '.join(args.runs)}")
    return args


def data_seed(text):
    """'3' -> 3, 'each' -> None."""
    if text != "each" and not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is neither a seed from 0 nor each")
    return None if text == "each" else int(text)


def seed_list(text):
    """'0,1,2' -> [0, 1, 2]; each once."""
    seeds = [fields.whole(0)(seed) for seed in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise ArgumentTypeError(f"{text} names a seed twice")
    return seeds


def prepare_data(path, workdir, seed, test_ids=0, extra=(), each=False):
    """Generates the synthetic set of one data seed; returns the flags that make a run use it.

    test_ids: people to test on, 0 for the config's; extra: what every run is given, which may say more of the
    set; each: of a real set with several splits, that of the seed's number. ConfigError for a field that
    there is not.
    """
    from reid_jax.data.loaders import LAYOUTS

    config = cli.config_of_flags([f"--config={path}", *(x for x in extra if x.startswith("--config."))])
    if each and config.data.name in LAYOUTS:
        several = LAYOUTS[config.data.name].form(config.data.variant).num_splits > 1
        return [f"--config.data.split={seed}"] if several else []
    if not config.data.name.startswith("synthetic") or config.data.root:
        return []
    from reid_jax.data import datasets

    root = os.path.join(workdir, "data", f"seed-{seed}")
    config.data.root, config.data.synthetic.seed = root, seed
    flags = [f"--config.data.root={root}", f"--config.data.synthetic.seed={seed}"]
    if test_ids:
        config.data.synthetic.test_ids = test_ids
        flags.append(f"--config.data.synthetic.test_ids={test_ids}")
    datasets.load(config.data, workdir)
    return flags


def queries(folder, net):
    """paired.Queries of a finished run's network; None for runs of older versions and drawn galleries."""
    return paired.read(os.path.join(folder, "eval", "queries.npz"), net)


def differences(rankings):
    """{label: {figure: paired.Difference}} of {label: {seed: Queries}} to the first; {} where one is missing.

    Labels whose seeds or queries are others than the first's are left out.
    """
    base, gaps = next(iter(rankings.values())), {}
    for label, runs in list(rankings.items())[1:]:
        if base and runs.keys() == base.keys() and all((*runs.values(), *base.values())):
            with contextlib.suppress(DataError):
                gaps[label] = paired.differences([runs[s] for s in base], list(base.values()))
    return gaps


def difference_table(gaps, first):
    """Markdown of `differences`, mAP first, and a line that names what decides nothing."""
    some = next(iter(next(iter(gaps.values())).values()))
    head = [f"minus {first}", *(TITLES[k] for k in paired.FIGURES)]
    rows = [[label, *(str(gap) for gap in changes.values())] for label, changes in gaps.items()]
    seeds = f"{some.seeds} training seed{'s' * (some.seeds > 1)}"
    text = f"Differences paired by query: mean [95 % interval over {some.people} people and {seeds}].\n\n"
    return f"{text}{tables.markdown(head, rows)}\n"


def undecided(gaps):
    """A line for every label whose interval of mAP holds zero."""
    return [
        f"{label}: the interval of mAP holds zero, so the runs do not say which is better; "
        "more test people (--test_ids) and seeds narrow it"
        for label, changes in gaps.items()
        if changes["mAP"].holds_zero
    ]


def table(results, first, seeds=0):
    """Markdown of {label: {seed: figures}}; differences are to the row `first`, seed by seed.

    seeds: how many every row should have; rows with fewer say so.
    """
    every = [figures for runs in results.values() for figures in runs.values()]
    names = [k for k in TITLES if all(k in f for f in every)]  # single-shot protocols have no prop.
    head = ["", *(TITLES[k] for k in names), f"mAP minus {first}"]
    head += ["seeds", "parameters, M", "minutes a run"]
    rows = []
    for label, runs in results.items():
        values = [cell([f[k] for f in runs.values()]) for k in names]
        gain = "-" if label == first else gains(runs, results[first])
        counts = [f["parameters"] for f in runs.values() if f["parameters"]]  # old runs have none
        size = f"{np.mean(counts) / 1e6:.3g}" if counts else "-"
        minutes = cell([f["seconds"] / 60 for f in runs.values()], spread=False)
        number = f"{len(runs)} of {seeds}" if len(runs) < seeds else str(len(runs))
        rows.append([label, *values, gain, number, size, minutes])
    return tables.markdown(head, rows) + "\n"


def gains(runs, others):
    """'2.0 ± 5.7 (up in 1 of 2)': mAP against the other runs of the same seeds."""
    gaps = [runs[seed]["mAP"] - others[seed]["mAP"] for seed in runs if seed in others]
    return gain(gaps)


def write(results, workdir, seeds=0, gaps=None):
    """table.md, .csv, .json in workdir; returns the first. seeds: see `table`, gaps: see `differences`."""
    first = next(iter(results))
    text = table(results, first, seeds) + (f"\n{difference_table(gaps, first)}" if gaps else "")
    if gaps:
        intervals = {label: {k: gap._asdict() for k, gap in g.items()} for label, g in gaps.items()}
        tables.write_text(os.path.join(workdir, "differences.json"), json.dumps(intervals, indent=1) + "\n")
    tables.write_text(os.path.join(workdir, "table.md"), text)
    tables.write_text(os.path.join(workdir, "table.json"), json.dumps(results, indent=1) + "\n")
    every = [(label, seed, f) for label, runs in results.items() for seed, f in runs.items()]
    names = [k for k in TITLES if any(k in f for _, _, f in every)]
    names += ["net", "parameters", "seconds"]
    rows = [[label, seed, *(f.get(k) for k in names)] for label, seed, f in every]
    csv = tables.comma_separated(["config", "seed", *names], rows)
    tables.write_text(os.path.join(workdir, "table.csv"), csv)
    return text


def main(argv=None):
    """Entry point; returns the exit code: STOPPED when a run was stopped, after which no other is started."""
    args = arguments(sys.argv[1:] if argv is None else argv)
    if args.dry_run:
        return dry_run(args)
    try:
        if not args.show:
            train_all(args)
    except Stopped as stop:
        sys.stderr.write(f"{stop}\n")
        return STOPPED
    results = {label: finished(args, label) for label in args.runs}
    if not any(results.values()):
        raise DataError(f"{args.workdir} has no finished run of {', '.join(results)}; train without --show")
    gaps = differences(
        {
            label: {s: queries(folder_of(args, label, s), f["net"]) for s, f in runs.items()}
            for label, runs in results.items()
        }
    )
    print(write(results, args.workdir, len(args.seeds), gaps))
    for line in undecided(gaps):
        sys.stderr.write(f"{line}\n")
    return 0


def dry_run(args):
    """Tells what would be trained and what is missing; returns the exit code."""
    from reid_jax import dry

    given = [x for x in of_seed(args.extra, args.seeds[0]) if x.startswith("--config.")]
    rows = {
        label: (path, cli.config_of_flags([f"--config={path}", *given])) for label, path in args.runs.items()
    }
    needs = [need for _, config in rows.values() for need in dry.of_config(config)]
    return dry.tell(dry.trainings(rows, args.seeds, lambda *run: folder_of(args, *run)), needs)


def finished(args, label):
    """{seed: figures} of the runs that have ended."""
    folders = {s: folder_of(args, label, s) for s in args.seeds}
    return {s: result(f, args.net) for s, f in folders.items() if (Path(f) / "summary.json").exists()}


def train_all(args):
    """Trains what is not finished, args.jobs runs at a time; Stopped or the error of the first that fails."""
    path = next(iter(args.runs.values()))
    each = args.data_seed is None
    data = {s: s if each else args.data_seed for s in args.seeds}
    options = args.test_ids, args.extra, each
    made = {d: prepare_data(path, args.workdir, d, *options) for d in sorted(set(data.values()))}
    flags = {s: made[data[s]] for s in args.seeds}
    jobs = [(label, s) for s in args.seeds for label in args.runs]
    first = [run for run in jobs if run[0] == args.start]
    stopping = threading.Event()
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(jobs), unit="run") as bar:

        def job(label, seed):
            given = [*flags[seed], *start_of(args, label, seed), *of_seed(args.extra, seed)]
            train(args.runs[label], folder_of(args, label, seed), seed, given, args.jobs, stopping)

        try:
            for some in (first, [run for run in jobs if run not in first]):
                for waiting in [pool.submit(job, *run) for run in some]:
                    waiting.result()
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def of_seed(extra, seed):
    """What is given to every run, as it is for this seed."""
    return [text.replace("{seed}", str(seed)) for text in extra]


def start_of(args, label, seed):
    """Flags that make a run start from the weights of the run --start of its seed."""
    if not args.start or label == args.start:
        return []
    return [f"--config.init.run={folder_of(args, args.start, seed)}"]


def folder_of(args, label, seed):
    """The workdir of a run."""
    return os.path.join(args.workdir, labels.folder(label), f"seed-{seed}")
