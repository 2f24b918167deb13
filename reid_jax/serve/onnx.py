"""ONNX from a function's jaxpr: one definition of the net, and no list of layers.

What does not depend on the input is computed here; constants per channel behind a convolution go into its
weights, in float64. Maps stay NCHW, see `serve.onnx_shapes`. The function is traced with a batch of a large
prime, by which axes that grow with the batch are known.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from reid_jax.errors import ConfigError
from reid_jax.serve.onnx_shapes import BATCH, Shapes, Value, constant_value, unsupported

OPSETS = range(13, 23)
_INNER = ("call_jaxpr", "jaxpr", "fun_jaxpr", "call")  # parameters that hold the jaxpr of a call
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_lin")
_CALLS += ("custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call")
_SAME = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision", "sharding_constraint")
_SIMPLE = dict(add="Add", add_any="Add", sub="Sub", mul="Mul", div="Div", max="Max", min="Min", pow="Pow")
_SIMPLE |= dict(exp="Exp", log="Log", tanh="Tanh", sqrt="Sqrt", neg="Neg", abs="Abs", sign="Sign", erf="Erf")
_SIMPLE |= dict(eq="Equal", gt="Greater", ge="GreaterOrEqual", lt="Less", le="LessOrEqual", floor="Floor")
_SIMPLE |= {"logistic": "Sigmoid", "and": "And", "or": "Or", "not": "Not", "ceil": "Ceil"}
_REDUCE = dict(reduce_sum="ReduceSum", reduce_max="ReduceMax", reduce_min="ReduceMin")
_ONE = constant_value(np.float32(1))
_WRITTEN = {  # as several operations, of the emitter and the values
    "rsqrt": lambda e, x: e.made("Reciprocal", e.made("Sqrt", x)),
    "square": lambda e, x: e.made("Mul", x, x),
    "erfc": lambda e, x: e.made("Sub", _ONE, e.made("Erf", x)),
    "log1p": lambda e, x: e.made("Log", e.made("Add", x, _ONE)),
    "rem": lambda e, x, y: e.made("Mod", x, y, fmod=1),  # the sign of x, as in C
    "ne": lambda e, x, y: e.made("Not", e.made("Equal", x, y)),
    "clamp": lambda e, low, x, high: e.made("Min", e.made("Max", x, low), high),
}


def export(function, shape, dtype, *, name, output, order=None, opset=17, metadata=None):
    """onnx.ModelProto of a function of one array [batch, *shape] whose axes lie in `order`.

    ConfigError for an opset that is not among OPSETS, a missing package or what cannot be written in ONNX.
    """
    check_opset(opset)
    import onnx

    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((BATCH, *shape), dtype))
    emitter = Emitter(onnx, opset, name)
    order = order or tuple(range(1 + len(shape)))
    given = Value((BATCH, *shape), name, order=order)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        (result,) = emitter.inline(closed.jaxpr, closed.consts, [given])
    return emitter.model(given, np.dtype(dtype), result, output, metadata or {})


def check_opset(opset):
    """ConfigError for an opset that is not among OPSETS."""
    if opset not in OPSETS:
        raise ConfigError(f"--opset={opset}; it must be from {OPSETS[0]} to {OPSETS[-1]}")


class Emitter(Shapes):
    """Nodes and initialisers of a graph."""

    def __init__(self, onnx, opset, source):
        self.onnx, self.opset, self.source = onnx, opset, source
        self.nodes, self.constants, self.convs, self.kept = [], {}, [], {}

    # ---- graph
    def node(self, op, inputs, **attributes):
        """The name of a new node's output."""
        out = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [out], out, **attributes))
        return out

    def constant(self, array):
        """The name of an initialiser; equal ones are kept once (nets that see the mirror image too)."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self.kept:
            self.kept[key] = f"constant_{len(self.constants)}"
            self.constants[self.kept[key]] = array
        return self.kept[key]

    def ints(self, numbers):
        return self.constant(np.array(numbers, np.int64))

    def model(self, given, dtype, result, output, metadata):
        """The checked ModelProto, without what the output does not need."""
        helper, last = self.onnx.helper, self.named(self.full(result), tuple(range(len(result.shape))))
        for conv in self.convs:
            conv.node.input.extend(self.constant(np.float32(x)) for x in (conv.weight, conv.bias))
        needed, nodes = {last}, []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                needed.update(node.input)
                nodes.insert(0, node)
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [output if n == last else n for n in names]
        kind = helper.np_dtype_to_tensor_dtype
        stored = [given.shape[a] for a in given.order]
        inputs = [helper.make_tensor_value_info(self.source, kind(dtype), ["batch", *stored[1:]])]
        shape = ["batch", *result.shape[1:]]
        outputs = [helper.make_tensor_value_info(output, kind(np.dtype(np.float32)), shape)]
        tensors = [self.onnx.numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in needed]
        graph = helper.make_graph(nodes, "reid_jax", inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="reid_jax")
        helper.set_model_props(model, metadata)
        self.onnx.checker.check_model(model, full_check=True)
        return model

    # ---- values
    def named(self, value, order):
        """The name of a value's tensor with its axes in this order."""
        if value.const is not None:
            array = np.asarray(value.const)
            return self.constant(
                array.reshape(()) if array.size == 1 and value.lazy else array.transpose(order)
            )
        if value.order == order:
            return value.name
        return self.node("Transpose", [value.name], perm=[value.order.index(a) for a in order])

    def full(self, value):
        """The value with every axis of its true size."""
        if not value.lazy:
            return value
        order = value.order or tuple(range(len(value.shape)))
        parts = [self.size(value.shape[a]) for a in order]
        shape = self.node("Concat", parts, axis=0)
        return Value(value.shape, self.node("Expand", [self.named(value, order), shape]), order=order)

    def size(self, size):
        """The name of an i64[1] with an axis's size."""
        if size % BATCH:
            return self.ints([size])
        batch = self.node("Slice", [self.node("Shape", [self.source]), self.ints([0]), self.ints([1])])
        return batch if size == BATCH else self.node("Mul", [batch, self.ints([size // BATCH])])

    def dims(self, sizes):
        """Sizes for Reshape, -1 for the one that grows with the batch."""
        if sum(s % BATCH == 0 for s in sizes) > 1:
            raise unsupported("a reshape to two axes that grow with the batch")
        return self.ints([-1 if s % BATCH == 0 else s for s in sizes])

    # ---- jaxprs
    def inline(self, jaxpr, consts, given):
        """Values of the outputs of a jaxpr."""
        equations, uses, env = live(jaxpr), {}, {}
        for v in [v for eqn in equations for v in eqn.invars] + list(jaxpr.outvars):
            if not isinstance(v, Literal):
                uses[v] = uses.get(v, 0) + 1

        def bind(variables, values):
            for variable, value in zip(variables, values, strict=True):
                if value.conv and uses.get(variable, 0) > 1:
                    value.conv.open = False
                env[variable] = value

        def read(v):
            return constant_value(np.asarray(v.val, v.aval.dtype)) if isinstance(v, Literal) else env[v]

        bind(jaxpr.constvars, [constant_value(np.asarray(c)) for c in consts])
        bind(jaxpr.invars, given)
        for eqn in equations:
            bind(eqn.outvars, self.equation(eqn, [read(v) for v in eqn.invars]))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn, values):
        """Values of an equation's outputs."""
        name, shape = eqn.primitive.name, getattr(eqn.outvars[0].aval, "shape", ())
        if name in _CALLS:
            inner = next(eqn.params[k] for k in _INNER if k in eqn.params)
            return self.inline(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
        if name in _SAME:
            return values
        foldable = all(v.const is not None and not v.lazy for v in values)
        if name not in ("broadcast_in_dim", "iota") and foldable:
            outputs = eqn.primitive.bind(*(jnp.asarray(v.const) for v in values), **eqn.params)
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
            return [constant_value(np.asarray(x)) for x in outputs]
        if name in _SIMPLE:
            return [self.simple(_SIMPLE[name], *values)]
        if name in _WRITTEN:
            return [_WRITTEN[name](self, *values)]
        if name in _REDUCE:
            return [self.reduce(_REDUCE[name], values[0], eqn.params["axes"], shape)]
        handler = getattr(self, f"on_{name}", None)
        if handler is None:
            raise unsupported(f"the operation {name}")
        outputs = handler(eqn, *values)
        return outputs if isinstance(outputs, list) else [outputs]

    # ---- elementwise
    def joined(self, values, shape):
        """(names, order, lazy) of values of one shape, aligned."""
        tensors = [v for v in values if v.const is None and len(v.shape) == len(shape)]
        order = tensors[0].order if tensors else tuple(range(len(shape)))
        wide = [v.lazy if len(v.shape) == len(shape) else frozenset(range(len(shape))) for v in values]
        names = [self.named(v, order if len(v.shape) == len(shape) else ()) for v in values]
        return names, order, frozenset.intersection(*wide) & {a for a, s in enumerate(shape) if s != 1}

    def made(self, op, *values, **attributes):
        """An operation entry by entry, of values of one rank and single numbers."""
        shape = np.broadcast_shapes(*(v.shape for v in values))
        names, order, lazy = self.joined(values, shape)
        return Value(shape, self.node(op, names, **attributes), order=order, lazy=lazy)

    def simple(self, op, *values):
        if len(values) == 2 and (taken := self.into_conv(op, *values)):
            return taken
        zero = [v for v in values if v.const is not None and not np.any(v.const)]
        if op == "Max" and len(zero) == 1:
            return self.made("Relu", *(v for v in values if v is not zero[0]))
        return self.made(op, *values)

    def into_conv(self, op, a, b):
        """The convolution with a constant per channel taken into its weights, None where that is not so."""
        swapped = a.const is not None
        x, c = (b, a) if swapped else (a, b)
        if x.conv is None or not x.conv.open or c.const is None or op not in ("Add", "Sub", "Mul", "Div"):
            return None
        channel, array = x.order[1], np.asarray(c.const, np.float64)
        if array.ndim and array.size != (array.shape[channel] if array.ndim == len(x.shape) else 1):
            return None
        if op == "Div" and swapped:
            return None
        array, conv = array.reshape(-1), x.conv
        column = array.reshape(-1, *[1] * (conv.weight.ndim - 1))
        if op in ("Mul", "Div"):
            scale, rows = (array, column) if op == "Mul" else (1 / array, 1 / column)
            conv.weight, conv.bias = conv.weight * rows, conv.bias * scale
        elif op == "Sub" and swapped:
            conv.weight, conv.bias = -conv.weight, array - conv.bias
        else:
            conv.bias = conv.bias + (array if op == "Add" else -array)
        return Value(x.shape, x.name, order=x.order, conv=conv)

    def on_integer_pow(self, eqn, x):
        if eqn.params["y"] == 2:
            return self.made("Mul", x, x)
        return self.made("Pow", x, constant_value(np.float32(eqn.params["y"])))

    def cast(self, x, dtype):
        return self.made("Cast", x, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def on_convert_element_type(self, eqn, x):
        return self.cast(x, eqn.params["new_dtype"])

    def on_select_n(self, eqn, which, *cases):
        if len(cases) != 2:
            raise unsupported("a choice among more than two")
        which = which if eqn.invars[0].aval.dtype == bool else self.cast(which, bool)
        return self.made("Where", which, cases[1], cases[0])


def live(jaxpr):
    """The equations that the outputs depend on, in order."""
    wanted, kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
            kept.append(eqn)
    return kept[::-1]
