"""What tests look at in a loaded data set."""

import os

from reid_jax.data import datasets
from reid_jax.data.loaders.common import Options


def load(name, root, **options):
    """Data set `name` in a folder."""
    return datasets.load_folder(name, root, Options(**options))


def labels(records):
    """[(pid, camid)]"""
    return [(r.pid, r.camid) for r in records]


def files(records):
    """Names of the pictures."""
    return [os.path.basename(r.path) for r in records]
