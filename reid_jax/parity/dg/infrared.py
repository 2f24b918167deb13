"""Runners of visible against infrared: SYSU-MM01 and RegDB."""

import dataclasses
import re

import numpy as np

from reid_jax.eval import cross_modal, ranking
from reid_jax.methods._steps import unit
from reid_jax.models import heads
from reid_jax.models.backbones.non_local import LinearNonLocal
from reid_jax.parity import nets


def sysu_eval(case):
    """SYSU-MM01: CMC by persons, mAP, mINP, the camera rule"""
    sides = [np.asarray(case.input(k)) for k in ("query", "gallery", "q_pid", "g_pid", "q_cam", "g_cam")]
    ranked = cross_modal.rank(*sides, distance=case.config.distance, max_rank=case.config.max_rank)
    return {f"out/{k}": getattr(ranked, k) for k in ("cmc", "mAP", "mINP")}


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
        ranked = ranking.rank(sides[query], sides[gallery], *labels, **options)
        results |= {f"out/{query}_to_{gallery}/{k}": getattr(ranked, k) for k in ("cmc", "mAP", "mINP")}
    return results


def agw_nonlocal(case):
    """AGW for infrared: non-local block, running statistics, gradients"""
    weights = {f"param/{k.replace('g.0.', 'g.')}": v for k, v in case.weights().items()}
    arrays = {k: v for k, v in case.arrays.items() if not k.startswith(("param/", "shape/"))}
    case = dataclasses.replace(case, arrays=arrays | weights)
    results = nets.module_results(case, LinearNonLocal(case.config.inner), case.train)
    theirs = {k: re.sub(r"(^|/)g\.", r"\1g.0.", k) for k in results}
    return {theirs[k]: v for k, v in results.items()}


def agw_net(case):
    """AGW for infrared: both stems in test mode, all rows in training mode"""
    m, entries = case.config, case.weights()
    blocks = [{k.split(".")[1] for k in entries if k.startswith(f"NL_{i}.")} for i in (1, 2, 3, 4)]
    inner = {v.shape[0] for k, v in entries.items() if k.endswith("theta.weight")} or {1}
    pool = "power_mean" if _on(m.gm_pool) else "avg"
    fields = dict(backbone="two_stream_resnet50", second_stem=(1,), last_stride=m.last_stride, pool=pool)
    fields |= dict(nl_blocks=tuple(map(len, blocks)), nl_inner=inner.pop(), neck="bnneck")
    net = heads.build(fields, m.num_classes, num_cams=2)
    sides = [nets.channels_last(case.input(k)) for k in ("visible", "thermal")]
    variables = nets.net_variables(case, net, sides[0], optional=())
    encoder, results = heads.encoder(net), {}
    tested = nets.quickly(lambda x, camera: encoder.apply(variables, x, False, None, camera)[0])
    for i, name in enumerate(("visible", "thermal")):
        branches = tested(sides[i], np.full(len(sides[i]), i))
        results[f"{name}_pool"] = unit(branches.before_bn[0])
        results[f"{name}_neck"] = unit(branches.after_bn[0])

    def joined(net, *sides):
        return net.of_map(net.base.shared(net.base.both(*sides, True), True), True)

    options = dict(method=joined, mutable=["batch_stats"])
    branches, _ = nets.quickly(lambda *sides: net.apply(variables, *sides, **options))(*sides)
    results |= {"train_pool": branches.before_bn[0], "train_logits": branches.logits[0]}
    return nets.out(results)


def _on(value):
    return value is True or value == "on"
