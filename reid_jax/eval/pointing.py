"""Whether a heat map shows the body: maps laid over pictures by the centres of their cells."""

import numpy as np


def even(cells, size):
    """Pixels f[cells] of cells that share `size` pixels evenly; the first pixel's centre is 0."""
    return (np.arange(cells) + 0.5) * size / cells - 0.5


def at_pixels(heat, size, rows=None, columns=None):
    """Maps f[...,h,w] at the pixels of pictures of `size` (H, W): f64[...,H,W], linear between cell centres.

    rows f[h], columns f[w]: the centres in pixels, evenly spread by default. Beyond the outer ones a map
    keeps their value.
    """
    heat = np.asarray(heat, np.float64)
    rows, columns = (
        even(n, s) if centres is None else np.asarray(centres)
        for n, s, centres in zip(heat.shape[-2:], size, (rows, columns), strict=True)
    )
    return np.einsum("yi,...ij,xj->...yx", _weights(rows, size[0]), heat, _weights(columns, size[1]))


def _weights(centres, size):
    """f64[size,cells]: what each cell gives to each pixel."""
    pixels = np.arange(size)
    return np.stack([np.interp(pixels, centres, unit) for unit in np.eye(len(centres))], 1)


def correlation(heat, body):
    """Correlation over the pixels of each clip, of maps and silhouettes f[N,...]: f64[N]; 0 for flat ones."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (heat, body))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), size, out=np.zeros(len(a)), where=size > 1e-12)
