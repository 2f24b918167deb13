"""Charts of training: metrics over steps, test figures over epochs, how well pseudo labels fit."""

import numpy as np

from reid_jax.report import figures
from reid_jax.report.run import numbers
from reid_jax.report.sections import FIGURES, percent

LABELS = {  # of pseudo labels: (title, unit)
    "ari": ("Adjusted Rand index", "%"),
    "nmi": ("Mutual information (NMI)", "%"),
    "clusters": ("Clusters", ""),
    "labelled": ("Images with a label", "%"),
    "precision": ("Neighbours of the same person", "%"),
}
METRICS = {"loss": "Total loss", "lr": "Learning rate"}  # of every method; run.titles has its own


def curves(run):
    """Charts of every training metric: [{title, code, last, svg}], losses first, learning rate last."""
    names = list(dict.fromkeys(k for line in run.train for k in numbers(line)))
    names.sort(key=lambda n: (n.startswith("lr"), "accuracy" in n or n.endswith("r2")))
    return [_training_chart(run, n, i) for i, n in enumerate(names)]


def _training_chart(run, metric, series):
    points = [(line["step"], numbers(line).get(metric)) for line in run.train]
    steps, values = zip(*[p for p in points if p[1] is not None], strict=True)
    title = run.titles["metrics"].get(metric) or METRICS.get(metric, metric)
    if metric.startswith("lr"):
        line = figures.curve(steps, values, 4)._replace(raw=None, y=_thin(values))
    else:
        line = figures.curve(steps, values, 1 if metric.startswith(("cam_", "mi", "q_")) else 0)
    last = figures.compact(float(f"{line.y[-1]:.3g}"))
    svg = figures.chart([line], f"{title} against step", xlabel="step")
    return {"title": title, "code": metric, "last": last, "svg": svg}


def _thin(values):
    keep = np.linspace(0, len(values) - 1, min(len(values), figures.MAX_POINTS)).round().astype(int)
    return np.asarray(values, float)[np.unique(keep)]


def evaluations(run, levels):
    """Charts of the test figures over epochs, one line per network: ([{title, svg}], networks)."""
    nets = list(dict.fromkeys(str(e.get("net", run.net)) for e in run.evals))
    nets.sort(key=lambda n: n != run.net)
    levels = {**(run.final.get("random") or {}), **levels}
    charts = []
    for figure, (title, _) in FIGURES.items():
        lines = [_evaluation_line(run, net, figure, i) for i, net in enumerate(nets)]
        lines = [line for line in lines if len(line.x)]
        if lines:
            level = levels.get(figure)
            label = f"{title} over {run.unit}s, percent"
            svg = figures.chart(
                lines[::-1], label, level=level, xlabel=run.unit, markers=True, size=(3.6, 2.1)
            )
            last = lines[0].y[-1] if lines[0].strong else None
            charts.append({"title": title, "code": "", "last": percent(last), "level": level, "svg": svg})
    return charts, list(enumerate(nets))


def labels(run):
    """Charts of the fit of pseudo labels to identities, a line for each phase: ([{title, svg}], phases)."""
    phases = list(dict.fromkeys(str(line.get("phase", "")) for line in run.labels))
    charts = []
    for figure, (title, unit) in LABELS.items():
        lines = [_label_line(run, phase, figure, i) for i, phase in enumerate(phases)]
        lines = [line for line in lines if len(line.x)]
        if lines:
            text = f"{title} of the pseudo labels over rounds"
            svg = figures.chart(lines, text, xlabel="round", markers=True, size=(3.6, 2.1))
            last = lines[-1].y[-1]
            shown = f"{percent(last)} {unit}" if unit else f"{last:,.0f}"
            charts.append({"title": title, "last": shown, "svg": svg})
    return charts, list(enumerate(phases))


def _label_line(run, phase, figure, series):
    lines = [(numbers(line), line) for line in run.labels if str(line.get("phase", "")) == phase]
    points = [(n.get("round", line["step"]), n[figure]) for n, line in lines if figure in n]
    x, y = zip(*points, strict=True) if points else ((), ())
    return figures.Line(x, y, series)


def _evaluation_line(run, net, figure, series):
    points = [
        (e.get("epoch", e["step"]), numbers(e)[figure])
        for e in run.evals
        if str(e.get("net", run.net)) == net and figure in numbers(e)
    ]
    x, y = zip(*points, strict=True) if points else ((), ())
    return figures.Line(x, y, series, strong=net == run.net)
