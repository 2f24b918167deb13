"""Features of all images of a list, batch by batch."""

import numpy as np

from reid_jax.errors import DataError


def embed(embed_fn, batches):
    """Runs embed_fn over evaluation batches; returns the unpadded rows, f32[N,D], in order.

    embed_fn: image u8[B,H,W,3] -> [B,D], usually a compiled function that returns at once.
    batches: iterable of {"image": u8[B,H,W,3], "mask": bool[B]}.
    The next batch is dispatched before the result of the last one is fetched, so that the device
    works while the host decodes and copies. Raises DataError when there is no batch.
    """
    parts, waiting = [], None
    for batch in batches:
        ahead = embed_fn(batch["image"]), np.asarray(batch["mask"], bool)
        if waiting is not None:
            parts.append(_fetch(*waiting))
        waiting = ahead
    if waiting is None:
        raise DataError("there are no images to embed")
    parts.append(_fetch(*waiting))
    return np.concatenate(parts)


def _fetch(feature, mask):
    return np.asarray(feature, np.float32)[mask]
