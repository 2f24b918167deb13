"""What studies of several methods share: test people, pictures from normalised images."""

import jax.numpy as jnp
import numpy as np

from reid_jax.data import decode, degrade, images


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
