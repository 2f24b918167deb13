"""Clustering and retrieval: similarity of images, re-ranking, labels, scores."""

import jax
import numpy as np

from reid_jax.eval import ranking
from reid_jax.eval import rerank as reranking
from reid_jax.methods import adl
from reid_jax.methods.adl import labels
from reid_jax.parity.adl import _build
from reid_jax.parity.compare import Partition, Within


def similarity(case):
    """similarity of images by every camera's classifier"""
    logits = [case.input(f"logits{i}") for i in range(len(case.config.classes))]
    scores = np.concatenate([jax.nn.softmax(x, -1) for x in logits], 1)
    return {"out/scores": scores, "out/jaccard": labels.similarity(scores)}


def rerank(case):
    """re-ranking of one set (IICS), float64 and as published in half precision"""
    distance, results = np.asarray(case.input("distance")), {}
    for i, settings in enumerate(case.config.settings):
        reranked = reranking.square(distance, form="iics", **settings)
        results |= {f"out/final{i}": reranked, f"out/final{i}_half": Within(reranked, 6e-3)}
    return results


def cluster(case):
    """clusters within cameras and over all: distances, labels by number and by threshold"""
    m, feature = case.config, np.asarray(case.input("feature"))
    camera, scores = case.arrays["in/camera"], np.asarray(case.input("scores"))
    shared = dict(k1=m.k1, k2=m.k2, lambda_value=m.lambda_value)

    def by(mode, stage, clusters):
        fields = adl.FIELDS[stage] | dict(clusters=clusters, quantile=getattr(m, f"quantile_{stage}"))
        return _build.config(mode=mode, **{stage: fields}, **shared).adl

    results = {}
    for key, mode in (("fixed", "original"), ("threshold", "threshold")):
        clusters = m.n_intra if mode == "original" else len(feature)
        intra = labels.intra(feature, camera, by(mode, "intra", clusters))
        for i in np.unique(camera):
            results[f"out/intra_{key}{i}"] = Partition(intra[camera == i])
        for name, weight in m.mix.items():
            clusters = m.n_inter if mode == "original" else len(feature)
            assigned = labels.inter(feature, scores, camera, weight, by(mode, "inter", clusters))
            results[f"out/inter_{key}_{name}"] = Partition(assigned)
    for i in np.unique(camera):
        distance = labels.cosine_distance(feature[camera == i])
        results[f"out/intra_rank_distance{i}"] = reranking.square(distance, **shared)
    for name, weight in m.mix.items():
        distance = labels.mixed_distance(feature, scores, camera, weight)
        results[f"out/inter_distance_{name}"] = distance
        results[f"out/inter_rank_distance_{name}"] = reranking.square(distance, **shared)
    few = feature[case.arrays["in/few_index"]]
    assigned = labels.intra(few, np.zeros(len(few), int), by("original", "intra", m.few["asked"]))
    return results | {"out/intra_few": Partition(assigned)}


def eval(case):
    """CMC and mAP from distances"""
    names = ("query_id", "gallery_id", "query_camera", "gallery_camera")
    ids = [case.arrays[f"in/{k}"] for k in names]
    ranked = ranking.rank_distances(np.asarray(case.input("distance")), *ids, max_rank=case.config.topk)
    return {"out/cmc": ranked.cmc, "out/mean_ap": ranked.mAP}
