"""Training batches in tests: settings of the data section, a few batches, their comparison."""

import itertools

import numpy as np

from reid_jax.config import defaults, namespace
from reid_jax.data import pipeline


def data_config(**fields):
    """The default data section in batches of 2 x 2, with some fields changed."""
    data = namespace(defaults()["data"])
    for k, v in {"ids": 2, "instances": 2, **fields}.items():
        setattr(data, k, v)
    return data


def take(dataset, data, count, seed=0, **kwargs):
    """The first `count` training batches."""
    with pipeline.train_batches(dataset, data, seed=seed, **kwargs) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(a, b):
    """The same batches, to the bit and the type."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name, strict=True)
