"""Domain generalisation: trains on some sets, tests on others of which nothing was seen, writes one table.

    python -m reid_jax dg --protocol 2 --config configs/METHOD.py:VARIANT --root /data --workdir runs/dg
    python -m reid_jax dg --protocol synthetic --workdir runs/dg --seeds 0 1 2 \\
      --config A=configs/METHOD.py:synthetic B=configs/OTHER.py:synthetic

Protocols: 1 (five sources with all their pictures, tested on VIPeR, PRID, GRID, iLIDS, ten splits each), 2
and 3 (Market-1501, MSMT17, CUHK03, CUHK-SYSU: one left out; training parts, all pictures), four and four-np
(the same of Market-1501, DukeMTMC-reID, CUHK03, MSMT17), single (one source), synthetic (drawn sets, one left
out). Own ones: --domains A B C (each left out once), or --sources A B --targets C D. Sets are found by name
below --root; what is missing is told before anything trains.

Every row is an ordinary run in WORKDIR/ROW/seed-N: the same command goes on where it stopped, and repeats
nothing that is finished. Writes dg.md, dg.csv and dg.json of the rows that are done. Several configs with
labels (LABEL=CONFIG, or @FILE with one a line) have these in WORKDIR/LABEL, and WORKDIR/dg.md compares them.
"""

import ast
import functools
import itertools
import json
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from reid_jax import cli, dry, hardware, places, tables
from reid_jax.dg import compared, protocols, results, sets
from reid_jax.errors import STOPPED, ConfigError
from reid_jax.trained import labels
from reid_jax.trained.features import read_note
from reid_jax.trained.figures import DG_NOTE
from reid_jax.trained.process import Stopped, train

TAKEN = ("data", DG_NOTE, "dg.md", "dg.csv", "dg.json")  # in the workdir, beside the configs


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("dg", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--protocol", choices=list(protocols.PROTOCOLS))
    which.add_argument("--domains", nargs="+", metavar="NAME[/VARIANT]", help="each of them left out once")
    which.add_argument("--sources", nargs="+", metavar="NAME[/VARIANT]", help="of one row")
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME[/VARIANT]", help="with --sources")
    parser.add_argument("--all_images", "--all-images", action="store_true", help="own rows: all train")
    text = "of every run; several as LABEL=CONFIG or @FILE (one a line) make a table of methods"
    parser.add_argument("--config", required=True, nargs="+", metavar="CONFIG[:VARIANT]", help=text)
    parser.add_argument("--root", default="", help="folder that holds the data sets")
    parser.add_argument("--at", nargs="+", default=[], metavar="NAME=FOLDER", help="sets that lie elsewhere")
    workdir = places.argument("--workdir", places.written)
    parser.add_argument("--workdir", required=True, type=workdir, help="folder for all runs and the table")
    parser.add_argument("--rows", nargs="+", default=[], help="train and test these alone (default: all)")
    parser.add_argument("--seeds", nargs="+", type=cli.whole(0), default=[0], help="of the runs (default 0)")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="as in loss.margin=0.2")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="sets to leave out")
    parser.add_argument("--split_seed", "--split-seed", type=cli.whole(0), default=0, help="of drawn splits")
    parser.add_argument(
        "--both_directions", "--both-directions", action="store_true", help="20 splits of VIPeR"
    )
    parser.add_argument("--only", choices=("train", "test"), help="train (targets are not touched) or test")
    cli.add_dry_flag(parser)
    parser.add_argument("--net", default="auto", help="network to test (default: the config's)")
    parser.add_argument("--batch", type=cli.whole(0), default=0, help="images at a time (default: the run's)")
    parser.add_argument("--on_broken", "--on-broken", choices=("stop", "skip"), default="stop")
    args = parser.parse_args(argv)
    if bool(args.sources) != bool(args.targets):
        raise ConfigError("--sources and --targets belong together: name what trains and what is tested")
    single = len(args.config) == 1 and "=" not in args.config[0] and not args.config[0].startswith("@")
    args.config = {"": args.config[0]} if single else labels.configs(args.config, TAKEN)
    args.at = dict(pair(text, "--at", "NAME=FOLDER") for text in args.at)
    for text in args.set:
        pair(text, "--set", "FIELD=VALUE")
    return args


def pair(text, flag, form):
    """'a=b' -> ('a', 'b')."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise ConfigError(f"{flag} {text!r} is not {form}")
    return name, value


class Job(NamedTuple):
    """A config with all rows."""

    label: str  # "" of the only one
    path: str
    config: object
    folder: str  # of its runs and its own table
    where: sets.Where


def jobs_of(args):
    """The Jobs, which share the drawn sets."""
    drawn, jobs = os.path.join(args.workdir, "data"), []
    for label, path in args.config.items():
        config, folder = config_of(path, args.set), os.path.join(args.workdir, labels.folder(label))
        where = sets.Where(args.root, args.at, config.data, drawn, args.split_seed)
        jobs.append(Job(label, path, config, folder, where))
    return jobs


def config_of(path, given):
    """The config of runs; ConfigError for a field of --set (texts) that there is not, or another type."""
    config = cli.load_config(path)
    for text in given:
        field, value = pair(text, "--set", "FIELD=VALUE")
        *path, last = field.split(".")
        try:
            node = functools.reduce(lambda tree, key: tree[key], path, config)
            node[last] = value if isinstance(node[last], str) else ast.literal_eval(value)
        except (KeyError, AttributeError) as e:
            raise ConfigError(f"--set {text}: there is no field config.{field}") from e
        except (TypeError, ValueError, SyntaxError) as e:
            raise ConfigError(f"--set {text}: {value!r} is no value for config.{field}: {e}") from e
    return config


def rows_of(args):
    """The Rows that the arguments ask for, all of them."""
    share = "all" if args.all_images else "train"
    if args.protocol:
        rows = protocols.PROTOCOLS[args.protocol]
    elif args.domains:
        domains = tuple(map(protocols.Domain.of, args.domains))
        rows = protocols.leave_one_out(domains, domains, share)
    else:
        sources, targets = (tuple(map(protocols.Domain.of, t)) for t in (args.sources, args.targets))
        rows = [protocols.Row("+".join(d.name for d in sources), sources, targets, share)]
    rows = protocols.without(rows, args.without) if args.without else rows
    if unknown := sorted(set(args.rows) - {row.name for row in rows}):
        raise ConfigError(f"--rows {unknown[0]}: there are {', '.join(row.name for row in rows)}")
    return rows


def check_drawn(rows, jobs):
    """ConfigError for configs that draw other synthetic sets than the first, and so cannot share them."""
    if not any(sets.is_synthetic(d.name) for row in rows for d in row.targets):
        return
    first = jobs[0].config.data.synthetic.to_dict()
    for job in jobs[1:]:
        theirs = job.config.data.synthetic
        other = [k for k in first if k not in ("seed", "style") and theirs[k] != first[k]]  # these it sets
        if other:
            field, values = f"data.synthetic.{other[0]}", f"{first[other[0]]} and {theirs[other[0]]}"
            raise ConfigError(
                f"{jobs[0].label} and {job.label} draw other sets: {field} is {values}; --set {field}=... "
                "makes them alike"
            )


def check_same(args, job):
    """ConfigError where the Job's folder holds the runs of another command; else notes this one there."""
    fields = ("protocol", "domains", "sources", "targets", "all_images", "set", "without")
    asked = {k: getattr(args, k) for k in (*fields, "split_seed", "both_directions")} | {"config": job.path}
    before = read_note(os.path.join(job.folder, DG_NOTE))
    if before is not None and before != json.loads(json.dumps(asked)):
        other = next(k for k in asked if before.get(k) != json.loads(json.dumps(asked[k])))
        raise ConfigError(
            f"{job.folder} holds runs of another command: --{other} was {before.get(other)!r}; choose "
            "another --workdir"
        )
    if job.label and os.path.exists(os.path.join(args.workdir, DG_NOTE)):
        raise ConfigError(
            f"{args.workdir} holds runs of one config without a label; choose another --workdir"
        )
    os.makedirs(job.folder, exist_ok=True)
    tables.write_text(os.path.join(job.folder, DG_NOTE), json.dumps(asked, indent=1) + "\n")
    return asked


def main(argv=None):
    """Entry point; returns the exit code: STOPPED when a run was stopped and has saved."""
    args = parse(sys.argv[1:] if argv is None else argv)
    rows, jobs = rows_of(args), jobs_of(args)
    sets.check_names(rows)
    check_drawn(rows, jobs)
    wanted = [row for row in rows if not args.rows or row.name in args.rows]
    where, looked = jobs[0].where, args.only != "train"
    counted = sets.survey(wanted, where, args.both_directions, args.seeds[0], targets=looked)
    print(sets.listing(counted))
    if args.dry_run:
        return dry_run(args, jobs, wanted, counted)
    sets.check_there(counted)
    asked = [check_same(args, job) for job in jobs]
    if args.only != "test":
        try:
            train_all(wanted, jobs, args)
        except Stopped as stop:
            sys.stderr.write(f"{stop}\n")
            return STOPPED
    if args.only != "train":
        print(test_all(rows, jobs, args, asked))
    return 0


def dry_run(args, jobs, rows, counted):
    """Tells what would be trained and what is missing, beside the listing; returns the exit code."""
    runs = {os.path.join(job.label, row.name): (job, row) for job in jobs for row in rows}
    would = dry.trainings(
        {name: (job.path, job.config) for name, (job, _) in runs.items()},
        args.seeds,
        lambda name, seed: folder_of(*runs[name], seed),
    )
    sets_needed = [
        dry.with_source(dry.Need(f"set {c.domain.label}", c.text, c.missing), c.domain.name) for c in counted
    ]
    starts = [need for job in jobs for need in dry.of_start(job.config)]
    return dry.tell(would, [*(need for need in sets_needed if need.missing), *starts])


def folder_of(job, row, seed):
    """The workdir of a run."""
    return os.path.join(job.folder, row.name, f"seed-{seed}")


def train_all(rows, jobs, args):
    """Trains what is not finished, run by run, the first seed of all before the second."""
    for seed, job, row in itertools.product(args.seeds, jobs, rows):
        folder = folder_of(job, row, seed)
        if not (Path(folder) / "summary.json").exists():
            name = f"{job.label}, {row.name}" if job.label else row.name
            sys.stderr.write(f"training {name}, seed {seed}\n")
            flags = [*sets.flags(row, job.where, seed), *(f"--config.{text}" for text in args.set)]
            train(job.path, folder, seed, flags, 1, threading.Event())


def test_all(rows, jobs, args, asked):
    """The Markdown of all rows that are trained, of several jobs a comparison."""
    cli.prepare_jax()
    hardware.start()
    done, text = {}, ""
    for job, about in zip(jobs, asked, strict=True):
        done[job.label] = results_of(rows, job, args)
        there = [r for r in rows if r.name in done[job.label]]
        counted = sets.survey(there, job.where, targets=False, seed=args.seeds[0])
        title = f"Domain generalisation, {title_of(args)}: {job.path}"
        text = results.write(rows, done[job.label], title, counted, about, job.folder)
    if jobs[0].label:
        title = f"Domain generalisation, {title_of(args)}"
        return compared.write(rows, done, title, {job.label: job.path for job in jobs}, args.workdir)
    return text


def results_of(rows, job, args):
    """{row: {seed: what `results.tested` gives}} of a Job; those of --rows and --seeds have to be trained."""
    done = {}
    for row in rows:
        for folder in sorted(Path(job.folder, row.name).glob("seed-*")):
            if (folder / "summary.json").exists():
                seed = int(folder.name.rpartition("-")[2])
                done.setdefault(row.name, {})[seed] = results.tested(row, str(folder), job.where, seed, args)
    lacking = [(r.name, s) for r in rows for s in args.seeds if s not in done.get(r.name, ())]
    lacking = [f"{name} seed {seed}" for name, seed in lacking if not args.rows or name in args.rows]
    if lacking:
        of = f"{job.label}: " if job.label else ""
        raise ConfigError(
            f"nothing is trained of {of}{', '.join(lacking)}: run the command without --only test"
        )
    return done


def title_of(args):
    """The protocol in words."""
    if args.protocol == "synthetic":
        return "synthetic domains, one left out"
    return f"protocol {args.protocol}" if args.protocol else "one left out" if args.domains else "own sets"


if __name__ == "__main__":
    cli.run(main)
