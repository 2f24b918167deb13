"""Charts and tables of the stored features: CMC, pairs of pictures, pairs of cameras, t-SNE."""

import numpy as np

from reid_jax.errors import DataError
from reid_jax.eval import ranking
from reid_jax.report import figures, strips
from reid_jax.report.sections import camera, percent

MATCH_RATE = 0.001  # false match rate whose threshold the distributions show
TSNE_POINTS, TSNE_IDS = 2000, 20
_PAIR_CAMERAS, _PAIR_WORK = 12, 2e11  # beyond them the camera-pair table is left out
_SEED = 0


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
