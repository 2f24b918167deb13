"""The table of several configs on the same rows: what each gives on every target, and against the first."""

import json
import os

import numpy as np

from reid_jax import tables
from reid_jax.dg import results
from reid_jax.trained.figures import cell, gain

FIGURES = ("rank1", "mAP")
NOTE = (
    "A set's column: rank-1 / mAP, percent, where it is left out, mean of seeds and splits; (seeds ±) is the "
    "sample deviation of the seeds' means. Differences are between the same seeds. At home: on the test "
    "pictures of the first source. The last checkpoint is tested; nothing is chosen on a target."
)


def markdown(rows, done, title, paths):
    """The table; done: {label: {row: {seed: what results.tested gives}}}, paths: {label: config}.

    Means over targets are of the seeds that all rows of a config have; differences to the first config are
    paired by seed.
    """
    targets = targets_of(rows)
    first = next(iter(done))
    head = ["", *(label for _, label in targets), "mean rank-1", "mean mAP", f"mean mAP minus {first}"]
    body = [line(targets, label, done, first) for label in done]
    table = tables.markdown([*head, "at home mAP", "minutes a run"], body)
    seeds = {label: sorted(set().union(*map(set, of.values()))) for label, of in done.items()}
    made_of = [f"- {label}: {path}, seeds {seeds[label]}" for label, path in paths.items()]
    return "\n".join([title, "", table, "", *made_of, "", NOTE]) + "\n"


def targets_of(rows):
    """[(Row, label of a target)]"""
    return [(row, d.label) for row in rows for d in row.targets]


def line(targets, label, done, first):
    """Cells of one config; '-' where nothing is trained."""
    of = done[label]
    cells = [
        " / ".join(average(of[row.name], target, k) for k in FIGURES) if row.name in of else "-"
        for row, target in targets
    ]
    means, (theirs,) = means_of(of, targets, FIGURES), means_of(done[first], targets, ["mAP"]).values()
    gaps = [means["mAP"][s][0] - theirs[s][0] for s in means["mAP"] if s in theirs]
    runs = [run for seeds in of.values() for run in seeds.values()]
    home = [run["own"]["mAP"] for run in runs if "mAP" in run["own"]]
    return [
        *(label, *cells, *(results.cell(means[k]) if means[k] else "-" for k in FIGURES)),
        "-" if label == first else gain(gaps),
        f"{np.mean(home):.1f}" if home else "-",
        cell([run["seconds"] / 60 for run in runs], spread=False),
    ]


def means_of(of, targets, names):
    """{figure: {seed: [mean over the targets]}}, of nothing where a config lacks one of them."""
    whole = all(row.name in of for row, _ in targets)
    return {k: results.mean_of(of, k) if whole else {} for k in names}


def average(runs, target, name):
    """'44.1': of a figure on a target, mean over seeds and splits."""
    return f"{np.mean([np.mean(v) for v in results.figures_of(runs, target, name).values()]):.1f}"


def write(rows, done, title, paths, workdir):
    """dg.md, dg.csv and dg.json in workdir; returns the Markdown. Arguments as of `markdown`."""
    text = markdown(rows, done, title, paths)
    tables.write_text(os.path.join(workdir, "dg.md"), text)
    names = [k for k in results.TITLES if all(k in results.names_of(of) for of in done.values())]
    body = [
        [label, row, seed, target, split, *(round(f[k], 4) for k in names)]
        for label, of in done.items()
        for row, seed, target, split, f in results.lines_of(of)
    ]
    head = ["config", "row", "seed", "target", "split", *names]
    tables.write_text(os.path.join(workdir, "dg.csv"), tables.comma_separated(head, body))
    means = {
        label: {"config": paths[label], "mean": means_of(of, targets_of(rows), names)}
        for label, of in done.items()
    }
    tables.write_text(os.path.join(workdir, "dg.json"), json.dumps(means, indent=1) + "\n")
    return text
