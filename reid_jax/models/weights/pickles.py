"""PyTorch's .pth and .pt files as plain data, without PyTorch.

The pickle in such a file is a program. `Machine` walks its opcodes itself: names are looked up in the
lists below and nowhere else, nothing is imported, called or set. What a weight file needs (tensors,
dictionaries, numbers) is built from plain data, harmless objects (numpy scalars, paths, ...) become
`Opaque`, and any other name raises WeightsError with that name.
"""

import math
import pickletools
from typing import NamedTuple

import ml_dtypes
import numpy as np

from reid_jax.errors import WeightsError

PICKLE_BYTES, _PICKLE_STEPS = 2**26, 10**7  # a pickle holds no tensor data; more is no weight file
_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "UntypedStorage": np.uint8,
}
_TYPES = {
    **{n: np.dtype(n) for n in ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8")},
    **{n: np.dtype(n) for n in ("uint16", "uint32", "uint64")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "bool": np.dtype(bool),
}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict"}
_REBUILD = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
}
_INERT = {
    *("torch.Size", "torch.device", "torch.dtype", "torch.Tensor", "torch.nn.parameter.Parameter"),
    *(f"torch.{name}" for name in (*_TYPES, "complex64", "complex128")),
    *("argparse.Namespace", "types.SimpleNamespace", "collections.Counter", "collections.deque"),
    *(f"builtins.{t}" for t in ("int", "float", "complex", "bool", "str", "bytes", "bytearray", "list")),
    *(f"builtins.{t}" for t in ("tuple", "set", "frozenset", "slice", "range", "object")),
    *(f"pathlib.{flavour}Path" for flavour in ("Posix", "PurePosix", "Windows", "PureWindows")),
    *(f"pathlib._local.{flavour}Path" for flavour in ("Posix", "Windows")),
    *("datetime.datetime", "datetime.date", "datetime.timedelta", "copyreg._reconstructor"),
    *("_codecs.encode", "numpy.dtype", "numpy.ndarray", "yacs.config.CfgNode", "easydict.EasyDict"),
    *(f"numpy.{core}.multiarray.{f}" for core in ("core", "_core") for f in ("scalar", "_reconstruct")),
    *(f"numpy.{t}" for t in ("float64", "float32", "float16", "int64", "int32", "bool_")),
}
_SETTINGS = (  # packages whose objects in a checkpoint are settings and figures; they stay opaque too
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.", "omegaconf."),
    *("fvcore.common.config.", "fastreid.config.", "addict.", "mmcv.utils.config.", "mmengine.config."),
)
_CONSTANTS = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
_SINGLE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Name(NamedTuple):
    """A name that the file asks for, already found in a list above."""

    text: str


class Opaque:
    """Something harmless that is no tensor."""


class Storage(NamedTuple):
    """Where a tensor's numbers lie."""

    dtype: np.dtype
    key: str
    numel: int
    start: int  # of a view (old files)


class Tensor(NamedTuple):
    """A tensor not read yet; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self):
        return len(self.shape)


class Machine:
    """Walks one pickle. `run` gives its object: dicts, lists, tuples, numbers, text, Tensor, Opaque."""

    def __init__(self):
        self.stack, self.marked, self.memo = [], [], {}
        self.storages = {}  # {key: Storage} of all that are mentioned

    def run(self, file):
        """The next object in a binary file; WeightsError on names that are not allowed."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if step > _PICKLE_STEPS:
                raise WeightsError(f"has a pickle of more than {_PICKLE_STEPS} operations")
            if name in _CONSTANTS:
                self.stack.append(argument)
            elif name in _SINGLE:
                self.stack.append(_SINGLE[name])
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                method = getattr(self, f"_{name.lower()}", None)
                if method is None:
                    raise WeightsError(
                        f"uses the pickle operation {name}, which no weight file needs; refused"
                    )
                method(argument)
        raise WeightsError("the pickle has no end")

    # ---- stack and memo

    def _items(self):
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _mark(self, _):
        self.marked.append(self.stack)
        self.stack = []

    def _pop(self, _):
        self.stack.pop() if self.stack else self._items()

    def _pop_mark(self, _):
        self._items()

    def _dup(self, _):
        self.stack.append(self.stack[-1])

    def _put(self, index):
        self.memo[index] = self.stack[-1]

    def _get(self, index):
        self.stack.append(self.memo[index])

    def _memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    # ---- containers

    def _empty_dict(self, _):
        self.stack.append({})

    def _empty_list(self, _):
        self.stack.append([])

    def _empty_set(self, _):
        self.stack.append(Opaque())

    def _dict(self, _):
        items = self._items()
        self.stack.append({})
        self._store(items)

    def _list(self, _):
        items = self._items()
        self.stack.append(items)

    def _frozenset(self, _):
        self._items()
        self.stack.append(Opaque())

    def _tuple(self, _):
        items = self._items()
        self.stack.append(tuple(items))

    def _tuple1(self, _):
        self._last(1)

    def _tuple2(self, _):
        self._last(2)

    def _tuple3(self, _):
        self._last(3)

    def _last(self, count):
        items = self.stack[-count:]
        del self.stack[-count:]
        self.stack.append(tuple(items))

    def _append(self, _):
        self._extend([self.stack.pop()])

    def _appends(self, _):
        self._extend(self._items())

    def _extend(self, items):
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _additems(self, _):
        self._items()

    def _setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self._store([key, value])

    def _setitems(self, _):
        self._store(self._items())

    def _store(self, items):
        if not isinstance(self.stack[-1], dict):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            simple = isinstance(key, str | int | float | bytes | None)
            self.stack[-1][key if simple else Opaque()] = value  # hashing others can take for ever

    # ---- names and calls

    def _global(self, text):
        self.stack.append(allowed(*text.split(" ", 1)))

    def _stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(allowed(module, name))

    def _reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(built(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _):
        self.stack.pop()
        self._reduce(_)

    def _inst(self, text):
        arguments = self._items()
        self.stack.append(built(allowed(*text.split(" ", 1)), arguments))

    def _obj(self, _):
        kind, *arguments = self._items()
        self.stack.append(built(kind, arguments))

    def _build(self, _):
        self.stack.pop()  # attributes are not set on anything

    def _binpersid(self, _):
        place = storage(self.stack.pop())
        self.storages[place.key] = place
        self.stack.append(place)


def allowed(module, name):
    """The Name of module.name; WeightsError unless it is on the lists."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    text = f"{module}.{name}"
    is_storage = module in ("torch", "torch.storage") and name in _STORAGES
    if is_storage or text in _DICTS or text in _REBUILD or _inert(text):
        return Name(text)
    raise WeightsError(
        f"wants to use {text[:200]}, which is no part of plain weights; refused, nothing was run. If you "
        "trust the file, save model.state_dict() from it in PyTorch, best as .safetensors"
    )


def _inert(text):
    return text in _INERT or text.startswith(_SETTINGS)


def built(function, arguments):
    """The plain data that stands for a call of a Name."""
    text = function.text if isinstance(function, Name) else ""
    if text in _DICTS:
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return {k: v for k, v in pairs if isinstance(k, str)}
    if text == "torch.Size":
        return tuple(arguments[0])
    if text == "torch._tensor._rebuild_from_type_v2":
        return built(arguments[0], arguments[1])
    if "_rebuild_parameter" in text:
        return arguments[0]
    if text in _REBUILD:
        return tensor(*arguments[:4], arguments[6] if text.endswith("v3") else None)
    if _inert(text):
        return Opaque()
    raise WeightsError("calls something that has no name; refused")


def tensor(place, offset, shape, strides, kind):
    """Tensor of a storage, checked to lie inside it."""
    dtype = place.dtype if kind is None else _TYPES[kind.text.removeprefix("torch.")]
    numel = place.numel * place.dtype.itemsize // dtype.itemsize
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise WeightsError(f"holds a tensor of shape {shape} and strides {strides}")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count and (last >= numel or count > numel):
        raise WeightsError(f"holds a tensor of shape {shape} in a storage of {numel} numbers")
    return Tensor(place, offset, tuple(shape), tuple(strides), dtype)


def storage(identity):
    """Storage of a persistent id ('storage', type, key, device, numel[, view])."""
    tag, kind, key, _, numel, *view = identity
    name = kind.text.rpartition(".")[2]
    if tag != "storage" or name not in _STORAGES or type(numel) is not int or numel < 0:
        raise WeightsError("holds storages of an unknown kind")
    start, count = (view[0][1], view[0][2]) if view and view[0] else (0, numel)
    if not 0 <= start <= start + count <= numel:
        raise WeightsError("holds a view that leaves its storage")
    return Storage(np.dtype(_STORAGES[name]), str(key), count, start)
