"""Runners of visible against infrared: SYSU-MM01 and RegDB."""

import re

import numpy as np

from reid_jax.eval import cross_modal, ranking


def sysu_eval(case):
    """SYSU-MM01: CMC by persons, mAP, mINP, the camera rule"""
    sides = [np.asarray(case.input(k)) for k in ("query", "gallery", "q_pid", "g_pid", "q_cam", "g_cam")]
    found = cross_modal.rank(*sides, distance=case.config.distance, max_rank=case.config.max_rank)
    return {f"out/{k}": getattr(found, k) for k in ("cmc", "mAP", "mINP")}


def sysu_gallery(case):
    """SYSU-MM01: queries and the galleries of trials"""
    files = case.arrays["in/files"]
    cam, pid = (np.array([int(re.findall(r"\d+", f)[i]) for f in files]) for i in (0, 1))
    known = np.isin(pid, case.arrays["in/test_ids"])
    files, cam, pid = files[known], cam[known], pid[known]
    infrared = np.flatnonzero(np.isin(cam, (3, 6)))
    query = files[infrared[np.lexsort((files[infrared], cam[infrared], pid[infrared]))]]
    results = {}
    for mode in ("all", "indoor"):
        results[f"out/query_{mode}"] = query
        for trial in case.config.trials:
            rows = cross_modal.draw(pid, cam, files, cross_modal.CAMERAS[f"sysu-{mode}"], trial)
            results[f"out/gallery_{mode}_{trial}"] = files[rows]
    return results


def regdb_eval(case):
    """RegDB: both directions"""
    sides = {k: np.asarray(case.input(k)) for k in ("visible", "thermal")}
    pid, results = np.asarray(case.input("pid")), {}
    for query, gallery in (("visible", "thermal"), ("thermal", "visible")):
        labels = pid, pid, np.zeros_like(pid), np.ones_like(pid)
        options = dict(distance=case.config.distance, max_rank=case.config.max_rank, camera_filter=False)
        found = ranking.rank(sides[query], sides[gallery], *labels, **options)
        results |= {f"out/{query}_to_{gallery}/{k}": getattr(found, k) for k in ("cmc", "mAP", "mINP")}
    return results
