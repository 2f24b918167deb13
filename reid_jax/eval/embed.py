"""Features of all images of a list, batch by batch."""

import numpy as np

from reid_jax.errors import DataError

_ROWS = ("mask", "index", "frames")


def embed(embed_fn, batches):
    """Runs embed_fn over evaluation batches; returns the unpadded rows, f32[N,D], in order.

    embed_fn: {name: array [B,...]} -> [B,D], usually a compiled function that returns at once.
    batches: iterable of {"image": u8[B,H,W,3], "mask": bool[B], ...}; embed_fn gets all but the mask and
    what tells the rows apart (index, frames).
    Raises DataError when there is no batch.
    """
    return joined(each(embed_fn, batches))


def each(embed_fn, batches):
    """Yields the unpadded rows of each batch, f32[n,D], as `embed` has them.

    The next batch is dispatched before the result of the last one is fetched, so that the device works while
    the host decodes and copies.
    """
    waiting = None
    for batch in batches:
        known = {name: array for name, array in batch.items() if name not in _ROWS}
        ahead = embed_fn(known), np.asarray(batch["mask"], bool)
        if waiting is not None:
            yield _fetch(*waiting)
        waiting = ahead
    if waiting is not None:
        yield _fetch(*waiting)


def joined(parts):
    """f32[N,D] of an iterable of f32[n,D]; DataError when there is none."""
    parts = list(parts)
    if not parts:
        raise DataError("there are no images to embed")
    return np.concatenate(parts)


def _fetch(feature, mask):
    return np.asarray(feature, np.float32)[mask]
