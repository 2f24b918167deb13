"""Domain generalisation: trains on some sets, tests on others of which nothing was seen, writes one table.

    python -m reid_jax dg --protocol 2 --config configs/METHOD.py:VARIANT --root /data --workdir runs/dg
    python -m reid_jax dg --protocol synthetic --config configs/METHOD.py:synthetic --workdir runs/dg \\
      --seeds 0 1 2

Protocols: 1 (five sources with all their pictures, tested on VIPeR, PRID, GRID, iLIDS, ten splits each), 2
and 3 (Market-1501, MSMT17, CUHK03, CUHK-SYSU: one left out; training parts, all pictures), four and four-np
(the same of Market-1501, DukeMTMC-reID, CUHK03, MSMT17), single (one source), synthetic (drawn sets, one left
out). Own ones: --domains A B C (each left out once), or --sources A B --targets C D. Sets are found by name
below --root; what is missing is told before anything trains.

Every row is an ordinary run in WORKDIR/ROW/seed-N: the same command goes on where it stopped, and repeats
nothing that is finished. Writes dg.md, dg.csv and dg.json of the rows that are done.
"""

import ast
import functools
import json
import os
import sys
import threading
from pathlib import Path

from reid_jax import cli, dry, hardware, places, tables
from reid_jax.dg import protocols, results, sets
from reid_jax.errors import STOPPED, ConfigError
from reid_jax.trained.features import read_note
from reid_jax.trained.process import Stopped, train


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("dg", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--protocol", choices=list(protocols.PROTOCOLS))
    which.add_argument("--domains", nargs="+", metavar="NAME[/VARIANT]", help="each of them left out once")
    which.add_argument("--sources", nargs="+", metavar="NAME[/VARIANT]", help="of one row")
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME[/VARIANT]", help="with --sources")
    parser.add_argument("--all_images", "--all-images", action="store_true", help="own rows: all train")
    parser.add_argument("--config", required=True, metavar="CONFIG[:VARIANT]", help="of every run")
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


def config_of(args):
    """The config of all runs; ConfigError for a field of --set that there is not, or another type."""
    config = cli.load_config(args.config)
    for text in args.set:
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


def check_same(args):
    """ConfigError where WORKDIR holds the runs of another command; else notes this one there."""
    fields = ("protocol", "domains", "sources", "targets", "all_images", "config", "set", "without")
    asked = {k: getattr(args, k) for k in (*fields, "split_seed", "both_directions")}
    path = os.path.join(args.workdir, "dg-asked.json")
    before = read_note(path)
    if before is not None and before != json.loads(json.dumps(asked)):
        other = next(k for k in asked if before.get(k) != json.loads(json.dumps(asked[k])))
        raise ConfigError(
            f"{args.workdir} holds runs of another command: --{other} was {before.get(other)!r}; choose "
            "another --workdir"
        )
    os.makedirs(args.workdir, exist_ok=True)
    tables.write_text(path, json.dumps(asked, indent=1) + "\n")
    return asked


def main(argv=None):
    """Entry point; returns the exit code: STOPPED when a run was stopped and has saved."""
    args = parse(sys.argv[1:] if argv is None else argv)
    rows, config = rows_of(args), config_of(args)
    sets.check_names(rows)
    drawn = os.path.join(args.workdir, "data")
    where = sets.Where(args.root, args.at, config.data, drawn, args.split_seed)
    wanted = [row for row in rows if not args.rows or row.name in args.rows]
    counted = sets.survey(wanted, where, args.both_directions, args.seeds[0], targets=args.only != "train")
    print(sets.listing(counted))
    if args.dry_run:
        return dry_run(args, config, wanted, counted)
    sets.check_there(counted)
    asked = check_same(args)
    if args.only != "test":
        try:
            train_all(wanted, where, args)
        except Stopped as stop:
            sys.stderr.write(f"{stop}\n")
            return STOPPED
    if args.only != "train":
        print(test_all(rows, where, args, asked))
    return 0


def dry_run(args, config, rows, counted):
    """Tells what would be trained and what is missing, beside the listing; returns the exit code."""
    would = dry.trainings(
        {row.name: (args.config, config) for row in rows},
        args.seeds,
        lambda name, seed: os.path.join(args.workdir, name, f"seed-{seed}"),
    )
    sets_needed = [
        dry.with_source(dry.Need(f"set {c.domain.label}", c.text, c.missing), c.domain.name) for c in counted
    ]
    return dry.tell(would, [*(need for need in sets_needed if need.missing), *dry.of_start(config)])


def folder_of(args, row, seed):
    """The workdir of a run."""
    return os.path.join(args.workdir, row.name, f"seed-{seed}")


def train_all(rows, where, args):
    """Trains what is not finished, run by run."""
    for seed in args.seeds:
        for row in rows:
            folder = folder_of(args, row, seed)
            if not (Path(folder) / "summary.json").exists():
                sys.stderr.write(f"training {row.name}, seed {seed}\n")
                flags = [*sets.flags(row, where, seed), *(f"--config.{text}" for text in args.set)]
                train(args.config, folder, seed, flags, 1, threading.Event())


def test_all(rows, where, args, asked):
    """The Markdown of all rows that are trained; those of --rows and --seeds have to be."""
    cli.prepare_jax()
    hardware.start()
    done = {}
    for row in rows:
        for folder in sorted(Path(args.workdir, row.name).glob("seed-*")):
            if (folder / "summary.json").exists():
                seed = int(folder.name.rpartition("-")[2])
                done.setdefault(row.name, {})[seed] = results.tested(row, str(folder), where, seed, args)
    lacking = [(r.name, s) for r in rows for s in args.seeds if s not in done.get(r.name, ())]
    lacking = [f"{name} seed {seed}" for name, seed in lacking if not args.rows or name in args.rows]
    if lacking:
        raise ConfigError(f"nothing is trained of {', '.join(lacking)}: run the command without --only test")
    counted = sets.survey([r for r in rows if r.name in done], where, targets=False, seed=args.seeds[0])
    title = f"Domain generalisation, {title_of(args)}: {args.config}"
    return results.write(rows, done, title, counted, asked, args.workdir)


def title_of(args):
    """The protocol in words."""
    if args.protocol == "synthetic":
        return "synthetic domains, one left out"
    return f"protocol {args.protocol}" if args.protocol else "one left out" if args.domains else "own sets"


if __name__ == "__main__":
    cli.run(main)
