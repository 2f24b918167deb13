"""Degraded pictures, and the scores of retrieval."""

import numpy as np

from reid_jax.data import degrade
from reid_jax.eval import protocols, ranking
from reid_jax.parity.compare import Within


def degradations(case):
    """down-sampling, gamma and resizing of pictures: equal bytes"""
    image, results = case.arrays["in/image"], {}
    for name in case.under("out/"):
        operation, *values = name.split("/")
        if operation == "down":
            output = degrade.shrink(image, float(values[0]))
        elif operation == "down_resized":
            output = degrade.enlarge(degrade.shrink(image, float(values[0])), 256, 128)[::2, ::2]
        elif operation == "gamma":
            output = degrade.darken(image, *map(float, values))
        else:
            output = degrade.enlarge(image, 256, 128)[::2, ::2]
        results[f"out/{name}"] = output
    return results


def evaluation(case):
    """multi-shot and single-shot figures"""
    q, g = ([case.arrays[f"in/{side}_{k}"] for k in ("f", "id", "cam")] for side in ("query", "gallery"))

    def figures(ranked, mean):
        return np.array([*(ranked.cmc[min(r, len(ranked.cmc)) - 1] for r in (1, 5, 10, 20)), mean])

    def arrays(rows):
        return [x for pair in zip(q, [a[rows] for a in g], strict=True) for x in pair]

    ids = len(np.unique(g[1]))
    multi = ranking.rank(*arrays(slice(None)))
    once = protocols.single_shot(*arrays(slice(ids, 2 * ids)), trials=1)
    many = protocols.single_shot(*arrays(slice(ids, None)), trials=2000)
    return {
        "out/multi_shot": figures(multi, multi.mAP_trapezoid),
        "out/single_shot_one_per_id": figures(once, once.mAP),
        "out/single_shot_many_trials": Within(figures(many, many.mAP), 0.02),
    }
