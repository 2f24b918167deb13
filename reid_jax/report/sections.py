"""What each section of the report shows, as plain values and charts for the template."""

import json

import numpy as np

from reid_jax.config import defaults as common_defaults
from reid_jax.config import flatten
from reid_jax.data.loaders import LAYOUTS
from reid_jax.errors import DataError
from reid_jax.eval import paired, probe, ranking
from reid_jax.report import figures, strips
from reid_jax.report.run import numbers

FIGURES = {  # name in the files: (title, what it means)
    "rank1": ("Rank-1", "queries whose first hit is the right person"),
    "mAP": ("mAP", "mean average precision over all matches"),
    "rank5": ("Rank-5", "a right hit among the first five"),
    "rank10": ("Rank-10", "a right hit among the first ten"),
    "mINP": ("mINP", "how early the last match is found"),
    "prop": ("prop.", "errors that show the query's own camera"),
    "camera_probe": ("Camera probe", "cameras a linear classifier reads off the features"),
}
LABELS = {  # of pseudo labels: (title, unit)
    "ari": ("Adjusted Rand index", "%"),
    "nmi": ("Mutual information (NMI)", "%"),
    "clusters": ("Clusters", ""),
    "labelled": ("Images with a label", "%"),
    "precision": ("Neighbours of the same person", "%"),
}
LOWER_IS_BETTER = ("prop", "camera_probe")
METRICS = {"loss": "Total loss", "lr": "Learning rate"}  # of every method; run.titles has its own
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
MATCH_RATE = 0.001  # false match rate whose threshold the distributions show
TSNE_POINTS, TSNE_IDS = 2000, 20
_PAIR_CAMERAS, _PAIR_WORK = 12, 2e11  # beyond them the camera-pair table is left out
_SEED = 0


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


def cmc(run, compared):
    """CMC of every network: (svg or None, [(series, label)])."""
    chosen = sorted(run.final["nets"], key=lambda n: n != run.net)
    sides = [(run.final["nets"][n], str(n), n == run.net, False) for n in chosen]
    if compared:
        sides.append((compared.figures, f"{compared.name} ({compared.net})", True, True))
    lines, labels = [], []
    for figure, label, strong, dashed in sides:
        values = figure.get("cmc")
        if isinstance(values, list) and values:
            lines.append(figures.Line(range(1, len(values) + 1), values, len(lines), strong, dashed))
            labels.append((lines[-1].series % figures.SERIES, label))
    if not lines:
        return None, []
    return figures.cmc(lines[::-1], "Cumulative matching characteristic, percent"), labels


def pairs(run, compared):
    """ROC, distributions and thresholds of pairs: {"roc", "similarity", "legend", "rows", ...}, None without.

    Rows are a false match rate each: (rate, threshold, percent found, the comparison run's percent or None).
    """
    if run.last is None or run.last.pairs is None:
        return None
    ours = run.last.pairs
    theirs = compared.last.pairs if compared and compared.last else None
    sides = [(run.name, ours), *([(f"{compared.name}, comparison run", theirs)] if theirs else [])]
    lines = [_roc_line(side, i) for i, (_, side) in enumerate(sides)]
    level = ours.at(MATCH_RATE)
    return {
        "roc": figures.roc(
            lines[::-1], "ROC: pairs of one person found over pairs of two let through, percent"
        ),
        "similarity": figures.distributions(
            *ours.shares(), "Similarity of pairs of one person and of two", level[0] if level else None
        ),
        "marked": f"{MATCH_RATE:g}" if level else None,
        "legend": [(i, name) for i, (name, _) in enumerate(sides)],
        "rows": [_rate_row(rate, ours, theirs) for rate in _rates(run)],
        "auc": [f"{100 * side.auc:.2f}" for _, side in sides],
        "eer": [f"{100 * side.eer:.2f}" for _, side in sides],
        "same": int(ours.same.sum()),
        "other": int(ours.other.sum()),
    }


def _rates(run):
    """False match rates of the table: round ones and those of the run's config."""
    asked = run.config.get("eval", {}).get("false_match_rates") or ()
    asked = {r for r in asked if isinstance(r, float) and 0 < r < 1}
    return sorted(asked | {0.1, 0.01, 0.001, 0.0001, 0.00001}, reverse=True)


def _roc_line(side, series):
    curve = side.curve()
    fpr, tpr = (100 * np.asarray(curve[k]) for k in ("fpr", "tpr"))
    return figures.Line(fpr, tpr, series, strong=not series, dashed=bool(series))


def _rate_row(rate, ours, theirs):
    point, other = ours.at(rate), theirs.at(rate) if theirs else None
    return {
        "rate": f"{100 * rate:g} %",
        "threshold": f"{point[0]:.3f}" if point else "–",
        "found": percent(100 * point[1] if point else None),
        "compared": percent(100 * other[1] if other else None) if theirs else None,
    }


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


def cameras(ranked, distance, names=()):
    """Table by query camera, with rank-1 against each gallery camera when that is cheap.

    {"rows": [{camera, queries, rank1, mAP, same_cam, other_cam, pairs}], "columns": [camera]}; pairs are
    (rank-1 in percent or None, number of queries), or absent.
    """
    retrieval, first_kind = ranked.retrieval, strips.kinds(ranked)[:, 0]
    cams = np.unique(ranked.query.camid[retrieval.valid])
    columns = np.unique(ranked.gallery.camid[ranked.gallery.pid > 0])
    work = float(len(ranked.query)) * len(ranked.gallery) * ranked.features.feature.shape[1]
    pairs = _pairs(ranked, columns, distance) if len(columns) <= _PAIR_CAMERAS and work < _PAIR_WORK else {}
    rows = []
    for cam in cams:
        mine = (ranked.query.camid == cam) & retrieval.valid
        shares = {k: percent(100 * np.mean(first_kind[mine] == k)) for k in strips.KINDS}
        rows.append(
            {
                "camera": camera(int(cam), names),
                "queries": int(mine.sum()),
                "mAP": percent(100 * retrieval.ap[mine].mean()),
                "shares": shares,
                "pairs": [pairs.get((int(cam), int(b)), (None, 0)) for b in columns] if pairs else [],
            }
        )
    return {"rows": rows, "columns": [camera(int(b)) for b in columns] if pairs else []}


def _pairs(ranked, columns, distance):
    """{(query camera, gallery camera): (rank-1 in percent, queries)} with the gallery of one camera only."""
    q, g, table = ranked.features.of("query"), ranked.features.of("gallery"), {}
    for b in columns:
        rows, keep = q.camid != b, g.camid == b
        if not rows.any():
            continue
        try:
            retrieval = ranking.rank(
                q.feature[rows], g.feature[keep], q.pid[rows], g.pid[keep], q.camid[rows], g.camid[keep],
                distance=distance, topk=1,
            )  # fmt: skip
        except DataError:  # no query has a match under this camera
            continue
        for a in np.unique(q.camid[rows]):
            mine = (q.camid[rows] == a) & retrieval.valid
            if mine.any():
                rank1 = 100 * float(np.mean(retrieval.first_hit[mine] == 0))
                table[int(a), int(b)] = (rank1, int(mine.sum()))
    return table


def tsne(features, names=()):
    """Two t-SNE charts of the same positions: {"by_id", "by_camera", "cameras", "points", "ids"}, or None."""
    rows, ids = tsne_rows(features.pid)
    if len(rows) < 8 or np.ptp(features.feature[rows], axis=0).max() < 1e-6:  # all equal: t-SNE would crash
        return None
    points = figures.embed_2d(features.feature[rows], seed=_SEED)
    pid, camid = features.pid[rows], features.camid[rows]
    id_colour = {int(p): _wheel(i, len(ids)) for i, p in enumerate(ids)}
    cams = [int(c) for c in np.unique(camid)]
    few = len(cams) <= figures.SERIES
    cam_colour = {c: f"var(--s{i})" if few else _wheel(i, len(cams)) for i, c in enumerate(cams)}
    return {
        "by_id": figures.scatter(points, [id_colour.get(int(p)) for p in pid], "t-SNE coloured by identity"),
        "by_camera": figures.scatter(points, [cam_colour[int(c)] for c in camid], "t-SNE coloured by camera"),
        "cameras": [(cam_colour[c], camera(c, names)) for c in cams],
        "points": len(rows),
        "ids": len(ids),
    }


def tsne_rows(pid):
    """(rows, ids): the ids with most images, and at most TSNE_POINTS rows, theirs first; no junk."""
    values, counts = np.unique(pid[pid > 0], return_counts=True)
    ids = values[np.argsort(-counts, kind="stable")[:TSNE_IDS]]
    rng = np.random.default_rng(_SEED)
    chosen = rng.permutation(np.flatnonzero(np.isin(pid, ids)))
    others = rng.permutation(np.flatnonzero(~np.isin(pid, ids) & (pid != -1)))
    return np.sort(np.concatenate([chosen, others])[:TSNE_POINTS]), ids


def _wheel(i, count):
    """Colour i of `count`, neighbours unlike in lightness."""
    return f"hsl({round(360 * i / count)} 70% {(42, 58)[i % 2]}%)"


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
