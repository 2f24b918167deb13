"""Sets learnt one after another: the table step x set, and curves of what is found and forgotten."""

import numpy as np

from reid_jax.data import union
from reid_jax.eval import sequence
from reid_jax.fields import namespace
from reid_jax.report import figures

_SHOWN = (("mAP", "mAP"), ("rank1", "Rank-1"))


def build(run):
    """What the page shows, None of a run whose stages do not train on different sets, or without figures."""
    trained = run.titles["sets"]
    data = namespace(run.config.get("data", {}))
    if not trained or not isinstance(getattr(data, "name", None), str):
        return None
    main = union.tested(data.name.split("+"), data)[0]
    table = {k: v for k, v in sequence.read(run.workdir, list(trained), main).items() if usable(v)}
    if not table:
        return None
    tested = list(dict.fromkeys(name for figures_ in table.values() for name in figures_))
    order = [s for s in sequence.seen(trained, list(trained)[-1]) if s in tested]
    order += [s for s in tested if s not in order]
    several = len(table) > 1
    return {
        "sets": order,
        "unseen": sequence.unseen(trained, dict.fromkeys(order)),
        "tables": [{"title": title, "rows": rows(trained, table, order, figure)} for figure, title in _SHOWN],
        "averages": curves(trained, table) if several else [],
        "by_set": by_set(trained, table, order) if several else None,
        "legend": list(enumerate(order)),
        "steps": len(trained),
    }


def usable(figures_):
    """Whether all figures that are shown are numbers."""
    values = [f.get(name) for f in figures_.values() for name in sequence.FIGURES]
    return bool(values) and all(isinstance(v, int | float) and np.isfinite(v) for v in values)


def rows(trained, table, order, figure):
    """Rows of the table: [{"step", "cells": [{"value", "level", "state"}], "seen", "forgotten", "unseen"}].

    state: of a set, "own" (of this step), "seen" (of an earlier one) or "" (not trained yet, or never).
    """
    shown = []
    for stage in table:
        before, means = sequence.seen(trained, stage), sequence.averages(trained, table, stage)
        cells = [
            {
                "value": f"{table[stage][name][figure]:.1f}" if name in table[stage] else "–",
                "level": round(float(table[stage].get(name, {}).get(figure, 0)), 1),
                "state": "own" if name in trained[stage] else "seen" if name in before else "",
            }
            for name in order
        ]
        texts = {k: means.get(f"{k}/{figure}") for k in ("seen", "forgetting", "unseen")}
        texts = {k: "–" if v is None else f"{v:.1f}" for k, v in texts.items()}
        shown.append({"step": stage, "cells": cells, **texts})
    return shown


def curves(trained, table):
    """Charts of the averages after each step: [{"title", "last", "svg"}]."""
    names = list(trained)
    steps = [names.index(stage) + 1 for stage in table]
    means = [sequence.averages(trained, table, stage) for stage in table]
    titles = {
        "seen/mAP": "mAP of the sets seen so far",
        "forgetting/mAP": "mAP forgotten of earlier sets",
        "unseen/mAP": "mAP of sets that never train",
    }
    shown = []
    for name, title in titles.items():
        if all(name in m for m in means):
            values = [m[name] for m in means]
            svg = figures.chart(
                [figures.Line(steps, values)], f"{title}, percent", xlabel="step", markers=True
            )
            shown.append({"title": title, "last": f"{values[-1]:.1f}", "svg": svg})
    return shown


def by_set(trained, table, order):
    """Chart of the mAP of each set after each step; dashed before the set has trained."""
    names, lines = list(trained), []
    for i, name in enumerate(order):
        points = [(names.index(s) + 1, f[name]["mAP"]) for s, f in table.items() if name in f]
        first = next((names.index(s) + 1 for s in names if name in trained[s]), len(names) + 1)
        for dashed, part in (
            (True, [p for p in points if p[0] <= first]),
            (False, [p for p in points if p[0] >= first]),
        ):
            if part:
                x, y = zip(*part, strict=True)
                lines.append(figures.Line(x, y, i % figures.SERIES, strong=not dashed, dashed=dashed))
    return figures.chart(
        lines, "mAP of each set after each step, percent", xlabel="step", markers=True, size=(12, 3.2)
    )
