"""Visible and infrared pictures side by side: how alike those of one person are within a light and across."""

import numpy as np
from sklearn.metrics import roc_auc_score

from reid_jax.report import figures, strips

PEOPLE, EACH, MOST = 6, 4, 1500  # people shown, pictures of each light, pictures whose pairs are counted
BINS = 40
KINDS = (("visible and infrared", 0, 1), ("both visible", 0, 0), ("both infrared", 1, 1))


def build(run, names, data_root=None):
    """{"rows", "charts", "people"}, None where the run's features are not of both lights."""
    cosine = run.config.get("eval", {}).get("distance") == "cosine"
    if run.last is None or run.last.features is None or not cosine:
        return None
    f = run.last.features
    infrared = np.array([light_of(c, names) for c in f.camid])
    if len(np.unique(infrared)) < 2 or f.feature.ndim != 2:
        return None
    unit = f.feature / np.maximum(np.linalg.norm(f.feature, axis=1, keepdims=True), 1e-12)
    compared = [(title, *pairs(unit, f.pid, infrared, a, b)) for title, a, b in KINDS]
    compared = [c for c in compared if len(c[1]) and len(c[2])]
    return {
        "rows": [row(*c) for c in compared],
        "charts": [{"title": t, "svg": chart(t, same, other)} for t, same, other in compared],
        "people": people(run, unit, infrared, data_root),
    }


def light_of(camid, names):
    """1 of an infrared camera, 0 of another, by its name."""
    return int(camid < len(names) and "infrared" in str(names[camid]))


def pairs(unit, pid, infrared, a, b):
    """Cosines (of pairs of one person, of pairs of two) of pictures of light a and of light b."""
    first, second = (some(np.flatnonzero((infrared == light) & (pid > 0)), light) for light in (a, b))
    every = np.ones((len(first), len(second)), bool)
    counted = every if a != b else first[:, None] < second  # each pair once
    cosine, same = unit[first] @ unit[second].T, pid[first][:, None] == pid[second]
    return cosine[same & counted], cosine[~same & counted]


def some(rows, seed):
    """At most MOST of the rows, drawn."""
    return rows if len(rows) <= MOST else np.random.default_rng(seed).choice(rows, MOST, replace=False)


def row(title, same, other):
    """A line of the table."""
    truth = np.r_[np.ones(len(same)), np.zeros(len(other))]
    return {
        "title": title,
        "same": f"{same.mean():.2f}",
        "other": f"{other.mean():.2f}",
        "auc": f"{100 * roc_auc_score(truth, np.r_[same, other]):.1f}",
        "pairs": f"{len(same):,} / {len(other):,}",
    }


def chart(title, same, other):
    """Distributions of both sorts of pairs."""
    edges = np.linspace(min(same.min(), other.min()), max(same.max(), other.max(), 1e-6), BINS + 1)
    shares = [np.histogram(v, edges)[0] / len(v) for v in (same, other)]
    return figures.distributions(edges, *shares, f"Similarity of pairs of pictures, {title}")


def people(run, unit, infrared, data_root):
    """[{"pid", "sides": [{"title", "pictures": [{"src", "path"}]}], "across"}] of people of both lights."""
    f, thumbs = run.last.features, strips.Thumbnails(run.data_root(data_root), None, run.pixels)
    both = np.intersect1d(*(np.unique(f.pid[(infrared == light) & (f.pid > 0)]) for light in (0, 1)))
    chosen = both[np.unique(np.linspace(0, len(both) - 1, PEOPLE).astype(int))] if len(both) else both
    shown = []
    for pid in chosen:
        mine = [np.flatnonzero((f.pid == pid) & (infrared == light)) for light in (0, 1)]
        sides = [
            {"title": title, "pictures": [picture(f.path[i], thumbs) for i in rows[:EACH]]}
            for title, rows in zip(("visible", "infrared"), mine, strict=True)
        ]
        across = float((unit[mine[0]] @ unit[mine[1]].T).mean())
        shown.append({"pid": int(pid), "sides": sides, "across": f"{across:.2f}"})
    return shown


def picture(path, thumbs):
    """{"path", "src"}; src is None of a picture that cannot be shown."""
    number = thumbs.add(str(path))
    return {"path": str(path), "src": None if number is None else thumbs.uris[number]}
