"""Tests runs on other data sets, without any update (EFL's Table 5):

    python -m reid_jax.cross baseline=runs/baseline EFL=runs/efl \\
      --targets market1501:/data/Market-1501-v15.09.15 me_reid:/data/ME-ReID --workdir runs/cross

Every run embeds query and gallery of every target, WORKDIR/LABEL/TARGET.npz, and one table is written:
cross.md, cross.csv, cross.json. Features that are there already, of the same checkpoint, are used again.
"""

import argparse
import csv
import json
import os
import sys

from reid_jax.config import split_label
from reid_jax.data import datasets
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import store
from reid_jax.evaluate import markdown, write_text

FIGURES = ("rank1", "rank5", "rank10", "mAP", "mINP", "prop")


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    from reid_jax.main import prepare_jax
    from reid_jax.train import evaluate, parallel, restore

    prepare_jax()
    runs = labelled(args.runs)
    targets = [datasets.open_source(text) for text in args.targets]
    check_labels([t.label for t in targets], "target")
    for target in targets:
        if "query" not in target.splits:
            raise DataError(f"{target.root} has no query and gallery; a target is NAME:FOLDER")
    runner = parallel.Runner(args.backend)
    results = {}
    for label, workdir in runs.items():
        run = restore.run(workdir, runner, args.checkpoint)
        if args.batch:
            run.config.eval.batch_size = args.batch
        row = results[label] = {
            "run": workdir,
            "source": run.config.data.name,
            "step": run.step,
            "targets": {},
        }
        for target in targets:
            features = embedded(run, target, os.path.join(args.workdir, label), args, workdir)
            protocol = evaluate.choose_protocol(run.config, target.protocol)
            figures = evaluate.score(run.config, features, protocol).figures
            row["targets"][target.label] = {k: figures[k] for k in FIGURES if k in figures}
    print(write(results, [t.label for t in targets], args.workdir))
    return 0


def parse(argv):
    """Command line -> namespace."""
    from reid_jax.embed import add_run_flags

    parser = argparse.ArgumentParser(
        "python -m reid_jax.cross", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN", help="workdirs of runs")
    parser.add_argument("--targets", nargs="+", required=True, metavar="[LABEL=]NAME:FOLDER")
    parser.add_argument("--workdir", required=True, help="folder for the features and the table")
    add_run_flags(parser)
    return parser.parse_args(argv)


def labelled(texts):
    """['EFL=runs/efl', 'runs/b'] -> {'EFL': 'runs/efl', 'b': 'runs/b'}."""
    pairs = [split_label(t) for t in texts]
    pairs = [(label or os.path.basename(os.path.abspath(run)), run) for label, run in pairs]
    check_labels([label for label, _ in pairs], "run")
    return dict(pairs)


def check_labels(labels, kind):
    """Labels name files and rows: they must differ and be plain names."""
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two {kind}s are called {label!r}; give them labels, as in LABEL=...")
        if os.path.basename(label) != label or label in ("", ".", ".."):
            raise ConfigError(f"{label!r} cannot be a {kind}'s label: it names a file")


def embedded(run, target, folder, args, workdir):
    """FeatureSet of a target, from WORKDIR/LABEL/TARGET.npz if that is of this checkpoint."""
    path = os.path.join(folder, f"{target.label}.npz")
    origin = {"run": os.path.abspath(workdir), "step": run.step, "net": args.net}
    origin |= {"root": os.path.abspath(target.root), "images": sum(map(len, target.splits.values()))}
    note = path[:-4] + ".json"
    if os.path.exists(path) and read_note(note) == origin:
        return store.load(path)
    sys.stderr.write(f"{os.path.basename(folder)} on {target.label}\n")
    features = run.features(target.splits, target.root, args.net, progress=True)
    store.save(path, features)
    write_text(note, json.dumps(origin))
    return features


def read_note(path):
    """What was written beside stored features, None when nothing readable was."""
    try:
        with open(path) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def write(results, targets, workdir):
    """cross.md, cross.csv and cross.json in workdir; returns the Markdown."""
    head = ["", "trained on", *(f"{t} rank-1 / mAP" for t in targets)]
    rows = []
    for label, row in results.items():
        cells = [f"{f['rank1']:.1f} / {f['mAP']:.1f}" for f in (row["targets"][t] for t in targets)]
        rows.append([label, row["source"], *cells])
    text = markdown(head, rows) + "\n"
    write_text(os.path.join(workdir, "cross.md"), text)
    write_text(os.path.join(workdir, "cross.json"), json.dumps(results, indent=1) + "\n")
    with open(os.path.join(workdir, "cross.csv"), "w", newline="") as f:
        lines = csv.writer(f)
        lines.writerow(["label", "run", "source", "step", "target", *FIGURES])
        for label, row in results.items():
            for target, figures in row["targets"].items():
                values = [round(figures[k], 4) if k in figures else "" for k in FIGURES]
                lines.writerow([label, row["run"], row["source"], row["step"], target, *values])
    return text


if __name__ == "__main__":
    from reid_jax.embed import run_main

    run_main(main)
