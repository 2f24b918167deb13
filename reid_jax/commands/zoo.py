"""All methods in one table and one page: what each is for, its size and speed, and results of finished runs.

    python -m reid_jax zoo runs --output runs/zoo
    python -m reid_jax zoo runs/table runs/supervised --output runs/zoo --time

Looks below the folders for finished runs, as train, compare and dg leave them; seeds of a row, ROW/seed-N,
are taken together, of dg all runs of a config: the figures are then those on the sets left out. A method
without a finished run is listed all the same. Rows are comparable where set, steps and nets are the same,
which the table names and does not see to. Test times are measured on this machine, with --time: the network
alone, on pictures of its size, 64 at a time. Writes zoo.html, zoo.md and zoo.json.
"""

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reid_jax import cli, methods, places, tables
from reid_jax.errors import DataError, ReidError
from reid_jax.fields import completed
from reid_jax.trained.figures import DG_NOTE, cell, result, unseen

log = logging.getLogger(__name__)
SKIP = ("data", "checkpoints", "eval", "evaluate", "tfevents")  # folders of a run, which hold no runs
NONE = "–"
BATCH = 64  # pictures at a time, of test times


class Row(NamedTuple):
    """The finished runs of one config, one for each seed."""

    method: str
    label: str
    about: str  # the set, and how long it trained
    drawn: bool  # a set of drawn people
    results: list  # result of every seed
    folder: str  # of the first run
    ms: float | None = None  # test time of a picture

    def mean(self, figure):
        """Mean of a figure over the seeds; None where one has it not."""
        values = [result.get(figure) for result in self.results]
        return None if None in values or not values else float(np.mean(values))


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    rows = read(args.runs)
    machine = ""
    if args.time:
        cli.prepare_jax()
        from reid_jax import hardware

        rows, machine = [row._replace(ms=test_time(row.folder)) for row in rows], hardware.described()
    os.makedirs(args.output, exist_ok=True)
    values = page(rows, machine)
    write(args.output, rows, values)
    print(markdown(values))
    return 0


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("zoo", __doc__)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", type=places.argument("FOLDER"), help="with runs")
    output = places.argument("--output", places.written)
    parser.add_argument("--output", required=True, metavar="FOLDER", type=output, help="for page and table")
    parser.add_argument("--time", action="store_true", help="measure test times (compiles every network)")
    return parser.parse_args(argv)


# ---- finished runs
def read(folders):
    """[Row] of all finished runs below these folders, the best first; DataError for a folder that is not."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise DataError(f"{folder} is no folder; name one with finished runs below it")
    groups = {}
    for run in dict.fromkeys(run for folder in folders for run in finished(folder)):
        groups.setdefault(group_of(run), []).append(run)
    rows = [row_of(key, runs) for key, runs in groups.items()]
    return sorted(filter(None, rows), key=lambda row: -(row.mean("mAP") or 0))


def group_of(run):
    """The folder of a row: that of a run's seeds, or of a config's runs by dg."""
    if not re.fullmatch(r"seed-\d+", run.name):
        return run
    config = run.parent.parent
    return config if (config / DG_NOTE).exists() else run.parent


def finished(folder):
    """Folders of finished runs in or below a folder, in order; behind links too, each once."""
    seen = set()
    for place, inside, files in os.walk(folder, followlinks=True):
        new = os.path.realpath(place) not in seen
        seen.add(os.path.realpath(place))
        if new and {"config.json", "summary.json"} <= set(files):
            yield Path(place)
            new = False
        inside[:] = sorted(set(inside) - set(SKIP)) if new else []


def row_of(key, runs):
    """Row of the runs of a config; None, which is said, where a file is damaged or of another version."""
    try:
        config = read_json(runs[0] / "config.json")
        config = completed(config, methods.defaults(config["method"]))
        steps = read_json(runs[0] / "summary.json")["steps"]
        results = results_of(key, runs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ReidError) as error:
        log.warning("%s is left out: %s", key, error)
        return None
    data = config["data"]
    drawn = data["name"].startswith("synthetic")
    about = "drawn ({kind}), {test_ids} people".format(**data["synthetic"]) if drawn else data["name"]
    about += ", unseen sets" * (key / DG_NOTE).exists()
    about += f"; {config['model']['backbone']}, {steps} steps"
    return Row(config["method"], key.name, about, drawn, results, str(runs[0]))


def results_of(key, runs):
    """[figures] of every seed of a row."""
    if not (key / DG_NOTE).exists():
        return [result(run, "") for run in runs]
    of_run = {"parameters": result(runs[0], "")["parameters"]}
    return [figures | of_run for figures in unseen(key)]


def read_json(path):
    """What a JSON file holds."""
    return json.loads(path.read_text())


def test_time(folder):
    """Milliseconds a picture of a run's test net, BATCH at a time, the best of three; None: it cannot."""
    from reid_jax.serve import embedder

    try:
        e = embedder.load(folder, checkpoint="latest", batch=BATCH)
        pictures = np.random.default_rng(0).integers(0, 256, (BATCH, *e.size, 3), np.uint8)
        e(pictures)  # compiles
    except ReidError:
        return None
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        e(pictures)
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds) / BATCH


# ---- what is shown
def page(rows, machine):
    """What page and table show: groups of methods by what they are for, each with its rows."""
    groups = {}
    for name in methods.names():
        title, line = methods.about(name)
        own = [shown(row) for row in rows if row.method == name]
        entry = {"name": name, "title": title, "line": line, "rows": own}
        entry["also"] = methods.settings(name)[1:]
        groups.setdefault(methods.settings(name)[0], []).append(entry)
    order = [settings[0] for settings in methods.SETTINGS.values()]
    groups = {name: groups[name] for name in sorted(groups, key=lambda n: (*order, n).index(n))}
    run = {row.method for row in rows}
    return {
        "groups": groups,
        "machine": machine,
        "count": len(methods.names()),
        "with_runs": len(run),
        "runs": sum(len(row.results) for row in rows),
        "drawn": bool(rows) and all(row.drawn for row in rows),
    }


def shown(row):
    """The texts of a Row."""
    parameters = row.mean("parameters")
    return {
        "label": row.label,
        "about": row.about,
        "rank1": cell([r["rank1"] for r in row.results]),
        "mAP": cell([r["mAP"] for r in row.results]),
        "at": row.mean("mAP") or 0,
        "chance": row.mean("random_mAP") or 0,  # of unseen sets it is not known
        "parameters": f"{parameters / 1e6:.3g}" if parameters else NONE,
        "ms": NONE if row.ms is None else f"{row.ms:.2f}",
        "seeds": len(row.results),
    }


def markdown(values):
    """The Markdown table."""
    head = ["for", "method", "row", "on", "rank-1", "mAP", "parameters, M", "ms a picture", "seeds"]
    lines = []
    for setting, entries in values["groups"].items():
        for entry in entries:
            name, also = entry["title"], ", ".join((setting, *entry["also"]))
            for r in entry["rows"]:
                cells = [r[k] for k in ("label", "about", "rank1", "mAP", "parameters", "ms")]
                lines.append([also, name, *cells, str(r["seeds"])])
            if not entry["rows"]:
                lines.append([also, name, "no finished run", *[NONE] * 6])
    machine = (
        f"\nTest times: {BATCH} pictures at a time on {values['machine']}.\n" if values["machine"] else ""
    )
    return f"{tables.markdown(head, lines)}\n{machine}"


def write(folder, rows, values):
    """zoo.html, zoo.md and zoo.json."""
    from reid_jax.report.build import render
    from reid_jax.report.build import write as write_page

    write_page(os.path.join(folder, "zoo.html"), render(values | {"absent": NONE}, "zoo.html.j2"))
    tables.write_text(os.path.join(folder, "zoo.md"), markdown(values))
    text = json.dumps([row._asdict() for row in rows], indent=1)
    tables.write_text(os.path.join(folder, "zoo.json"), text + "\n")


if __name__ == "__main__":
    cli.run(main)
