"""What the report says of a run in words and tables, as plain values for the template."""

import json

import numpy as np

from reid_jax.config import defaults as common_defaults
from reid_jax.config import flatten
from reid_jax.data.loaders import LAYOUTS
from reid_jax.errors import DataError
from reid_jax.eval import paired, probe
from reid_jax.report import strips

FIGURES = {  # name in the files: (title, what it means)
    "rank1": ("Rank-1", "queries whose first hit is the right person"),
    "mAP": ("mAP", "mean average precision over all matches"),
    "rank5": ("Rank-5", "a right hit among the first five"),
    "rank10": ("Rank-10", "a right hit among the first ten"),
    "mINP": ("mINP", "how early the last match is found"),
    "prop": ("prop.", "errors that show the query's own camera"),
    "camera_probe": ("Camera probe", "cameras a linear classifier reads off the features"),
}
LOWER_IS_BETTER = ("prop", "camera_probe")
DATA_SETS = {name: layout.title for name, layout in LAYOUTS.items()} | {"synthetic": "synthetic data"}
PROTOCOLS = {  # how a protocol is named in the facts
    "market": "Market rule",
    "all-pairs": "all pairs, nothing left out",
    "single-shot": "single-shot: one random gallery image of each person, drawn for each query",
    "single-gallery": "single-shot: one random gallery image of each person, drawn for all queries",
    "sysu-all": "all-search: a visible image of each person and camera, drawn; ranks count persons",
    "sysu-indoor": "indoor-search: the same of indoor cameras",
}
UNTESTED = (
    "This run has no test set of its own: there are no figures, strips, curves of figures or maps of "
    "features, and no checkpoint is better than another. Other people to test on can be named with "
    "config.eval.also, or query and gallery be added to the data set."
)
CHECKPOINTS = {"last": "the last", "best": "the best of all evaluations"}


def percent(value):
    """One decimal, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def duration(seconds):
    """3725 -> '1 h 2 min'."""
    if not isinstance(seconds, int | float):
        return None
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours:,} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{seconds:.1f} s"


def data_set(run):
    """Readable name of the data set."""
    sets = str(run.config.get("data", {}).get("name", "unknown data set"))
    return " + ".join(DATA_SETS.get(each, each) for each in sets.split("+"))


def camera(camid, names=()):
    """The camera's name; without names cameras count from 1, as in the file names of the sets: c1, c2, ..."""
    return str(names[camid]) if camid < len(names) else f"c{camid + 1}"


def chance(run):
    """{figure: level in percent of a feature that knows nothing of cameras}."""
    levels = {"prop": run.figures.get("chance_prop")}
    if run.last is not None:
        f = run.last.features
        known = f.pid > 0
        try:
            levels["camera_probe"] = probe.chance(f.camid[known], f.pid[known])
        except DataError:
            pass
    return {k: v for k, v in levels.items() if v is not None}


def tiles(run, compared, levels):
    """The headline figures, each with what to compare it with."""
    first, epoch = run.first_figures
    others = [
        ("random features", run.final.get("random") or {}),
        ("chance", levels),
        ("first test" if epoch is None else f"{run.unit} {epoch:.3g}", first),
        *([(compared.name, compared.figures)] if compared else []),
    ]
    shown = [k for k in FIGURES if isinstance(run.figures.get(k), int | float)]
    return [_tile(k, run.figures[k], others) for k in shown]


def _tile(figure, value, others):
    title, meaning = FIGURES[figure]
    marks = [
        {"label": label, "value": percent(o[figure]), "at": _clip(o[figure])}
        for label, o in others
        if isinstance(o.get(figure), int | float)
    ]
    return {
        "name": figure,
        "title": title,
        "meaning": meaning,
        "value": percent(value),
        "at": _clip(value),
        "lower": figure in LOWER_IS_BETTER,
        "compared": marks,
    }


def _clip(value):
    return round(float(np.clip(value, 0, 100)), 2)


def verdict(run, compared):
    """Two or three sentences that say what the figures mean."""
    f, said = run.figures, []
    if "rank1" in f:
        queries = f" of {f['num_query']:,} queries" if "num_query" in f else " of the queries"
        said.append(f"For {f['rank1']:.1f} %{queries} the first hit is the right person.")
    same, different = f.get("other_id_same_cam"), f.get("other_id_other_cam")
    if same is not None and different is not None and same + different > 0:
        text = f"Of the errors, {f.get('prop', 0):.0f} % are somebody else seen by the query's own camera"
        if f.get("chance_prop"):
            text += f" ({f['chance_prop']:.0f} % if the camera did not matter)"
        said.append(text + ".")
    if compared and all("rank1" in r.figures and "mAP" in r.figures for r in (run, compared)):
        rank1, mean = (f"{run.figures[k] - compared.figures[k]:+.1f}" for k in ("rank1", "mAP"))
        said.append(f"Against {compared.name}: rank-1 {rank1}, mAP {mean}.")
    return " ".join(said)


DRAWN = {  # of drawn sets: (title, meaning)
    "swap/rank1_before": ("Rank-1, one query a person", "as the pictures are"),
    "swap/rank1": ("Rank-1 on another background", "the same bodies, cut out and laid over another camera's"),
    "swap/mAP_before": ("mAP, one query a person", "as the pictures are"),
    "swap/mAP": ("mAP on another background", "the same bodies"),
    "swap/probe_before": ("Probe names the camera", "a linear classifier, on pictures as they are"),
    "swap/probe_body": ("Probe names the body's camera", "after the swap"),
    "swap/probe_background": ("Probe names the background's camera", "after the swap: what leaks"),
}


def drawn(run, compared):
    """Rows of figures that only drawn sets allow: [{title, meaning, value, compared}], [] without."""
    pointing = {k: (f"Pointing of {k.partition('/')[2]}", POINTING) for k in run.drawn if "pointing/" in k}
    theirs = compared.drawn if compared else {}
    return [
        {
            "title": title,
            "meaning": meaning,
            "value": _figure(name, run.drawn.get(name)),
            "compared": _figure(name, theirs.get(name)) if compared else None,
        }
        for name, (title, meaning) in (DRAWN | pointing).items()
        if name in run.drawn
    ]


POINTING = "correlation of the heat map with the silhouette, mean over tracklets: above 0 on the body"


def _figure(name, value):
    if value is None:
        return "–"
    return f"{value:+.2f}" if name.startswith("pointing/") else f"{value:.1f} %"


def differences(run, compared):
    """{"rows": [{title, ours, theirs, difference, interval, zero}], "people"} paired by query, or None.

    None without a comparison run with stored features, and for drawn galleries.
    """
    if not compared or run.single or run.last is None or compared.last is None:
        return None
    rows = strips.same_rows(compared.last, run.last)
    ours, theirs = _queries(run.last), _queries(compared.last)
    theirs = paired.Queries(*(x[rows] for x in theirs))
    gaps = paired.differences([ours], [theirs])
    titles = {k: FIGURES[k][0] for k in FIGURES} | {"other_id_same_cam": "Same-camera errors"}
    return {
        "people": gaps["mAP"].people,
        "rows": [
            {
                "title": titles[name],
                "ours": percent(run.figures.get(name)),
                "theirs": percent(compared.figures.get(name)),
                "difference": f"{gap.mean:+.1f}",
                "interval": f"{gap.low:+.1f} to {gap.high:+.1f}",
                "zero": gap.holds_zero,
            }
            for name, gap in gaps.items()
        ],
    }


def _queries(ranked):
    q, g = ranked.query, ranked.gallery
    return paired.Queries.of(ranked.retrieval, q.path, q.pid, q.camid, g.pid, g.camid)


KNOWN_CAMERAS = "each picture's own is part of its feature: not camera-blind"


def facts(run):
    """[(what, value)] of the run."""
    s, c, f = run.summary, run.config, run.figures
    rate = s.get("images_per_second")
    network = str(c.get("model", {}).get("backbone", "")) or None
    items = "tracklets" if c.get("data", {}).get("frames") else "images"
    pairs = [
        ("Network tested", run.net or None),
        ("Backbone", network),
        ("Seed", c.get("seed")),
        ("Steps", f"{run.final['step']:,}" if isinstance(run.final.get("step"), int) else None),
        ("Training time", duration(s.get("seconds"))),
        ("Speed", f"{rate:,.0f} images/s" if isinstance(rate, int | float) else None),
        ("Devices", s.get("devices")),
        ("Machine", s.get("machine")),
        ("Checkpoint", CHECKPOINTS.get(str(run.final.get("checkpoint")))),
        ("Tested on", "held-out training identities" if run.final.get("split") == "val" else None),
        ("Protocol", PROTOCOLS.get(run.protocol)),
        ("Cameras", KNOWN_CAMERAS if run.final.get("knows_camera") is True else None),
        ("Queries", f"{f['num_query']:,}" if "num_query" in f else None),
        ("Gallery", f"{f['num_gallery']:,} {items}" if "num_gallery" in f else None),
        ("Left out", f"{run.left_out:,} unreadable test pictures" if run.left_out else None),
    ]
    return [(k, v) for k, v in pairs if v not in (None, "")]


def choice_of_checkpoint(run):
    """Which checkpoint the figures are of, and on whom it was chosen; "" when the run does not say."""
    if run.untested:
        return UNTESTED
    people = "the test identities"
    if run.config.get("eval", {}).get("split") == "val":
        people = "identities held out of training"
    if run.final.get("checkpoint") == "last":
        text = "These figures are of the last checkpoint: none was chosen by its figures."
        return f"{text} What --checkpoint=best takes was chosen by its mAP on {people}."
    if run.final.get("checkpoint") != "best":
        return ""
    text = f"These figures are of the best checkpoint, chosen by its mAP on {people}"
    if people == "the test identities":
        text += " on which it is tested here: it looks better than it is"
    return f"{text}."


def versions(run):
    """[(package, version)]"""
    packages = run.summary.get("versions")
    if not isinstance(packages, dict):
        return []
    return sorted(packages.items(), key=lambda item: (item[0] != "reid_jax", item[0]))


def networks(run, compared):
    """Rows of the table of all evaluated networks: [{label, note, chosen, values}]."""
    first, epoch = run.first_figures
    when = "" if epoch is None else f", {run.unit} {epoch:.3g}"
    nets = run.final["nets"]
    sides = [(str(n), "", n == run.net, nets[n]) for n in sorted(nets, key=lambda n: n != run.net)]
    if first:
        sides.append((run.net, f"first evaluation{when}", False, first))
    if compared:
        sides.append((compared.name, f"comparison run, {compared.net}", False, compared.figures))
    if run.final.get("random"):
        sides.append(("random features", "knows nothing", False, run.final["random"]))
    return [
        {"label": a, "note": b, "chosen": c, "values": [percent(f.get(k)) for k in FIGURES]}
        for a, b, c, f in sides
    ]


def other_sets(run):
    """Rows of the table of further test sets: [{label, note, values}], a row for each of their networks."""
    return [
        {
            "label": f"{name}, {net}",
            "note": PROTOCOLS[protocol],
            "values": [percent(f.get(k)) for k in FIGURES],
        }
        for name, protocol, nets in run.sets
        for net, f in nets.items()
    ]


def table1(run, compared):
    """Rows of the bars "what the first hit is", oldest first; the last one is this run.

    Empty for drawn galleries, where a query has many first hits.
    """
    if run.single:
        return []
    first, epoch = run.first_figures
    sides = [("First evaluation", "" if epoch is None else f"{run.unit} {epoch:.3g}", first)] if first else []
    if compared:
        sides.append((compared.name, "comparison run", compared.figures))
    sides.append((run.name, "this run", run.figures))
    parts = ("same_id", "other_id_same_cam", "other_id_other_cam")
    return [
        {
            "label": label,
            "note": note,
            "parts": [(strips.KINDS[i], round(f[k], 2), percent(f[k])) for i, k in enumerate(parts)],
            "prop": percent(f.get("prop")),
            "prop_at": _clip(f.get("prop") or 0),
            "chance": percent(f["chance_prop"]) if "chance_prop" in f else None,
            "chance_at": _clip(f.get("chance_prop") or 0),
        }
        for label, note, f in sides
        if all(isinstance(f.get(k), int | float) for k in parts)
    ]


def settings(config, defaults):
    """[(section, [(field, value, default or None, changed)])], top-level fields first.

    defaults: of the run's method, {}: the common ones.
    """
    known = flatten(defaults or common_defaults())
    sections = {}
    for field, value in flatten(config).items():
        section, _, key = field.partition(".")
        section, key = (section, key) if key else ("run", field)
        changed = field in known and known[field] != value
        default = _shown(known[field]) if changed else None
        sections.setdefault(section, []).append((key, _shown(value), default, changed))
    return sorted(sections.items(), key=lambda s: s[0] != "run")


def _shown(value):
    if isinstance(value, str):
        return value or "(empty)"
    return json.dumps(value)
