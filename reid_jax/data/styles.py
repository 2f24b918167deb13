"""Training images in the style of other cameras, beside the real ones: files NAME_fake_{a}to{b}.jpg.

NAME is a training image's, a its camera, b the camera whose style it was given.
"""

import dataclasses
import os
import re

import numpy as np

from reid_jax.errors import DataError

_STYLED = re.compile(r"(.+)_fake_[^_]+to[^_]+\.(jpe?g|png|bmp)", re.IGNORECASE)


def add(dataset, folder):
    """The Dataset with the style images of its training rows behind these, in the order of their names.

    They keep identity and camera of the real image. Every training record then has the label "style", 0 of a
    real one. Images of others (held out, or of no training row) are left out. DataError when the folder has
    none of the data set, or the rows' identities are hidden.
    """
    if any(r.pid < 0 for r in dataset.train):
        raise DataError("config.data.styles needs training rows with identities; leave it empty")
    if not os.path.isdir(folder):
        raise DataError(f"config.data.styles={folder} is no folder")
    real = {os.path.splitext(os.path.basename(r.path))[0]: r for r in dataset.train}
    styled = []
    for name in sorted(os.listdir(folder)):
        match = _STYLED.fullmatch(name)
        if match and match[1] in real:
            styled.append(labelled(real[match[1]], 1, path=os.path.join(folder, name)))
    if not styled:
        raise DataError(
            f"config.data.styles={folder} has no images of {dataset.name}: they are called as a training "
            "image with _fake_1to2 behind its name"
        )
    train = (*(labelled(r, 0) for r in dataset.train), *styled)
    return dataclasses.replace(dataset, train=train)


def labelled(record, style, **fields):
    """The record with the label "style"."""
    return dataclasses.replace(record, labels={**record.labels, "style": np.int32(style)}, **fields)
