"""Tests runs on other data sets, without any update.

    python -m reid_jax cross A=runs/a B=runs/b \\
      --targets market1501:/data/Market-1501-v15.09.15 me_reid:/data/ME-ReID --workdir runs/cross

Every run embeds query and gallery of every target, WORKDIR/LABEL/TARGET.npz, and one table is written:
cross.md, cross.csv, cross.json. Features that are there already, of the same checkpoint, are used again.
"""

import json
import os

from reid_jax import cli, hardware, places, tables
from reid_jax.config import split_label
from reid_jax.data import datasets, testable
from reid_jax.errors import DataError
from reid_jax.fields import namespace
from reid_jax.trained import labels
from reid_jax.trained.features import embedded

FIGURES = ("rank1", "rank5", "rank10", "mAP", "mINP", "prop")


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    if args.dry_run:
        return dry_run(args)
    cli.prepare_jax()
    hardware.start()
    from reid_jax.train import restore, stages

    runs = labelled(args.runs)
    targets = [datasets.open_source(text, on_broken=args.on_broken) for text in args.targets]
    labels.check([t.label for t in targets], "target")
    for target in targets:
        if "query" not in target.splits:
            raise DataError(f"{target.root} has no query and gallery; a target is NAME:FOLDER")
    for workdir in runs.values():
        check_people(namespace(stages.of_run(workdir)), targets)
    results = {}
    for label, workdir in runs.items():
        run = restore.run(workdir, which=args.checkpoint, batch=args.batch)
        origin = {"run": workdir, "source": run.config.data.name, "step": run.step}
        results[label] = origin | {"targets": tested(run, workdir, label, targets, args)}
    print(write(results, [t.label for t in targets], args.workdir))
    return 0


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("cross", __doc__)
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN", help="workdirs of runs")
    parser.add_argument("--targets", nargs="+", required=True, metavar="[LABEL=]NAME:FOLDER")
    workdir = places.argument("--workdir", places.written)
    parser.add_argument(
        "--workdir", required=True, type=workdir, help="folder for the features and the table"
    )
    cli.add_run_flags(parser)
    cli.add_dry_flag(parser)
    return parser.parse_args(argv)


def dry_run(args):
    """Tells what would be tested and what is missing; returns the exit code."""
    from reid_jax import dry

    runs, count = labelled(args.runs), len(args.targets)
    would = [
        f"test {len(runs)} runs on {count} set{'s' * (count > 1)}, features and cross.md into {args.workdir}"
    ]
    return dry.tell(would, [*map(dry.of_run, runs.values()), *map(dry.of_source, args.targets)])


def check_people(config, targets):
    """DataError for a target on which nothing can be tested as the config of a run says."""
    from reid_jax.train import evaluate

    for target in targets:
        protocol = evaluate.choose_protocol(config, target.protocol)
        reason = testable.impossible(*(target.splits[s] for s in ("query", "gallery")), protocol)
        if reason:
            raise DataError(f"target {target.label}: {reason}; or leave it out")


def tested(run, workdir, label, targets, args):
    """{target: {figure: percent}} of a run, by the protocol of its config or each target's customary one."""
    from reid_jax.train import evaluate

    figures = {}
    for target in targets:
        features = embedded(run, target, os.path.join(args.workdir, label), args, workdir)
        protocol = evaluate.choose_protocol(run.config, target.protocol)
        scores = evaluate.score(run.config, features, protocol).figures
        figures[target.label] = {k: scores[k] for k in FIGURES if k in scores}
    return figures


def labelled(texts):
    """['A=runs/a', 'runs/b'] -> {'A': 'runs/a', 'b': 'runs/b'}."""
    pairs = [split_label(t) for t in texts]
    pairs = [(label, places.local(run, "a run")) for label, run in pairs]
    pairs = [(label or os.path.basename(os.path.abspath(run)), run) for label, run in pairs]
    labels.check([label for label, _ in pairs], "run")
    return dict(pairs)


def write(results, targets, workdir):
    """cross.md, cross.csv and cross.json in workdir; returns the Markdown."""
    head = ["", "trained on", *(f"{t} rank-1 / mAP" for t in targets)]
    rows = []
    for label, row in results.items():
        cells = [f"{f['rank1']:.1f} / {f['mAP']:.1f}" for f in (row["targets"][t] for t in targets)]
        rows.append([label, row["source"], *cells])
    text = tables.markdown(head, rows) + "\n"
    tables.write_text(os.path.join(workdir, "cross.md"), text)
    tables.write_text(os.path.join(workdir, "cross.json"), json.dumps(results, indent=1) + "\n")
    tables.write_text(os.path.join(workdir, "cross.csv"), comma_separated(results))
    return text


def comma_separated(results):
    """CSV text, a line for each run and target."""
    lines = []
    for label, row in results.items():
        for target, figures in row["targets"].items():
            values = [round(figures[k], 4) if k in figures else "" for k in FIGURES]
            lines.append([label, row["run"], row["source"], row["step"], target, *values])
    return tables.comma_separated(["label", "run", "source", "step", "target", *FIGURES], lines)
