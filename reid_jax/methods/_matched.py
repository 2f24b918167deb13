"""What features of stripes with weights make of pictures: visible parts, what a query and its match share.

A method with them offers `stripes(state, image, points, size)` -> {"stored": test features f[B,D], "every":
the same as if all stripes were seen, "unit": the stripes' unit features f[B,P,C], "seen": f[B,P]}.
STUDY is what a page says of it (train/titles.py: its form, and the names of arrays).
"""

import numpy as np

from reid_jax.data.records import extras
from reid_jax.eval import ranking
from reid_jax.methods._study import pictures

PEOPLE, SHOWN = 96, 8  # measured; pairs of pictures
ROWS = 8  # of a stripe in a map, so that its colour does not run into the next

STUDY = {
    "title": "Visible parts and matched regions",
    "link": "Parts",
    "lead": "Measured on some test people: their queries search their gallery pictures. A stripe counts in "
    "the distance of two pictures where body points say that it is seen in both.",
    "figures": {
        "visible": ("Visible stripes of queries, %", "as the body points say"),
        "visible_gallery": ("Visible stripes of the gallery, %", "the same"),
        "rank1": ("Rank-1, %", "by the stripes that both pictures show"),
        "rank1_every": ("Rank-1 of every stripe, %", "as if all were seen: what knowing them is worth"),
        "mAP": ("mAP, %", "by the stripes that both pictures show"),
        "mAP_every": ("mAP of every stripe, %", "as if all were seen"),
    },
    "levels": {"rank1": "rank1_every", "mAP": "mAP_every"},
    "arrays": {
        "map": {
            "title": "Queries and their first hits",
            "lead": "Left the query, right what ranks first for it. Visible: stripes that the points call "
            "seen (red) or hidden (blue). Matched: the similarity of stripes that both show, from 0 (blue; "
            "also where one is hidden) to 1 (red).",
            "columns": ("query", "first hit"),
            "shares": ("visible", "matched"),
            "rows": {"visible": "visible parts", "matched": "matched regions"},
        }
    },
}


def of(method):
    """Method.study of a method with stripes, None where the test pictures have no body points."""

    def prepare(dataset, over):
        query, gallery = some_people(dataset)
        if not query or not gallery or "points" not in extras([*query, *gallery]):
            return None
        embed, read = over(method.stripes), []

        def study(state):
            if not read:
                known = extras([*query, *gallery])
                read.extend(
                    (pictures([*query, *gallery], method.config.data), known["points"], known["size"])
                )
            features = embed(state, *read)
            ranked = {k: first(features[k], query, gallery, method.config) for k in ("stored", "every")}
            seen = features["seen"]
            figures = {
                "visible": 100 * float(seen[: len(query)].mean()),
                "visible_gallery": 100 * float(seen[len(query) :].mean()),
            }
            for name, suffix in (("stored", ""), ("every", "_every")):
                figures |= {f"{k}{suffix}": ranked[name].figures()[k] for k in ("rank1", "mAP")}
            return figures, pairs(read[0], features, ranked["stored"].top_index[:, 0], len(query))

        return study

    return prepare


def some_people(dataset):
    """(query, gallery) of the first PEOPLE identities of the queries."""
    people = list(dict.fromkeys(r.pid for r in dataset.query))[:PEOPLE]
    return tuple([r for r in side if r.pid in people] for side in (dataset.query, dataset.gallery))


def first(features, query, gallery, config):
    """ranking.Retrieval of features f[Q+G,D], the first hit of each query."""
    labels = [[getattr(r, k) for r in side] for k in ("pid", "camid") for side in (query, gallery)]
    sides = (features[: len(query)], features[len(query) :], *map(np.array, labels))
    return ranking.rank(*sides, distance=config.eval.distance, topk=1)


def pairs(images, features, hit, queries):
    """Arrays of SHOWN queries, spread over the list, and their first hits: pictures, maps [N,2,ROWS P,1]."""
    chosen = np.flatnonzero(hit >= 0)
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, SHOWN).astype(int))]
    rows = np.stack([chosen, queries + hit[chosen]], 1)
    seen, unit = features["seen"][rows], features["unit"][rows]
    both = (seen.prod(1) * ((unit[:, 0] * unit[:, 1]).sum(-1) + 1) / 2)[:, None].repeat(2, 1)
    maps = {"map/visible": seen, "map/matched": both}
    maps = {k: np.float32(v).repeat(ROWS, 2)[..., None] for k, v in maps.items()}
    return {"map/image": images[rows]} | maps
