"""What the text of a compiled program says: its collectives, and operations that should not be there."""

import collections
import re
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
ON_CHIP = re.compile(r"\b[a-z]\w*\[[\d,]*\]\{[^}]*S\([1-9]\d*\)[^}]*\}")  # a memory space of the chip's own
COMMENT = re.compile(r"/\*.*?\*/")  # long tuples number their parts in such
CHAIN = re.compile(r'chain_id="(\w+)"')  # of fusions that share the work of one collective
OPERATION = re.compile(r"= (\(?[^=]*?\)?) ([a-z][\w-]*)\(")


class Collective(NamedTuple):
    """Calls of one sort in a program."""

    kind: str
    calls: int
    bytes: int  # of the results of all calls, on one device


def operations(text):
    """(results' shapes as text, name of the operation) of every instruction of a compiled program."""
    for line in text.splitlines():
        match = OPERATION.search(COMMENT.sub("", line))
        if match:
            yield match[1], match[2]


def size(shapes):
    """Bytes of shapes written as in HLO, f32[2,3]{1,0} or a tuple of such."""
    total = 0
    for dtype, sides in SHAPE.findall(shapes):
        if dtype in BYTES:
            total += BYTES[dtype] * int(np.prod([int(s) for s in sides.split(",") if s], dtype=np.int64))
    return total


def in_memory(shapes):
    """Bytes of those of the shapes that lie in the device's main memory, none of those kept on the chip."""
    return size(ON_CHIP.sub("", shapes))


def collectives(text):
    """[Collective] of a compiled program, the largest first; what begins and ends apart counts once."""
    calls, moved = collections.Counter(), collections.Counter()
    for shapes, name in operations(first_of_chains(text)):
        kind = name.removesuffix("-start")
        if kind in COLLECTIVES:
            calls[kind] += 1
            moved[kind] += results(shapes, kind) if name.endswith("-start") else size(shapes)
    return [Collective(kind, calls[kind], moved[kind]) for kind, _ in moved.most_common()]


def first_of_chains(text):
    """The text without the later parts of collectives whose work several fusions share."""
    seen, lines = set(), []
    for line in text.splitlines():
        chain = CHAIN.search(line)
        if not chain or chain[1] not in seen:
            lines.append(line)
        seen |= {chain[1]} if chain else set()
    return "\n".join(lines)


def results(shapes, kind):
    """Bytes of the results of a collective that is started here: its tuple names its operands first."""
    whole = size(shapes)
    return whole // 2 if shapes.startswith("(") and kind != "all-reduce" else whole


def count(text, *names):
    """(number, bytes of results) of the instructions of these names, which fusions hold too."""
    sizes = [size(shapes) for shapes, name in operations(text) if name in names]
    return len(sizes), sum(sizes)
