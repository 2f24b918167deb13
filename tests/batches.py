"""Training batches in tests: settings of the data section, a few batches, their comparison."""

import itertools

import numpy as np

from reid_jax.config import defaults, namespace
from reid_jax.data import streams
from reid_jax.data.rows import rows_of


def data_config(**fields):
    """The default data section in batches of 2 x 2, with some fields changed."""
    data = namespace(defaults()["data"])
    for k, v in {"ids": 2, "instances": 2, **fields}.items():
        setattr(data, k, v)
    return data


def opened(dataset, data, seed=0, first_step=0, shard=(0, 1), build=streams.pk, **options):
    """Iterator over the batches of the labelled rows; build, options: a constructor of streams and more."""
    return build(rows_of(dataset)[0], data, seed, **options).open(dataset, data, first_step, shard)


def take(dataset, data, count, seed=0, **options):
    """The first `count` training batches; options as for `opened`."""
    with opened(dataset, data, seed, **options) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(a, b):
    """The same batches, to the bit and the type."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name, strict=True)
