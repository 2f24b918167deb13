"""Weights in and out: flax variables <-> PyTorch's state dictionaries, in the layouts and files of the field.

`names` has the key layouts, `wrapped` finds the network among what is around it, `mapping` fills variables
and writes them under a layout's keys, `files` reads and writes files, `archives` opens PyTorch's own and
`pickles` reads what they say, without running anything in them.
"""

from reid_jax.models.weights.files import Weights, read, save
from reid_jax.models.weights.mapping import (
    exponent_of,
    fill,
    from_torch,
    implied,
    leaves,
    listing,
    load,
    load_file,
    nested,
    to_torch,
)
from reid_jax.models.weights.names import ALSO, STEMS, guess, keys, layouts, strip, targets, torch_key
from reid_jax.models.weights.wrapped import recognise

__all__ = [
    "ALSO",
    "STEMS",
    "Weights",
    "exponent_of",
    "fill",
    "from_torch",
    "guess",
    "implied",
    "keys",
    "layouts",
    "leaves",
    "listing",
    "load",
    "load_file",
    "nested",
    "read",
    "recognise",
    "save",
    "strip",
    "targets",
    "to_torch",
    "torch_key",
]
