"""What methods of rounds share on the host: clusters by density, a camera's proxies of each."""

import logging

import numpy as np

from reid_jax.losses import contrast

log = logging.getLogger(__name__)


def crosses_cameras(config):
    """Whether groups of the "gallery" sampler are drawn across cameras, which are then read."""
    return config.data.cross_camera


def clusters(features, fields, name) -> np.ndarray:
    """Labels i32[N] of features f[N,D]: DBSCAN on the Jaccard distance; -1: outlier.

    fields: config.NAME with k1, k2, eps, min_samples and max_clusters, of which the largest are kept.
    """
    from reid_jax.eval import cluster  # scikit-learn is not needed for the steps

    distances = cluster.jaccard(features, k1=fields.k1, k2=fields.k2, progress=True)
    labels = cluster.dbscan(distances, fields.eps, fields.min_samples)
    return cluster.largest(labels, fields.max_clusters, f"config.{name}.max_clusters").astype(np.int32)


def proxies(features, labels, camid, places, name):
    """Unit means of what every camera shows of every cluster, see `CAP`; host arrays, -1: unused place.

    features f[N,D], labels i[N] (-1: none), camid i[N] -> {"proxies": f32[places,D], "proxy_cluster",
    "proxy_camera": i32[places]}. Of more than places those of the largest clusters are kept, with a warning
    that names config.NAME.
    """
    clustered, cameras = labels >= 0, camid.max(initial=0) + 1
    keys, inverse = np.unique(labels[clustered] * cameras + camid[clustered], return_inverse=True)
    if len(keys) > places:
        log.warning("%d proxies, of which %d are kept (config.%s.max_proxies)", len(keys), places, name)
    order = np.argsort(-np.bincount(labels[clustered])[keys // cameras], kind="stable")[:places]
    chosen, number, place = np.sort(order), np.full(len(keys), -1), np.full(len(labels), -1)
    number[chosen] = np.arange(len(chosen))
    place[clustered], keys = number[inverse], keys[chosen]
    unused = (0, places - len(keys))
    sides = [np.pad(x.astype(np.int32), unused, constant_values=-1) for x in np.divmod(keys, cameras)]
    names = ("proxies", "proxy_cluster", "proxy_camera")
    return dict(zip(names, (contrast.centroids(features, place, places), *sides), strict=True))
