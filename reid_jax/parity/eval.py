"""Runners of the cases `eval__*`: ranking at full size, re-ranking, clustering distances."""

import zlib

import numpy as np

from reid_jax.data.synthetic import features as seeded
from reid_jax.errors import DataError
from reid_jax.eval import cluster, expansion, ranking, rerank
from reid_jax.parity.compare import Partition, Within


def kreciprocal_rerank(case):
    """k-reciprocal re-ranking from distances, torchreid's and fast-reid's function"""
    distances = [np.asarray(case.input(k)) for k in ("q_g", "q_q", "g_g")]
    results = {}
    for k1, k2, weight in case.config.settings:
        reranked = rerank.from_distances(*distances, form="original", k1=k1, k2=k2, lambda_value=weight)
        results[f"out/k1_{k1}_k2_{k2}_lambda_{weight}"] = reranked
    return results


def rerank_torchreid(case):
    """re-ranking as torchreid's evaluation calls it"""
    return _rerank(case, "torchreid")


def rerank_fastreid(case):
    """re-ranking as fast-reid's evaluation has it"""
    return _rerank(case, "fastreid")


def _rerank(case, form):
    query, gallery = (np.asarray(case.input(k)) for k in ("qf", "gf"))
    return {
        f"out/{metric}_k1_{k1}_k2_{k2}_lambda_{weight}": rerank.from_features(
            query, gallery, distance=metric, form=form, k1=k1, k2=k2, lambda_value=weight
        )
        for metric in case.config.metrics
        for k1, k2, weight in case.config.settings
    }


def query_expansion(case):
    """fast-reid's query expansion, of query and gallery"""
    query, gallery = (np.asarray(case.input(k)) for k in ("qf", "gf"))
    results = {}
    for times, k, alpha in case.config.settings:
        sides = expansion.joint(query, gallery, k=k, alpha=alpha, times=times)
        results |= {f"out/{s}_times_{times}_k_{k}_alpha_{alpha}": f for s, f in zip("qg", sides, strict=True)}
    return results


def jaccard_dbscan(case):
    """Jaccard distance for clustering (SpCL) and DBSCAN on it"""
    features, m = np.asarray(case.input("features")), case.config
    results = {}
    for k1, k2 in m.settings:
        distances = cluster.jaccard(features, k1=k1, k2=k2)
        results[f"out/jaccard_k1_{k1}_k2_{k2}"] = distances.dense()
        for eps in m.eps:
            labels = cluster.dbscan(distances, eps, m.min_samples)
            results[f"out/dbscan_k1_{k1}_k2_{k2}_eps_{eps}"] = Partition(labels)
    return results


def market_size(case):
    """CMC, mAP, mINP of a problem of full size, drawn by its recipe"""
    m = case.config
    sizes = seeded.Sizes(m.q, m.g, m.ids, m.cams, m.distractors, m.dim)
    problem = seeded.make(sizes, case.meta.get("seed", 0))
    check_sums(problem, m.crc32)
    features = [problem.q_feat.astype(case.dtype), problem.g_feat.astype(case.dtype)]
    ranked = ranking.rank(*features, *problem[2:], distance="euclidean", max_rank=m.max_rank)
    results = {"mAP": ranked.mAP, "mINP": ranked.mINP, "cmc": ranked.cmc}
    results |= {"AP": ranked.ap[ranked.valid], "INP": ranked.inp[ranked.valid]}
    return {f"out/{k}": Within(np.asarray(v), 2e-6) for k, v in results.items()}


def check_sums(problem, recorded):
    """DataError unless the drawn arrays are those of the record."""
    ids = np.concatenate([problem.q_pid, problem.g_pid, problem.q_cam, problem.g_cam]).astype(np.int64)
    arrays = {"qf": problem.q_feat, "gf": problem.g_feat, "ids_cams_int64": ids}
    for name, array in arrays.items():
        if name in recorded and zlib.crc32(array.tobytes()) != recorded[name]:
            raise DataError(f"the problem drawn by the recipe has other {name} than the recorded one")
