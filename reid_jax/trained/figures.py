"""Figures of finished runs, as tables of several runs show them."""

import json
from pathlib import Path
from statistics import fmean

import numpy as np

from reid_jax.errors import DataError

TITLES = {
    "mAP": "mAP",
    "rank1": "rank-1",
    "seen/mAP": "seen mAP",  # means over sets that were learnt one after another, eval/sequence.py
    "seen/rank1": "seen rank-1",
    "unseen/mAP": "unseen mAP",
    "unseen/rank1": "unseen rank-1",
    "forgetting/mAP": "forgotten mAP",
    "other_id_same_cam": "same-camera errors",  # first hit: somebody else, from the query's camera
    "prop": "prop.",
    "camera_probe": "camera probe",
    "ari": "label ARI",  # of the pseudo labels of the last round
    "swap/mAP_before": "mAP, one query a person",  # and on other backgrounds: train/swap.py
    "swap/mAP": "mAP, backgrounds swapped",
    "swap/probe_body": "probe: body's camera",
    "swap/probe_background": "probe: background's camera",
}


def result(folder, net):
    """Figures and seconds of a finished run; DataError naming the folder when they cannot be read."""
    try:
        return read(folder, net)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the figures of {folder} cannot be read ({error!r}): a file in it is damaged, or of another "
            "version; train it again in a folder of its own, or leave it out"
        ) from error


def read(folder, net):
    """The same, with whatever error a damaged file gives."""
    final = json.loads((Path(folder) / "eval" / "final.json").read_text())
    summary = json.loads((Path(folder) / "summary.json").read_text())
    if not final["nets"]:
        raise DataError(f"{folder} has no test set of its own: there are no figures to compare")
    name = net if net in final["nets"] else final["net"]
    figures = {k: final["nets"][name][k] for k in TITLES if k in final["nets"][name]}
    figures |= label_quality(folder) | drawn(folder) | kept(folder)
    figures |= {"parameters": summary.get("parameters") or 0, "seconds": summary["seconds"]}
    figures["random_mAP"] = final["random"]["mAP"]
    if wrong := [k for k, v in figures.items() if not isinstance(v, int | float)]:
        raise ValueError(f"{wrong[0]} is {figures[wrong[0]]!r}")
    return {**figures, "net": str(name)}


def drawn(folder):
    """Those figures of a run's eval/drawn.json that the table shows; {} when it has none."""
    path = Path(folder) / "eval" / "drawn.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    return {k: figures[k] for k in TITLES if k in figures}


def label_quality(folder):
    """{"ari": percent} of the last pseudo labels of a run; {} when it has none, or none that are rated."""
    last = last_line(folder, "labels")
    return {"ari": last["ari"]} if "ari" in last else {}


def kept(folder):
    """Those figures of a run that learnt sets one after another that the table shows; {} of others."""
    last = last_line(folder, "kept")
    return {k: last[k] for k in TITLES if k in last}


def last_line(folder, kind):
    """The last line of a kind of a run's metrics.jsonl, {} without one."""
    lines = [line for line in (Path(folder) / "metrics.jsonl").open() if f'"{kind}"' in line]
    return json.loads(lines[-1]) if lines else {}


SHOWN = ("rank1", "mAP")
DG_NOTE = "dg-asked.json"  # in the folder of a config's runs by dg: the command that they are of


def unseen(folder):
    """[{"rank1", "mAP"} of a seed] on the sets that a config never saw, means over these, of dg's table.

    Of the seeds that all rows of the table have; an error of whatever kind where it cannot be read.
    """
    rows = json.loads((Path(folder) / "dg.json").read_text())["rows"]
    made = []
    for seed in sorted(set.intersection(*map(set, rows.values()))):
        tests = [splits.values() for runs in rows.values() for splits in runs[seed]["targets"].values()]
        made.append({k: fmean(fmean(f[k] for f in splits) for splits in tests) for k in SHOWN})
    return made


def cell(values, spread=True):
    """'54.5 ± 2.2' (mean and sample standard deviation); '-' of none."""
    if not values:
        return "-"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if spread and values[1:] else "")


def gain(gaps):
    """'2.0 ± 5.7 (up in 1 of 2)' of differences between runs of the same seeds; '-' of none."""
    return f"{cell(gaps)} (up in {sum(g > 0 for g in gaps)} of {len(gaps)})" if gaps else "-"
