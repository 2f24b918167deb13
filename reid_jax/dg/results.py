"""Tests of trained rows on their targets, split by split, and the table of them."""

import json
import os
from types import SimpleNamespace

import numpy as np

from reid_jax import tables
from reid_jax.data.datasets import Source
from reid_jax.dg import protocols, sets
from reid_jax.eval.store import FeatureSet
from reid_jax.fields import plain
from reid_jax.trained.features import embedded

TITLES = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}


# ---- figures
def tested(row, folder, where, seed, options):
    """{"step", "seconds", "own", "settings", "targets": {label: {split: figures}}} of the run of a Row.

    folder: the run's. Each target is embedded once, whatever the number of its splits; features of this
    checkpoint that lie there already are used again. options: .net, .batch, .on_broken, .both_directions.
    """
    from reid_jax.train import restore

    run = restore.run(folder, batch=options.batch)
    figures = {}
    for domain in row.targets:
        numbers = protocols.splits_of(domain, options.both_directions)
        datasets = {n: sets.target(domain, where, n, seed) for n in numbers}
        figures[domain.label] = scored(run, domain, datasets, folder, options)
    made = {"step": run.step, "seconds": seconds_of(folder), "own": own_test(folder)}
    return {**made, "settings": plain(run.config), "targets": figures}


def scored(run, domain, datasets, folder, options):
    """{split: figures} of a target; datasets: {split: Dataset}."""
    from reid_jax.train import evaluate

    first = next(iter(datasets.values()))
    records = {r.path: r for d in datasets.values() for r in (*d.query, *d.gallery)}
    pictures = Source(domain.label, first.root, {"images": tuple(records.values())}, name=first.name)
    asked = SimpleNamespace(net=options.net, on_broken=options.on_broken)
    features = embedded(run, pictures, os.path.join(folder, "targets"), asked, folder)
    row_of = {path: i for i, path in enumerate(features.path)}
    figures = {}
    for number, dataset in datasets.items():
        protocol = evaluate.choose_protocol(run.config, protocol_of(dataset))
        scores = evaluate.score(run.config, of_split(features, row_of, dataset), protocol).figures
        figures[number] = {k: scores[k] for k in TITLES if k in scores} | {"drawn": dataset.drawn}
    return figures


def protocol_of(dataset):
    """The set's own, but where everybody has one gallery picture, and there is nothing to draw, all pairs."""
    people = [r.pid for r in dataset.gallery if r.pid > 0]
    single = dataset.protocol == "single-gallery" and len(set(people)) == len(people)
    return "all-pairs" if single else dataset.protocol


def of_split(features, row_of, dataset):
    """FeatureSet of query and gallery of a Dataset out of those of all; what has none is left out."""
    parts = {"query": dataset.query, "gallery": dataset.gallery}
    entries = [(s, os.path.relpath(r.path, dataset.root), r) for s, records in parts.items() for r in records]
    entries = [(split, path, r) for split, path, r in entries if path in row_of]
    return FeatureSet(
        feature=features.feature[[row_of[path] for _, path, _ in entries]],
        pid=np.array([r.pid for _, _, r in entries], np.int64),
        camid=np.array([r.camid for _, _, r in entries], np.int32),
        path=np.array([path for _, path, _ in entries]),
        split=np.array([split for split, _, _ in entries]),
    )


def own_test(folder):
    """{figure: percent} of a run on the test pictures of its first source; {} where these trained."""
    with open(os.path.join(folder, "eval", "final.json")) as f:
        final = json.load(f)
    figures = final["nets"].get(final.get("net"), {})
    return {k: figures[k] for k in TITLES if k in figures}


def seconds_of(folder):
    """How long a finished run trained."""
    with open(os.path.join(folder, "summary.json")) as f:
        return json.load(f)["seconds"]


# ---- the table
def cell(by_seed):
    """'58.1 ± 2.9 (seeds ± 0.4)' of a figure, {seed: [a value for each split]}.

    Mean over seeds and splits; population deviation over splits (mean over seeds), sample deviation of the
    seeds' means.
    """
    means = [np.mean(values) for values in by_seed.values()]
    text = f"{np.mean(means):.1f}"
    if any(len(values) > 1 for values in by_seed.values()):
        text += f" ± {np.mean([np.std(values) for values in by_seed.values()]):.1f}"
    if len(means) > 1:
        text += f" (seeds ± {np.std(means, ddof=1):.1f})"
    return text


def figures_of(runs, target, name):
    """{seed: [value of each split]} of a figure on a target; runs: {seed: what `tested` gives}."""
    return {s: [f[name] for f in run["targets"][target].values()] for s, run in runs.items()}


def mean_of(results, name):
    """{seed: [mean over all rows and targets]} of a figure, of the seeds that all rows have."""
    means = {}
    for seed in sorted(set.intersection(*(set(runs) for runs in results.values()))):
        values = [
            np.mean([f[name] for f in splits.values()])
            for runs in results.values()
            for splits in runs[seed]["targets"].values()
        ]
        means[seed] = [float(np.mean(values))]
    return means


def names_of(results):
    """The figures that all tests have."""
    tests = [f for _, _, _, _, f in lines_of(results)]
    return [k for k in TITLES if all(k in f for f in tests)]


def lines_of(results):
    """(row, seed, target, split, figures) of every test."""
    for row, runs in results.items():
        for seed, run in runs.items():
            for target, splits in run["targets"].items():
                for split, figures in splits.items():
                    yield row, seed, target, split, figures


def markdown(rows, results, title, counted):
    """The table, its sources and what its figures are."""
    names, body = names_of(results), []
    rows = [row for row in rows if row.name in results]
    for row in rows:
        runs = results[row.name]
        for target in (d.label for d in row.targets):
            figures = [cell(figures_of(runs, target, name)) for name in names]
            body.append([row.trained_on, target, *figures, at_home(runs)])
    means = [mean_of(results, name) for name in names]
    if len(body) > 1 and all(means):
        body.append(["mean", "", *map(cell, means), ""])
    head = ["trained on", "tested on", *(TITLES[n] for n in names), "at home: rank-1 / mAP"]
    return "\n".join([title, "", tables.markdown(head, body), "", *footnotes(rows, results, counted)]) + "\n"


def at_home(runs):
    """'80.1 / 60.3': on the test pictures of the first source; '-' where these trained."""
    home = [run["own"] for run in runs.values()]
    if not all("rank1" in o for o in home):
        return "-"
    return " / ".join(f"{np.mean([o[k] for o in home]):.1f}" for k in ("rank1", "mAP"))


def footnotes(rows, results, counted):
    """Lines below the table."""
    lines = ["Sources:", ""]
    for row in rows:
        sources = [c for c in counted if c.row == row.name and c.use == "source"]
        total = sets.in_words(*map(sum, zip(*(c.numbers for c in sources), strict=True)))
        lines.append(f"- {row.trained_on}: {', '.join(map(counts, sources))}; together {total}")
    seeds = {row: sorted(runs) for row, runs in results.items()}
    lines += ["", f"Seeds: {'; '.join(f'{row} {s}' for row, s in seeds.items())}."]
    return [
        *lines,
        "Percent. ± is the deviation over the splits of a target, (seeds ±) that of the seeds' means. The "
        "last checkpoint is tested; nothing is chosen on a target. At home: on the test pictures of the "
        "first source, of people who did not train.",
    ]


def counts(c):
    """'market1501 751 / 12936', and what is published where that differs."""
    text = f"{c.domain.label} {' / '.join(map(str, c.numbers))}"
    return f"{text} ({c.differs})" if c.differs else text


def write(rows, results, title, counted, about, workdir):
    """dg.md, dg.csv and dg.json in workdir; returns the Markdown. about: what dg.json says of the command."""
    text = markdown(rows, results, title, counted)
    tables.write_text(os.path.join(workdir, "dg.md"), text)
    names = names_of(results)
    body = [[r, s, t, n, *(round(f[k], 4) for k in names)] for r, s, t, n, f in lines_of(results)]
    csv = tables.comma_separated(["row", "seed", "target", "split", *names], body)
    tables.write_text(os.path.join(workdir, "dg.csv"), csv)
    sources = [
        {"row": c.row, "set": c.domain.label, "ids": c.numbers[0], "images": c.numbers[1]}
        for c in counted
        if c.use == "source"
    ]
    document = {**about, "sources": sources, "rows": results}
    tables.write_text(os.path.join(workdir, "dg.json"), json.dumps(document, indent=1) + "\n")
    return text
