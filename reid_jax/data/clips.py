"""Which frames of a tracklet make a clip."""

import numpy as np


def begin_crop(length, size):
    """Frame indices i64[size] of the quick test clip of a tracklet of `length` >= 1 frames (AP3D).

    From the first frame with the largest stride of 8, 4, 2, 1 that fits; a shorter tracklet is cycled.
    """
    for stride in (8, 4, 2, 1):
        if length > (size - 1) * stride:
            return np.arange(size) * stride
    return np.arange(size) % length
