"""Labels of MMT and MEB-Net, on the host: clusters of the target, and how well each teacher has them."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import ConfigError
from reid_jax.fields import choice, within
from reid_jax.losses import contrast
from reid_jax.methods import _steps

CLUSTERINGS = ("kmeans", "minibatch", "dbscan")


def joined(features):
    """The sum of features f[N,D] of several networks, or all numbers beside each other where D differs."""
    if len({f.shape[1] for f in features}) == 1:
        return sum(features)
    array = jnp if isinstance(features[0], jax.Array) else np
    return array.concatenate(features, 1)


def joined_units(features):
    """(`joined` unit features, those of each network apart) of {net: f[N,D]}, on the host."""
    apart = [np.asarray(_steps.unit(f)) for f in features.values()]
    return joined(apart), *apart


def apart_by(sizes, centres):
    """Centres f[M,D] of `joined` features for networks of these sizes: [f[M,D_i]] of unit length."""
    if len(set(sizes)) == 1:
        return [centres] * len(sizes)
    return [np.asarray(_steps.unit(x)) for x in np.split(centres, np.cumsum(sizes)[:-1], 1)]


def weighed(features, fields, seed):
    """Authority f[K] of teachers with unit features [f[N,D_i]]: their scatter over its mean (MEB-Net)."""
    clusterings = [find_labels(f, fields, seed, fields.authority)[0] for f in features]
    scatters = np.array([scatter(f, labels) for f, labels in zip(features, clusterings, strict=True)])
    mean = scatters.mean()
    return scatters / mean if np.isfinite(mean) and mean > 0 else np.ones(len(scatters))


def scatter(features, labels):
    """How far clusters lie apart over how wide they are; features f[N,D], labels i[N] (-1: left out)."""
    clustered = labels >= 0
    f = features[clustered].astype(np.float64)
    names, labels = np.unique(labels[clustered], return_inverse=True)
    if len(names) < 2:
        return 0.0
    count, centres = np.bincount(labels)[:, None], np.zeros((len(names), f.shape[1]))
    np.add.at(centres, labels, f)
    centres /= count
    between = (count * (centres - centres.mean(0)) ** 2).sum()
    return float(between / ((f - centres[labels]) ** 2).sum())


def check(fields, images):
    """ConfigError for fields, config.mmt, of which no labels can be made; images: of the target, or None."""
    choice("mmt.cluster", fields.cluster, CLUSTERINGS)
    choice("mmt.jaccard", fields.jaccard, ("plain", "torchreid"))
    within("mmt", fields, rounds=(1, None), steps=(1, None), restarts=(1, None), clusters=(1, None))
    within("mmt", fields, rho=(0, 1), lambda_value=(0, 1))
    _steps.check_dbscan("mmt", fields)
    check_source(fields)
    if images is not None:
        check_clusters(fields, images)


def check_source(fields):
    """ConfigError where distances to the source cannot be mixed in."""
    if not fields.lambda_value:
        return
    if fields.cluster != "dbscan":
        raise ConfigError(
            f"config.mmt.lambda_value is {fields.lambda_value} and cluster {fields.cluster!r}, which has no "
            "distances to mix: set cluster=dbscan, or lambda_value=0"
        )
    if not fields.rho and fields.eps > 1 - fields.lambda_value:
        raise ConfigError(
            f"config.mmt.eps is {fields.eps}: with lambda_value={fields.lambda_value} images without common "
            f"neighbours may be {1 - fields.lambda_value:.3g} apart, and count as near: lower it, or set rho"
        )


def check_clusters(fields, images):
    """ConfigError when so many images cannot be so many clusters."""
    if "dbscan" not in (fields.cluster, fields.authority) and not 1 <= fields.clusters <= images:
        raise ConfigError(f"config.mmt.clusters is {fields.clusters}; the target has {images} images")


def find_labels(features, fields, seed, how="", eps=0.0, source=None):
    """(labels i32[N], -1: none; unit centres f32[M,D]; eps) of the target's features f[N,D], on the host.

    how: of CLUSTERINGS, "": fields.cluster. eps: DBSCAN's radius where a round before has found it, or 0.
    source: features f[S,D] for fields.lambda_value; without, distances to the source are left out.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if (how or fields.cluster) == "dbscan":
        return by_density(features, fields, eps, source)
    check_clusters(fields, len(features))
    options = dict(n_init=fields.restarts, random_state=seed % 2**32)
    estimator = MiniBatchKMeans if (how or fields.cluster) == "minibatch" else KMeans
    model = estimator(fields.clusters, **options).fit(features)
    return model.labels_.astype(np.int32), np.asarray(_steps.unit(model.cluster_centers_)), eps


def by_density(features, fields, eps, source=None):
    """`find_labels` by DBSCAN."""
    from reid_jax.eval import cluster

    distances = cluster.jaccard(features, k1=fields.k1, k2=fields.k2, form=fields.jaccard)
    if source is not None:
        away = cluster.source_distance(features, source)
        distances = cluster.with_source(distances, away, fields.lambda_value)
    if not fields.rho:
        eps = fields.eps
    elif not eps:
        eps = cluster.mean_of_smallest(distances, fields.rho)
    labels = cluster.dbscan(distances, eps, fields.min_samples)
    labels = cluster.largest(labels, fields.clusters, "config.mmt.clusters").astype(np.int32)
    return labels, contrast.centroids(features, labels, labels.max() + 1), eps
