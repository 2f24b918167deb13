"""Runners of the cases `adl__*`."""

import numpy as np

from reid_jax.eval import rerank as reranking
from reid_jax.parity.compare import Within


def rerank(case):
    """re-ranking of one set (IICS), float64 and as published in half precision"""
    distance, results = np.asarray(case.input("distance")), {}
    for i, settings in enumerate(case.config.settings):
        found = reranking.square(distance, form="iics", **settings)
        results |= {f"out/final{i}": found, f"out/final{i}_half": Within(found, 6e-3)}
    return results
