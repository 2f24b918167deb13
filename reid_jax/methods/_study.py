"""What studies of several methods share: test people, their pictures and bodies, generated pictures."""

import jax.numpy as jnp
import numpy as np

from reid_jax.data import decode, degrade, images
from reid_jax.data.synthetic.bodies import Bodies
from reid_jax.errors import ConfigError
from reid_jax.eval import pointing

OUTLINE = {  # figures of `outlines`, for a method's STUDY
    "outline": ("Edges on the body's outline", "correlation with the silhouette's edges, on drawn sets"),
    "outline_real": ("The same of real pictures", "what a generator that moves nothing would reach"),
}


def one_each(records):
    """One record of each identity in the order of the list, distractors and junk left out.

    The k-th identity's k-th one, cyclic, so that all cameras are there.
    """
    by_pid = {}
    for r in records:
        if r.pid > 0:
            by_pid.setdefault(r.pid, []).append(r)
    return [shown[k % len(shown)] for k, shown in enumerate(by_pid.values())]


def pictures(records, data):
    """u8[N,H,W,3] of records at the size of config.data, bicubic."""
    pixels = decode.Pixels.of(data)
    originals = (images.original(r.path, pixels) for r in records)
    return np.stack([degrade.enlarge(p, data.height, data.width) for p in originals])


def table(first, rows, cells):
    """u8[R+1,C+1,H,W,3]: `cells` [R,C,...] with `rows` [R,...] to its left and `first` [C,...] above."""
    top = np.concatenate([np.full_like(rows[:1], 255), first])
    return np.stack([top, *(np.concatenate([r[None], line]) for r, line in zip(rows, cells, strict=True))])


def picture(config, x):
    """Normalised images as levels 0 to 255, f32."""
    mean, std = (jnp.asarray(v, jnp.float32) for v in (config.data.mean, config.data.std))
    return 255 * jnp.clip(x.astype(jnp.float32) * std + mean, 0, 1)


def silhouettes(dataset, records, data):
    """f32[N,H,W]: the bodies of records at the size of config.data; None where the set is not drawn."""
    try:
        known = Bodies(dataset.root)
    except ConfigError:
        return None
    return known.silhouettes([r.path for r in records], data.height, data.width)


def outlines(pictures, bodies):
    """f64[N]: how far the edges of pictures [N,H,W,3] are those of silhouettes [N,H,W], a correlation."""
    return pointing.correlation(edges(np.asarray(pictures, np.float64).mean(-1)), edges(bodies))


def edges(maps):
    """Length of the gradient of maps f[N,H,W]."""
    return np.hypot(*np.gradient(np.asarray(maps, np.float64), axis=(1, 2)))
