"""Where the cells of a network's map are centred in its picture, from its strides and padding.

A window of span k, stride s and padding p moves cell i's centre to s i + (k - 1) / 2 - p cells of the map
before. The windows are read off the traced program of any function, whatever the network calls its layers.
"""

from typing import NamedTuple

import jax
import numpy as np

from reid_jax.models import layers

_POOLS = ("reduce_window_max", "reduce_window_sum", "reduce_window")


class Window(NamedTuple):
    """A convolution or pooling along height and width."""

    before: tuple
    after: tuple
    span: tuple
    stride: tuple
    padding: tuple  # before the first entry


def windows(function, *args):
    """[Window] of function(*args) in the order of the program; args: arrays or their shapes."""
    with layers.form("plain"):
        return list(_windows(jax.make_jaxpr(function)(*args).jaxpr))


def centres(spans, size, shape):
    """(rows f64[h], columns f64[w]) of the cells of a map (h, w), in pixels; the first pixel's centre is 0.

    spans: `windows` of what makes the map of a picture of `size` (H, W). Cells share the picture evenly where
    no chain of windows leads from the one to the other.
    """
    return tuple(_line(spans, axis, size[axis], shape[axis]) for axis in (0, 1))


def _line(spans, axis, size, cells):
    chain = _chain(spans, axis, size, cells, 1.0, 0.0, ())
    scale, first = chain or (size / cells, (size / cells - 1) / 2)
    return first + scale * np.arange(cells)


def _chain(spans, axis, size, cells, scale, first, seen):
    """(pixels from cell to cell, pixel of cell 0) by the first chain that leads to so many cells, or None."""
    if size == cells:
        return scale, first
    for w in spans:
        if w.before[axis] != size or w.after[axis] in (size, *seen):
            continue
        start = first + scale * ((w.span[axis] - 1) / 2 - w.padding[axis])
        end = _chain(spans, axis, w.after[axis], cells, scale * w.stride[axis], start, (*seen, size))
        if end:
            return end
    return None


def _windows(jaxpr):
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _windows(getattr(inner, "jaxpr", inner))
        if eqn.primitive.name == "conv_general_dilated":
            yield _of_convolution(eqn)
        elif eqn.primitive.name in _POOLS and eqn.invars[0].aval.ndim > 3:
            yield _of_pool(eqn)


def _is_program(x):
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


def _of_convolution(eqn):
    p, image, out = eqn.params, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    numbers = p["dimension_numbers"]
    kernel = [eqn.invars[1].aval.shape[d] for d in numbers.rhs_spec[-2:]]
    dilation = p["rhs_dilation"][-2:]
    return Window(
        tuple(image[d] for d in numbers.lhs_spec[-2:]),
        tuple(out[d] for d in numbers.out_spec[-2:]),
        tuple(1 + d * (k - 1) for k, d in zip(kernel, dilation, strict=True)),
        tuple(p["window_strides"][-2:]),
        tuple(low for low, _ in p["padding"][-2:]),
    )


def _of_pool(eqn):
    p, place = eqn.params, slice(-3, -1)
    low = tuple(a for a, _ in p["padding"][place])
    shapes = (eqn.invars[0].aval.shape[place], eqn.outvars[0].aval.shape[place])
    return Window(*shapes, tuple(p["window_dimensions"][place]), tuple(p["window_strides"][place]), low)
