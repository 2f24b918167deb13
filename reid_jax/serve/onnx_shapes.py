"""How a jaxpr's operations on shapes, its sums and its products are written in ONNX; see `serve.onnx`.

A tensor may hold its axes in another order than the jaxpr's (`Value.order`) and axes it is broadcast along
with one entry (`Value.lazy`), so that maps stay NCHW and nothing is transposed in between.
"""

import dataclasses
import string
from typing import Any

import numpy as np

from reid_jax.errors import ConfigError

BATCH = 10007  # of the trace, a prime: axes that it divides grow with the batch
_NCHW = (0, 3, 1, 2)


@dataclasses.dataclass(eq=False)
class Conv:
    """A convolution whose weights may still take in what follows; open: nothing else sees its output."""

    node: Any
    weight: np.ndarray  # f64[O,I,...]
    bias: np.ndarray  # f64[O]
    open: bool = True


@dataclasses.dataclass(eq=False)
class Value:
    """A constant, or the tensor `name` whose axis i is the jaxpr's axis order[i]."""

    shape: tuple  # the jaxpr's
    name: str = ""
    const: Any = None  # in the jaxpr's order, axes of `lazy` with one entry
    order: tuple = ()
    lazy: frozenset = frozenset()  # axes of the jaxpr that have one entry here and more there
    conv: Conv | None = None


class Shapes:
    """Mixin of the Emitter: the handlers on_PRIMITIVE(eqn, *values) -> Value."""

    # ---- shapes
    def on_broadcast_in_dim(self, eqn, x, *_):
        shape, places = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
        new = [a for a in range(len(shape)) if a not in places]
        stored = {p: 1 if a in x.lazy else x.shape[a] for a, p in enumerate(places)}
        lazy = frozenset(a for a, s in enumerate(shape) if stored.get(a, 1) != s)
        if x.const is not None:
            array = np.expand_dims(x.const, tuple(new))
            if not any(s % BATCH == 0 for s in shape):
                return constant_value(np.broadcast_to(array, shape))
            return Value(shape, const=array, lazy=lazy)
        order = with_ones([places[a] for a in x.order], len(shape))
        name = x.name
        if new:
            name = self.node("Unsqueeze", [name, self.ints(sorted(order.index(a) for a in new))])
        return Value(shape, name, order=order, lazy=lazy)

    def on_iota(self, eqn):
        shape, axis = eqn.params["shape"], eqn.params["dimension"]
        if shape[axis] % BATCH == 0:
            raise unsupported("numbers of the pictures of a batch")
        array = np.arange(shape[axis], dtype=eqn.params["dtype"])
        array = array.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        return Value(
            shape, const=array, lazy=frozenset(a for a, s in enumerate(shape) if array.shape[a] != s)
        )

    def on_transpose(self, eqn, x):
        to = eqn.params["permutation"]
        x, shape = self.tensor(x), tuple(x.shape[a] for a in to)
        moved = frozenset(to.index(a) for a in x.lazy)
        return Value(shape, x.name, order=tuple(to.index(a) for a in x.order), lazy=moved)

    def tensor(self, x):
        """A value that is no constant."""
        if x.const is None:
            return x
        order = tuple(range(len(x.shape)))
        return Value(x.shape, self.constant(x.const), order=order, lazy=x.lazy)

    def on_reshape(self, eqn, x, *_):
        x, shape = self.full(x), eqn.outvars[0].aval.shape
        seen = [a for a in x.order if x.shape[a] != 1]
        groups = regrouped(x.shape, shape)
        firsts = {old[0]: (old, new) for old, new in groups if old}
        sequence, place = [], 0
        while place < len(seen) and seen[place] in firsts:
            old, new = firsts[seen[place]]
            if seen[place : place + len(old)] != old:
                break
            sequence, place = sequence + new, place + len(old)
        if place < len(seen):  # the axes do not lie as they are joined
            x = Value(x.shape, self.named(x, tuple(range(len(x.shape)))))
            order = tuple(range(len(shape)))
        else:
            order = with_ones(sequence, len(shape))
        name = self.node("Reshape", [x.name, self.dims([shape[a] for a in order])])
        return Value(shape, name, order=order)

    on_squeeze = on_expand_dims = on_reshape

    def on_concatenate(self, eqn, *values):
        values, shape = [self.full(v) for v in values], eqn.outvars[0].aval.shape
        names, order, _ = self.joined(values, shape)
        axis = order.index(eqn.params["dimension"])
        return Value(shape, self.node("Concat", names, axis=axis), order=order)

    def on_stack(self, eqn, *values):
        shape, axis, values = eqn.outvars[0].aval.shape, eqn.params["axis"], [self.full(v) for v in values]
        names, order, _ = self.joined(values, values[0].shape)
        order = with_ones([a + (a >= axis) for a in order], len(shape))
        place = order.index(axis)
        names = [self.node("Unsqueeze", [name, self.ints([place])]) for name in names]
        return Value(shape, self.node("Concat", names, axis=place), order=order)

    def on_unstack(self, eqn, x):
        axis, x = eqn.params["axis"], self.full(self.tensor(x))
        parts = self.parts(x, axis, [1] * x.shape[axis])
        return [self.without(p, (axis,), v.aval.shape) for p, v in zip(parts, eqn.outvars, strict=True)]

    def on_split(self, eqn, x):
        return self.parts(x, eqn.params["axis"], eqn.params["sizes"])

    def parts(self, x, axis, sizes):
        """Slices of these sizes along an axis, one after the other."""
        pieces = []
        for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True):
            starts, shape = [0] * len(x.shape), list(x.shape)
            starts[axis], shape[axis] = end - size, size
            pieces.append(self.window(x, starts, shape))
        return pieces

    def on_slice(self, eqn, x):
        p = eqn.params
        return self.sliced(x, p["start_indices"], p["limit_indices"], p["strides"])

    def on_dynamic_slice(self, eqn, x, *starts):
        if any(s.const is None for s in starts):
            raise unsupported("a slice whose start depends on the picture")
        return self.window(x, [int(s.const) for s in starts], eqn.params["slice_sizes"])

    def window(self, x, starts, sizes):
        """A part of these sizes, from starts that are moved into the array where they leave it, as in jax."""
        starts = [min(max(s, 0), n - z) for s, n, z in zip(starts, x.shape, sizes, strict=True)]
        return self.sliced(x, starts, [s + z for s, z in zip(starts, sizes, strict=True)])

    def sliced(self, x, starts, ends, steps=None):
        """x[start:end:step] along every axis."""
        x, rows, steps = self.tensor(x), [], steps or (1,) * len(x.shape)
        shape = tuple(len(range(*part)) for part in zip(starts, ends, steps, strict=True))
        for axis, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True)):
            if (start, end, step) != (0, x.shape[axis], 1) and axis not in x.lazy:
                if x.shape[axis] % BATCH == 0:
                    raise unsupported("a part of the batch")
                rows.append((start, end, x.order.index(axis), step))
        columns = (self.ints(column) for column in zip(*rows, strict=True))
        name = self.node("Slice", [x.name, *columns]) if rows else x.name
        return Value(shape, name, order=x.order, lazy=x.lazy & {a for a, s in enumerate(shape) if s != 1})

    def on_rev(self, eqn, x):
        x = self.tensor(x)
        axes = [x.order.index(a) for a in eqn.params["dimensions"] if a not in x.lazy]
        ends = [[-1] * len(axes), [np.iinfo(np.int64).min + 1] * len(axes), axes, [-1] * len(axes)]
        return Value(x.shape, self.node("Slice", [x.name, *map(self.ints, ends)]), order=x.order, lazy=x.lazy)

    def on_gather(self, eqn, x, indices):
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        gone, mapped = numbers.collapsed_slice_dims, numbers.start_index_map
        if getattr(numbers, "operand_batching_dims", ()):
            raise unsupported("a gather within each picture")
        shape, kept = eqn.outvars[0].aval.shape, [a for a in range(len(x.shape)) if a not in gone]
        if indices.const is not None and np.ndim(indices.const) == 1:  # one window
            starts = dict(zip(mapped, np.asarray(indices.const).tolist(), strict=True))
            x = self.window(x, [starts.get(a, 0) for a in range(len(x.shape))], sizes)
            return self.without(self.full(x), gone, shape)
        if set(gone) != set(mapped) or any(sizes[a] != x.shape[a] for a in kept):
            raise unsupported("this sort of gather")
        x, sizes = self.full(self.tensor(x)), [x.shape[a] for a in gone]
        name = self.named(x, (*gone, *kept))
        if len(gone) > 1:  # one axis of them all, and places along it
            dims = self.dims([int(np.prod(sizes)), *(x.shape[a] for a in kept)])
            name = self.node("Reshape", [name, dims])
        places = self.places(indices, [mapped.index(a) for a in gone], sizes)
        order = [a for a in range(len(shape)) if a not in numbers.offset_dims] + list(numbers.offset_dims)
        return Value(shape, self.node("Gather", [name, places], axis=0), order=tuple(order))

    def places(self, indices, columns, sizes):
        """The name of the places [...] of indices [..., axis], along axes of these sizes joined to one."""
        if indices.const is not None:
            array = np.asarray(indices.const)
            return self.ints(np.ravel_multi_index(tuple(array[..., c] for c in columns), sizes, mode="clip"))
        if len(sizes) > 1:
            raise unsupported("a gather along several axes whose places depend on the picture")
        last = len(indices.shape) - 1  # they lie within the axis: of argmax, say
        name = self.named(self.full(indices), tuple(range(last + 1)))
        return self.node("Squeeze", [name, self.ints([last])])

    def without(self, x, axes, shape):
        """x without axes of one entry."""
        if not axes:
            return x
        name = self.node("Squeeze", [x.name, self.ints(sorted(x.order.index(a) for a in axes))])
        return fewer(x, axes, name, shape)

    def on_pad(self, eqn, x, value):
        rows = eqn.params["padding_config"]
        if value.const is None or any(low < 0 or high < 0 or inner for low, high, inner in rows):
            raise unsupported("padding between the entries, or by less than nothing")
        x = self.full(self.tensor(x))
        pads = [rows[a][side] for side in (0, 1) for a in x.order]
        name = self.node("Pad", [x.name, self.ints(pads), self.named(value, ())])
        return Value(eqn.outvars[0].aval.shape, name, order=x.order)

    # ---- sums and products
    def reduce(self, op, x, axes, shape):
        x = self.full(x) if x.lazy & set(axes) else x
        x = self.tensor(x)
        places = sorted(x.order.index(a) for a in axes)
        if op == "ReduceSum" or self.opset >= 18:
            name = self.node(op, [x.name, self.ints(places)], keepdims=0)
        else:
            name = self.node(op, [x.name], axes=places, keepdims=0)
        return fewer(x, axes, name, shape)

    def on_argmax(self, eqn, x):
        x, axes = self.full(x), eqn.params["axes"]
        name = self.node("ArgMax", [x.name], axis=x.order.index(axes[0]), keepdims=0)
        return self.cast(fewer(x, axes, name, eqn.outvars[0].aval.shape), eqn.params["index_dtype"])

    def on_dot_general(self, eqn, a, b):
        (of_a, of_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
        shape, a, b = eqn.outvars[0].aval.shape, self.full(a), self.full(b)
        free = [i for i in range(len(a.shape)) if i not in of_a]
        if b.const is not None and b.const.ndim == 2 and not batch_a and a.order[-1:] == tuple(of_a):
            matrix = b.const if tuple(of_b) == (0,) else b.const.T
            order = (*(free.index(i) for i in a.order[:-1]), len(shape) - 1)
            return Value(shape, self.node("MatMul", [a.name, self.constant(matrix)]), order=order)
        a, b, letters = self.tensor(a), self.tensor(b), iter(string.ascii_lowercase)
        left = [next(letters) for _ in a.shape]
        shared = dict(zip((*of_b, *batch_b), (*of_a, *batch_a), strict=True))
        right = [left[shared[i]] if i in shared else next(letters) for i in range(len(b.shape))]
        out = [left[i] for i in batch_a] + [left[i] for i in free if i not in batch_a]
        out += [right[i] for i in range(len(b.shape)) if i not in shared]
        sides = ["".join(side[i] for i in x.order) for side, x in ((left, a), (right, b))]
        name = self.node("Einsum", [a.name, b.name], equation=f"{sides[0]},{sides[1]}->{''.join(out)}")
        return Value(shape, name, order=tuple(range(len(shape))))

    def on_conv_general_dilated(self, eqn, x, kernel):
        p, numbers = eqn.params, eqn.params["dimension_numbers"]
        if kernel.const is None or any(d != 1 for d in p["lhs_dilation"]) or p["batch_group_count"] != 1:
            raise unsupported("a convolution with kernels of the picture, or a transposed one")
        weight = np.asarray(self.dense(kernel), np.float64).transpose(numbers.rhs_spec)
        pads = [pair[side] for side in (0, 1) for pair in p["padding"]]
        options = dict(strides=p["window_strides"], pads=pads, dilations=p["rhs_dilation"])
        options |= dict(group=p["feature_group_count"], kernel_shape=weight.shape[2:])
        if min(pads) < 0:
            raise unsupported("a convolution padded by less than nothing")
        given = self.named(self.full(x), tuple(numbers.lhs_spec))
        name = self.node("Conv", [given], **options)
        self.convs.append(conv := Conv(self.nodes[-1], weight, np.zeros(len(weight))))
        return Value(eqn.outvars[0].aval.shape, name, order=tuple(numbers.out_spec), conv=conv)

    def dense(self, value):
        """A constant of its true shape."""
        return np.broadcast_to(value.const, value.shape)

    def pooled(self, eqn, op, x, **options):
        """A pooling over all axes but the first and last."""
        p, rank = eqn.params, len(x.shape)
        ends, middle = (0, rank - 1), tuple(range(1, rank - 1))
        if any(p["window_dimensions"][a] != 1 for a in ends) or any(d != 1 for d in p["base_dilation"]):
            raise unsupported("pooling over pictures or channels")
        pads = [p["padding"][a][side] for side in (0, 1) for a in middle]
        options |= dict(
            kernel_shape=p["window_dimensions"][1:-1], strides=p["window_strides"][1:-1], pads=pads
        )
        order = (*ends, *middle)
        name = self.node(op, [self.named(self.full(x), order)], **options)
        return Value(eqn.outvars[0].aval.shape, name, order=order)

    def on_reduce_window_max(self, eqn, x):
        return self.pooled(eqn, "MaxPool", x, dilations=eqn.params["window_dilation"][1:-1])

    def on_reduce_window_sum(self, eqn, x):
        mean = self.pooled(eqn, "AveragePool", x, count_include_pad=1)
        count = constant_value(np.float32(np.prod(eqn.params["window_dimensions"])))
        return self.made("Mul", mean, count)


def constant_value(array):
    """Value of a numpy array."""
    return Value(array.shape, const=array)


def fewer(x, axes, name, shape):
    """Value of what is left of x in the tensor `name`, which lacks some axes."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    order = tuple(kept.index(a) for a in x.order if a in kept)
    return Value(shape, name, order=order, lazy=frozenset(kept.index(a) for a in x.lazy - set(axes)))


def with_ones(sequence, rank):
    """An order of all axes in which those of `sequence` come as they do there; NCHW where that is one."""
    candidates = ([_NCHW] if rank == 4 else []) + [tuple(range(rank))]
    for order in candidates:
        if [a for a in order if a in sequence] == list(sequence):
            return order
    return (*sequence[:1], *(a for a in range(rank) if a not in sequence), *sequence[1:])


def regrouped(old, new):
    """[(axes of old, axes of new), ...] of equal products, axes of one entry left out, for a reshape."""
    old_axes, new_axes = ([a for a, s in enumerate(shape) if s != 1] for shape in (old, new))
    groups, i, j = [], 0, 0
    while i < len(old_axes):
        left, right, a, b = [old_axes[i]], [new_axes[j]], old[old_axes[i]], new[new_axes[j]]
        while a != b:
            if a < b:
                i += 1
                left, a = [*left, old_axes[i]], a * old[old_axes[i]]
            else:
                j += 1
                right, b = [*right, new_axes[j]], b * new[new_axes[j]]
        groups, i, j = [*groups, (left, right)], i + 1, j + 1
    return groups


def unsupported(operation):
    """The error for what has no counterpart in ONNX here."""
    return ConfigError(
        f"this net cannot be written as ONNX: it has {operation}; export with --formats=safetensors,stablehlo"
    )
