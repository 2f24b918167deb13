"""Sets that are learnt one after another: what is found of each after each step, and what is forgotten."""

import json
import os

import numpy as np

FIGURES = ("mAP", "rank1")


def of_final(final, main):
    """{set: {figure: percent}} of eval/final.json, of the network that stands for the run.

    main: name of the set whose figures stand at the top. {} of a run that was not tested.
    """
    net, tests = final.get("net"), {main: final, **final.get("sets", {})}
    figures_of = {name: test["nets"].get(net) for name, test in tests.items()}
    return {name: figures for name, figures in figures_of.items() if figures}


def read(workdir, stages, main):
    """{stage: what `of_final` gives} of the stages that are finished, in order."""
    table = {}
    for stage in stages:
        folder = os.path.join(workdir, "eval", *([stage] if stage != stages[-1] else []))
        try:
            with open(os.path.join(folder, "final.json"), encoding="utf-8") as f:
                table[stage] = of_final(json.load(f), main)
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            continue
    return table


def seen(trained, stage):
    """Sets that train up to the end of a stage, in order; trained: {stage: sets}."""
    stages = list(trained)
    return list(dict.fromkeys(s for name in stages[: stages.index(stage) + 1] for s in trained[name]))


def unseen(trained, figures):
    """Sets of `figures` {set: ...} that train in no stage."""
    every = {s for sets in trained.values() for s in sets}
    return [s for s in figures if s not in every]


def forgotten(trained, table, stage, figure):
    """{set: percent} that a figure of each set of an earlier stage lost from the end of that stage on."""
    now, lost = table[stage], {}
    for earlier in list(trained)[: list(trained).index(stage)]:
        for name in trained[earlier]:
            if name in now and name in table.get(earlier, {}):
                lost[name] = table[earlier][name][figure] - now[name][figure]
    return lost


def averages(trained, table, stage):
    """{"seen/mAP", "unseen/mAP", "forgetting/mAP", and of rank1: percent} after a stage.

    Means over the sets that have trained, over those that never do, and of what those of earlier stages lost
    (0 where there are none). Groups without a tested set are left out.
    """
    now, figures = table[stage], {}
    groups = {"seen": [s for s in seen(trained, stage) if s in now], "unseen": unseen(trained, now)}
    for figure in FIGURES:
        for name, sets in groups.items():
            if sets:
                figures[f"{name}/{figure}"] = float(np.mean([now[s][figure] for s in sets]))
        lost = list(forgotten(trained, table, stage, figure).values())
        figures[f"forgetting/{figure}"] = float(np.mean(lost)) if lost else 0.0
    return figures
