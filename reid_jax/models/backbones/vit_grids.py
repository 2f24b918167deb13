"""Grids of ViTs' patches: which one a file's positions have, and positions on another one."""

import math

import jax
import numpy as np

IMAGES = ((256, 128), (384, 128), (224, 224), (384, 384), (256, 256))  # customary, for the grids of files
STRIDES = (16, 12, 11, 14, 8)


def resized(positions, grid):
    """Positions [N,C] of a file's patches on a grid (h, w): [h,w,C]."""
    count, channels = positions.shape
    old = tuple(grid) if count == math.prod(grid) else grid_of(count, grid[0] / grid[1])
    positions = positions.reshape(*old, channels)
    if old == tuple(grid):
        return positions
    wide = np.asarray(positions, np.promote_types(positions.dtype, np.float32))
    return np.asarray(jax.image.resize(wide, (*grid, channels), "linear", antialias=False))


def grid_of(count, ratio=2.0):
    """(h, w) of so many patches: square, of a customary image, or the one whose h / w is nearest to ratio."""
    side = math.isqrt(count)
    if side * side == count:
        return side, side
    for size, stride in ((size, stride) for size in IMAGES for stride in STRIDES):
        grid = tuple((n - 16) // stride + 1 for n in size)
        if math.prod(grid) == count:
            return grid
    heights = [h for h in range(1, count + 1) if count % h == 0]
    height = min(heights, key=lambda h: abs(math.log(h * h / count / ratio)))
    return height, count // height


def patches(size, stride, patch=16):
    return math.prod((n - patch) // stride + 1 for n in size)
