"""PyTorch's files written by hand, opcode by opcode, so that tests need no PyTorch."""

import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


class View:
    """A tensor that is part of a storage: flat array, offset, shape and strides in elements."""

    def __init__(self, flat, offset, shape, strides):
        self.flat, self.offset, self.shape, self.strides = flat, offset, shape, strides


class Raw:
    """Opcodes put into the pickle as they are."""

    def __init__(self, code):
        self.code = code


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    return (
        b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x09" + struct.pack("<qb", value, 0)
    )


def code(value, storages, legacy=False):
    """Opcodes that push a value; arrays are added to `storages`."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, dict):
        items = b"".join(code(k, storages, legacy) + code(v, storages, legacy) for k, v in value.items())
        return b"ccollections\nOrderedDict\n)R(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(code(v, storages, legacy) for v in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(code(v, storages, legacy) for v in value) + b"t"
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return number(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, np.ndarray):
        value = np.asarray(value, order="C")
        strides = tuple(s // value.itemsize for s in value.strides)
        value = View(value.reshape(-1), 0, value.shape, strides)
    storages.append(value.flat)
    kind = f"ctorch\n{STORAGES[value.flat.dtype]}\n".encode()
    place = (
        b"(" + text("storage") + kind + text(str(len(storages) - 1)) + text("cpu") + number(value.flat.size)
    )
    place += (b"N" if legacy else b"") + b"tQ"
    rest = (value.offset, tuple(value.shape), tuple(value.strides), False, {})
    arguments = place + b"".join(code(v, [], legacy) for v in rest)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def write_zip(path, value, byteorder="little", compression=zipfile.ZIP_STORED):
    """A file as torch.save has written them since 1.6."""
    storages = []
    body = b"\x80\x02" + code(value, storages) + b"."
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", byteorder)
        for i, flat in enumerate(storages):
            bits = flat.view(f"u{flat.itemsize}")  # ml_dtypes of old did not swap the bytes of a bfloat16
            data = bits.byteswap() if byteorder == "big" else bits
            archive.writestr(f"archive/data/{i}", data.tobytes())
        archive.writestr("archive/version", "3\n")


def write_legacy(path, value):
    """A file as torch.save wrote them before 1.6."""
    storages = []
    body = b"\x80\x02" + code(value, storages, legacy=True) + b"."
    with open(path, "wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            file.write(pickle.dumps(head, 2))
        file.write(body)
        file.write(pickle.dumps([str(i) for i in range(len(storages))], 2))
        for flat in storages:
            file.write(struct.pack("<q", flat.size) + flat.tobytes())
